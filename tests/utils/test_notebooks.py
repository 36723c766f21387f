"""roilib.utils.notebooks: notebooks are run with checked parameters, by this interpreter."""

import json
import subprocess
import sys

import nbformat
import pytest
from conftest import REPOSITORY as ROOT

from roilib import cli
from roilib.parameters import Parameters
from roilib.utils import notebooks


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lamda": 0.1}, "lamda: no such parameter; did you mean lmbda"),
        ({"lmbda": "1e-2"}, "lmbda: "),
        ({"max_steps": 1.5}, "max_steps: "),
        ({"resume": 1}, "resume: "),
        ({"more": {"lamda": 0.1}}, "lamda: no such parameter"),
        ({"zero_hooks": True, "mask_hooks": True}, "exclude each other"),
    ],
)
def test_bad_parameters_of_a_training_stop_before_anything_runs(tmp_path, values, message):
    notebook = ROOT / "notebooks" / "04_roi_training.ipynb"
    with pytest.raises(ValueError, match=message):
        notebooks.execute(notebook, tmp_path / "out.ipynb", values, Parameters.parse)
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [({"pictur": 9}, "no parameter 'pictur'"), ({"picture": "9"}, "picture is int")],
)
def test_bad_parameters_of_other_notebooks_do_too(values, message):
    with pytest.raises(ValueError, match=message):
        notebooks.checked_parameters(ROOT / "notebooks" / "02_detector_hooks.ipynb", values)


@pytest.mark.parametrize("name", ["03_baseline_training", "04_roi_training"])
def test_a_training_notebook_takes_every_parameter(name):
    notebook = ROOT / "notebooks" / f"{name}.ipynb"
    asked = Parameters(N=8, ema=0.5, max_steps=None, lmbda=1, dataset="sample", which="hyperprior")
    values = notebooks.checked_parameters(notebook, asked.model_dump(), Parameters.parse)
    assert values["more"].keys() | values.keys() - {"more"} == Parameters.model_fields.keys()
    assert Parameters.parse_notebook(values | {"In": []}) == asked


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("05_evaluation", {"lmbda": [0.01], "boxes": "detector", "more": {"workers": 1}}),
        ("08_thin_link", {"frames": 10, "mbit": [0.5, 1.0], "more": {"seeds": [1]}}),
    ],
)
def test_notebooks_that_train_nothing_have_parameters_of_their_own(name, values):
    notebook = ROOT / "notebooks" / f"{name}.ipynb"
    assert notebooks.checked_parameters(notebook, values, Parameters.parse) == values
    with pytest.raises(ValueError, match="no parameter 'max_steps'"):
        notebooks.checked_parameters(notebook, {"max_steps": 3}, Parameters.parse)


@pytest.mark.slow
def test_a_failed_cell_names_the_executed_notebook(tmp_path):
    values = json.dumps(
        {"dataset": "kitti", "data_root": str(tmp_path / "nowhere"), "logdir": str(tmp_path)}
    )
    command = [
        sys.executable,
        "-m",
        "roilib",
        "notebook",
        "notebooks/01_dataset_exploration.ipynb",
        str(tmp_path / "01.ipynb"),
        "--parameters",
        values,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "nowhere: no KITTI here" in done.stderr
    assert str(tmp_path / "01.ipynb") in done.stderr
    assert (tmp_path / "01.ipynb").exists()


@pytest.mark.slow
def test_a_kernel_that_dies_is_one_line(tmp_path, capsys):
    cell = nbformat.v4.new_code_cell("import os\n\nos.kill(os.getpid(), 9)")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbformat.write(notebook, tmp_path / "dies.ipynb")
    words = ["notebook", tmp_path / "dies.ipynb", tmp_path / "out.ipynb"]
    assert cli.main(list(map(str, words))) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"roilib notebook: {tmp_path / 'dies.ipynb'}: its kernel died")
    assert (tmp_path / "out.ipynb").exists()


def test_a_notebooks_parameters_are_its_tagged_cell():
    values = {
        "dataset": "kitti",
        "data_root": "x",
        "train_size_p1": 0.5,
        "logdir": "y",
        "detector_weights": None,
        "picture": 3,
        "confidence": 0.1,
    }
    assert notebooks.parameter_values("02_detector_hooks", values | {"p": 1, "found": []}) == values


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        (3, {"int", "float"}),
        (0.5, {"float"}),
        (True, {"bool"}),
        (None, {"None"}),
        (["a"], {"list"}),
        ("a", {"str"}),
    ],
)
def test_values_are_of_their_types(value, kinds):
    known = ("int", "bool", "None", "float", "list", "str")
    assert {kind for kind in known if notebooks._is_of(value, kind)} == kinds


@pytest.mark.slow
def test_the_kernel_is_this_interpreter(tmp_path, monkeypatch, capfd):
    """Though the user has a kernel of the same name that is another."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = ["/bin/false", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "another", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    bar = "for i in range(3):\n    print(f'\\r{i} of 2', end='', flush=True)\nprint()"
    cells = [nbformat.v4.new_code_cell(f"import sys; print(sys.executable)\n{bar}")]
    meta = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=meta), tmp_path / "a.ipynb")
    notebooks.execute(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {})
    (output,) = nbformat.read(tmp_path / "b.ipynb", 4).cells[0].outputs
    assert output.text == f"{sys.executable}\n2 of 2\n"
    assert "WARNING" not in capfd.readouterr().err


def test_what_more_holds_has_a_default():
    assert vars(notebooks.options({"workers": 1}, workers=None, device="auto")) == {
        "workers": 1,
        "device": "auto",
    }
    with pytest.raises(ValueError, match="more: no parameter 'wrokers'; it has workers"):
        notebooks.options({"wrokers": 1}, workers=None)


def test_a_drive_that_is_there_may_be_of_any_street(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(notebooks, "_prepare", lambda *words: asked.append(words))
    for folder in (tmp_path, tmp_path / "new"):
        assert notebooks.prepare_drive(str(folder), 3) == str(folder)
    there, new = asked
    assert there == (str(tmp_path), "--drive", "3")
    assert new == (str(tmp_path / "new"), "--drive", "3", "--seed", "21")
