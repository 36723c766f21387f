"""The workbook twice on one machine makes the same files, except times.

Notebooks are executed cell after cell, as in JupyterLab, but all in one process, which is quicker
than a kernel for each: `python tests/project/test_reproducible.py FOLDER`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY, write_tiny_kitti

from roilib.parameters import Parameters
from roilib.utils.notebooks import checked_parameters

pytestmark = pytest.mark.slow

SMALL = {
    "model_load_file": None,
    "N": 8,
    "M": 12,
    "max_steps": 3,
    "batch_size": 2,
    "compr_img_size": 64,
    "obj_det_img_size": 64,
}
VBR = SMALL | {"which": "roi_vbr", "N": 16, "M": 48, "lmbda": 0.012, "crop": "native", "ema": 0.9}
CODECS = {
    "x264 medium": {"quality": [24, 30, 36], "qoffset": [0, -0.2]},
    "x265 ultrafast": {"quality": [34], "qoffset": [-0.2]},
    "avif": {"quality": [40]},
}
KNOBS = {"lmbda": [0.002, 0.01, 0.05], "alpha": [0.5, 0.8, 0.95], "more": {"workers": 1}}
TIMES = {"timing.json", "times.json", "drive_times.csv"}  # what no two runs share


def profile(folder: Path) -> list[tuple[str, dict]]:
    """Notebooks and their parameters: two of six pictures are tested on."""
    data = {"dataset": "kitti", "data_root": str(folder / "kitti"), "train_size_p1": 0.67}
    results, figures = (
        {"results": str(folder / "made" / "results")},
        {"figures": str(folder / "made" / "figures")},
    )
    jobs = [
        ("01_dataset_exploration", data),
        ("03_baseline_training", data | SMALL),
        ("04_roi_training", data | VBR),
        ("05_evaluation", data | results | {"codecs": CODECS} | KNOBS),
        ("06_figures", data | results | figures),
        ("07_playground", data),
        (
            "08_thin_link",
            {"drive": str(folder / "kitti"), "frames": 3, "mbit": [0.12], "loss": 0.3}
            | results
            | figures,
        ),
    ]
    return [
        (notebook, {"logdir": str(folder / "made" / "runs")} | values) for notebook, values in jobs
    ]


def execute(notebook: str, values: dict) -> None:
    """Run a notebook's code here, with these values of its parameters."""
    path = REPOSITORY / "notebooks" / f"{notebook}.ipynb"
    values = checked_parameters(path, values, Parameters.parse)
    variables: dict = {"In": []}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), notebook, "exec"), variables)
        if "parameters" in cell["metadata"].get("tags", ()):
            variables |= values


def contents(folder: Path) -> dict[str, object]:
    """Return the part of every file that must be the same: all but times and the names of logs."""
    found = {}
    for path in sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in TIMES
    ):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith("events.out"):
            continue
        if path.name == "training.csv":
            found[name] = pd.read_csv(path).drop(columns="hours").to_csv()
        elif path.name == "provenance.json" and "results" in name:
            about = json.loads(path.read_text())
            found[name] = about | {
                "runs": {
                    run: {"parameters": source["parameters"], "steps": source["steps"]}
                    for run, source in about["runs"].items()
                }
            }
        elif "points" in name or path.suffix == ".pt":
            continue  # with times in them
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Run the same profile in the same place by two processes.

    Their hash seeds differ, so that sets of text are in a different order.
    """
    folder, made = tmp_path_factory.mktemp("twice"), []
    write_tiny_kitti(folder / "kitti")
    for seed in ("1", "2"):
        paths = [str(REPOSITORY), str(REPOSITORY / "tests")]  # pytest finds conftest by itself
        environment = os.environ | {"PYTHONHASHSEED": seed, "MPLBACKEND": "agg"}
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        done = subprocess.run(
            [sys.executable, __file__, str(folder)],
            env=environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (folder / "made").rename(folder / seed)
        made.append(contents(folder / seed))
    return made


def test_the_same_profile_again_makes_the_same_files(twice):
    first, second = twice
    assert [name for name in first if first[name] != second.get(name)] == []
    assert first.keys() == second.keys()
    kinds = {name.rpartition(".")[2] for name in first}
    assert kinds == {"json", "csv", "gz", "safetensors", "pdf", "png", "mp4", "html"}
    assert sum(name.endswith("/metrics.json") for name in first) == 7
    figures = {
        f"figures/{name}.{kind}"
        for name in ("rate_psnr", "training", "roi_comparison", "drive_lossy")
        for kind in ("pdf", "png")
    }
    assert (
        figures | {"results/records.json", "results/drive_frames.csv", "results/detections.json.gz"}
        <= first.keys()
    )


if __name__ == "__main__":
    for job in profile(Path(sys.argv[1])):
        execute(*job)
