"""roilib.parameters: nothing runs on a misunderstanding."""

import json
from pathlib import Path

import pytest
import yaml

from roilib.parameters import WITHOUT_EFFECT, Parameters, expand_sweep
from roilib.utils.pretrained import PRETRAINED_CODECS, pretrained

PROFILES = sorted((Path(__file__).parent.parent / "params").glob("*.yaml"))

PAPER = {  # contract 1's table in design.md, and field-notes.md for N and M
    "what": "train",
    "batch_size": 256,
    "num_workers": 16,
    "max_lr": 6e-4,
    "max_epochs": 300,
    "obj_det_img_size": 640,
    "compr_img_size": 256,
    "lmbda": 0.0037,
    "alpha": 0.5,
    "train_size_p1": 0.95,
    "zero_hooks": False,
    "mask_hooks": False,
    "conditioning": "concat",
    "decoder_roi": False,
    "model_load_file": None,
    "N": 128,
    "M": 192,
    "max_steps": None,
    "metric": "mse",
}
OTHER = {  # of every parameter a value that is not its default
    "what": "test",
    "which": "hyperprior",
    "device": "cpu",
    "devices": 2,
    "batch_size": 8,
    "num_workers": 2,
    "max_lr": 1e-3,
    "max_epochs": 7,
    "max_steps": 9,
    "obj_det_img_size": 320,
    "compr_img_size": 128,
    "crop": "native",
    "flip": True,
    "warmup": 0.02,
    "optimizer": "muon",
    "fixed_rate": True,
    "unlabelled": "photos",
    "lmbda": 0.01,
    "alpha": 0.9,
    "train_size_p1": 0.5,
    "zero_hooks": True,
    "mask_hooks": True,
    "conditioning": "sft",
    "decoder_roi": True,
    "model_load_file": "w.safetensors",
    "logdir": "elsewhere",
    "dataset": "coco",
    "data_root": "data/coco",
    "detector_weights": "yolo.pt",
    "metric": "ms-ssim",
    "loss_form": "paper",
    "ema": 0.9,
    "checkpoint_seconds": 9.0,
    "N": 64,
    "M": 96,
    "seed": 1,
    "precision": "32",
    "compile": True,
    "resume": False,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lmbda", "1e-2"),  # what YAML 1.1 makes of 1e-2
        ("lmbda", True),
        ("batch_size", 8.0),
        ("batch_size", "8"),
        ("batch_size", True),
        ("max_steps", "None"),
        ("zero_hooks", 1),
        ("zero_hooks", "false"),
        ("precision", 32),
        ("logdir", 7),
        ("model_load_file", False),
        ("which", None),
    ],
)
def test_wrong_types_are_refused_in_one_line(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: [^\n]+$"):
        Parameters.parse({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("which", "hyperprio"),
        ("what", "Train"),
        ("batch_size", 0),
        ("num_workers", -1),
        ("lmbda", 0.0),
        ("lmbda", float("nan")),
        ("max_lr", float("inf")),
        ("alpha", 1.01),
        ("train_size_p1", -0.1),
        ("compr_img_size", 100),
        ("obj_det_img_size", 100),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: [^\n]+$"):
        Parameters.parse({name: value})


def test_unknown_names_are_refused_together():
    with pytest.raises(ValueError, match=r"^lambda: [^\n]*; Alpha: [^\n]+$"):
        Parameters.parse({"lambda": 0.01, "Alpha": 0.5})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lambda", "lmbda"),
        ("lr", "max_lr"),
        ("Alpha", "alpha"),
        ("n", "N"),
        ("data-root", "data_root"),
        ("epochs", "max_epochs"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_known_one(name, meant):
    with pytest.raises(ValueError, match=rf"^{name}: [^\n]*did you mean {meant}\?[^\n]*$"):
        Parameters.parse({name: 1})


def test_a_name_that_is_like_none_gets_no_suggestion():
    with pytest.raises(ValueError, match=r"^gpus: no such parameter \(roilib train --help"):
        Parameters.parse({"gpus": 2})


def test_paths_are_read_as_a_shell_would(monkeypatch):
    monkeypatch.setenv("HOME", "/me")
    words = ["--data-root=~/kitti/", "--unlabelled=a, ~/b ,./c", "--logdir= runs"]
    p = Parameters.parse_arguments(words)
    assert (p.data_root, p.unlabelled, p.logdir) == ("/me/kitti", "a,/me/b,c", "runs")
    given = {"model_load_file": "~/w.safetensors", "detector_weights": "~/yolo.pt"}
    p = Parameters.parse(given)
    assert p.model_load_file == "/me/w.safetensors"
    assert p.detector_weights == "/me/yolo.pt"
    assert Parameters.parse({"data_root": "data/kitti/"}).name == Parameters().name


def test_an_int_is_a_float():
    assert Parameters.parse({"alpha": 1, "lmbda": 2}).model_dump(include={"alpha", "lmbda"}) == {
        "alpha": 1.0,
        "lmbda": 2.0,
    }


def test_parameters_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Parameters().alpha = 0.9


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"zero_hooks": True, "mask_hooks": True}, "exclude each other"),
        ({"zero_hooks": True, "which": "hyperprior"}, "not for hyperprior"),
        ({"decoder_roi": True, "which": "roi_vbr"}, "decoder_roi: .* not for roi_vbr"),
        (
            {"conditioning": "sft", "which": "hyperprior"},
            "conditioning: .* not for hyperprior",
        ),
        (
            {"mask_hooks": True, "which": "hyperprior_eval_with_objs"},
            "not for hyperprior_eval_with_objs",
        ),
        ({"metric": "ms-ssim", "compr_img_size": 128}, "compr_img_size"),
        ({"metric": "ms-ssim", "which": "roi_vbr"}, "metric mse or yuv"),
        ({"metric": "yuv", "which": "hyperprior"}, "metric yuv belongs to roi_vbr"),
        ({"metric": "yuv", "which": "roi_vbr", "fixed_rate": True}, "fixed_rate"),
        ({"what": "test"}, "model_load_file"),
    ],
)
def test_values_that_do_not_fit_together(values, named):
    with pytest.raises(ValueError, match=rf"^[^\n]*{named}[^\n]*$"):
        Parameters.parse(values)


def test_arguments_of_a_command_line():
    words = [
        "--which=hyperprior",
        "--lmbda=1e-2",
        "--batch_size=8",
        "--resume=false",
        "--data_root=a=b",
        "--max_steps=None",
        "--precision=32",
    ]
    p = Parameters.parse_arguments(words)
    expected = {
        "which": "hyperprior",
        "lmbda": 0.01,
        "batch_size": 8,
        "resume": False,
        "data_root": "a=b",
        "precision": "32",
    }
    assert p == Parameters.parse(expected)
    assert Parameters.parse_arguments([]) == Parameters()
    words = ["--max-steps", "3", "--which=hyperprior", "--lmbda", "0.01"]
    spaced = Parameters.parse_arguments(words)
    assert (spaced.max_steps, spaced.which, spaced.lmbda) == (3, "hyperprior", 0.01)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("--batch_size=8.5", "batch_size"),
        ("--batch_size=None", "batch_size"),
        ("--lmbda=much", "lmbda"),
        ("--zero_hooks=maybe", "zero_hooks"),
        ("--lambda=1", "lambda"),
        ("--lambda=None", "lambda"),
        ("--compile", "--compile"),
        ("lmbda=1", "lmbda=1"),
    ],
)
def test_arguments_that_are_refused(word, named):
    with pytest.raises(ValueError, match=rf"^{named}: [^\n]+$"):
        Parameters.parse_arguments([word])


@pytest.mark.parametrize("name", Parameters.model_fields)
def test_a_run_is_named_by_what_changes_its_result(name):
    p = Parameters()
    changed = p.model_copy(update={name: OTHER[name]})
    assert (changed.name != p.name) == (
        name
        not in {
            "device",
            "devices",
            "num_workers",
            "compile",
            "resume",
            "checkpoint_seconds",
            "logdir",
        }
    )


def test_every_data_set_has_a_folder_of_its_own():
    assert [Parameters(dataset=name).data_root for name in ("kitti", "sample", "coco")] == [
        "data/kitti",
        "data/sample",
        "data/coco",
    ]
    assert Parameters.parse_arguments(["--dataset=sample", "--seed=3"]).data_root == "data/sample"
    assert Parameters(dataset="sample", data_root="data/kitti").data_root == "data/kitti"


@pytest.mark.parametrize(
    "word",
    [
        "--model_load_file=",
        "--unlabelled=",
        "--detector_weights=",
        "--logdir=",
        "--data_root= ",
        "--seed=4294967296",
    ],
)
def test_what_a_script_left_empty_is_refused(word):
    with pytest.raises(ValueError, match=word[2:].partition("=")[0]):
        Parameters.parse_arguments([word])


def test_a_value_equal_to_the_default_keeps_the_name():
    assert Parameters.parse({"alpha": 0.5, "train_size_p1": None}).name == Parameters().name
    assert "hyperprior_with_obj_features-" in Parameters().name
    assert Parameters(logdir="here").folder == Path("here") / Parameters().name
    assert set(Parameters.model_fields) > WITHOUT_EFFECT


def test_kitti_yaml_holds_the_papers_values():
    content = yaml.safe_load(next(path for path in PROFILES if path.stem == "kitti").read_text())
    assert {"parameters", "sweep"} <= set(content) <= {"parameters", "sweep", "evaluate"}
    values = Parameters.parse(content["parameters"]).model_dump()
    assert {name: values[name] for name in PAPER} == PAPER
    assert set(content["parameters"]) <= {*PAPER, "dataset", "data_root"}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_is_understood(path):
    runs = expand_sweep(yaml.safe_load(path.read_text()))
    assert len({p.name for p in runs}) == len(runs) > 0


def test_a_sweep_is_every_combination_of_its_lists():
    profile = {
        "parameters": {"N": 8, "logdir": "here"},
        "sweep": [{"which": "hyperprior", "lmbda": [0.01, 0.02], "seed": [1, 2]}, {"M": 24}],
    }
    runs = expand_sweep(profile, logdir="there")
    assert [(p.which, p.lmbda, p.seed) for p in runs[:4]] == [
        ("hyperprior", lmbda, seed) for lmbda in (0.01, 0.02) for seed in (1, 2)
    ]
    assert (runs[4].which, runs[4].M) == ("hyperprior_with_obj_features", 24)
    assert {(p.N, p.logdir) for p in runs} == {(8, "there")}
    with pytest.raises(ValueError, match="lambda"):
        expand_sweep(profile | {"sweep": [{"lambda": [0.1, 0.2]}]})
    with pytest.raises(ValueError, match="sweeep"):
        expand_sweep(profile | {"sweeep": []})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "a profile is a mapping with parameters and sweep, not None"),
        ({3: {}}, "not 3"),
        ({"parameters": None}, "parameters is a mapping, not None"),
        ({"sweep": None}, "sweep is a list of mappings, not None"),
        ({"sweep": {"lmbda": [0.1]}}, r"sweep is a list of mappings, not \{'lmbda'"),
        ({"sweep": ["lmbda"]}, "sweep is a list of mappings"),
        ({"sweep": []}, "sweep is empty"),
        ({"sweep": [{}, {"lmbda": []}]}, "sweep: lmbda has no values"),
        ({"evaluate": "few"}, "evaluate is a mapping or false, not 'few'"),
        ({"drive": True}, "drive is a mapping or false, not True"),
    ],
)
def test_a_part_of_a_profile_that_is_of_a_wrong_type_is_named(change, message):
    profile = {"parameters": {"N": 8}, "sweep": [{}]}
    assert len(expand_sweep(profile | {"evaluate": False, "drive": None})) == 1
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        expand_sweep(change and profile | change)


def test_a_notebooks_parameters_are_its_cell_then_more_then_what_papermill_injects():
    injected = '# Parameters\nlmbda = 0.02\noptimizer = "muon"\n'
    variables = {"lmbda": 0.02, "optimizer": "muon", "json": json, "run": 3}
    variables |= {"more": {"N": 8, "optimizer": "adamw"}, "In": ["lmbda = 0.01", injected]}
    expected = Parameters(lmbda=0.02, N=8, optimizer="muon")
    assert Parameters.parse_notebook(variables) == expected
    variables |= {"lamda": 1, "In": [*variables["In"], "# Parameters\nlamda = 1"]}
    with pytest.raises(ValueError, match="lamda: no such parameter; did you mean lmbda"):
        Parameters.parse_notebook(variables)


def test_shipped_names_the_pretrained_weights_of_a_model():
    file = pretrained(PRETRAINED_CODECS["rgb"])
    same = {"which": "roi_vbr", "N": 96, "M": 768, "lmbda": 0.012}
    shipped, named = (Parameters(**same, model_load_file=name) for name in ("shipped", str(file)))
    assert shipped.start_file == named.start_file == file
    assert shipped.name == named.name != Parameters(**same).name
    yuv = Parameters(**same, metric="yuv", model_load_file="shipped")
    assert yuv.start_file == pretrained(PRETRAINED_CODECS["yuv"])
    assert Parameters().start_file is None


@pytest.mark.parametrize(
    ("spelling", "path"),
    [
        ("x/../kitti", "kitti"),
        ("./data//kitti/", "data/kitti"),
        ("data/./kitti/.", "data/kitti"),
        ("../data/kitti", "../data/kitti"),
        ("a/../../kitti", "../kitti"),
        ("~nobody-of-this-name/kitti", "~nobody-of-this-name/kitti"),
    ],
)
def test_a_path_has_one_spelling(spelling, path):
    p, other = (Parameters.parse({"data_root": root}) for root in (spelling, path))
    assert (p.data_root, p.name) == (path, other.name)
    assert Parameters.parse({"unlabelled": f"a, {spelling}"}).unlabelled == f"a,{path}"


def test_a_path_that_leaves_the_target_of_a_link_keeps_its_meaning(tmp_path):
    (tmp_path / "far" / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "inside")
    path = f"{tmp_path}/link/../kitti"  # far/kitti, not kitti
    assert Parameters.parse({"data_root": path}).data_root == path


def test_of_a_parameter_that_is_given_twice_the_last_value_counts():
    words = ["--max-steps=3", "--max_steps=None", "--alpha=0.1", "--alpha=0.2"]
    p = Parameters.parse_arguments(words)
    assert (p.max_steps, p.alpha) == (None, 0.2)
