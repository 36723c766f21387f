"""The Snakefile's sweeps: real training jobs of a few steps, in a copy of the repository."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import REPOSITORY

from roilib.parameters import expand_sweep
from roilib.utils import notebooks

TINY = {
    "dataset": "kitti",
    "device": "cpu",
    "precision": "32",
    "N": 8,
    "M": 12,
    "batch_size": 4,
    "num_workers": 0,
    "max_epochs": 2,
}
TINY |= {"compr_img_size": 64, "obj_det_img_size": 64, "train_size_p1": 0.67}
GRID = {"lmbda": [0.005, 0.02], "alpha": [0.5, 0.9]}
ENGINES = [
    {"which": "hyperprior_eval_with_objs"},
    {"which": "hyperprior_with_obj_features", "mask_hooks": True},
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The tracked files in another folder, for a profile `grid`."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    return folder


def write_profile(checkout, grid, root, engines=ENGINES):
    """Let the profile be this grid for each engine; its points."""
    profile = {
        "parameters": TINY | {"data_root": str(root)},
        "sweep": [engine | grid for engine in engines],
        "evaluate": False,
    }
    (checkout / "params" / "grid.yaml").write_text(yaml.safe_dump(profile))
    return expand_sweep(profile, logdir="runs/grid")


def snakemake(checkout, *arguments):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # jobs call `python`
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "PATH": path}
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        "2",
        "--keep-going",
        "--rerun-triggers",
        "mtime",
        "params",
        "input",
        *arguments,
    ]
    return subprocess.run(
        [*command, "--config", "profile=grid"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )


def planned(done):
    """Jobs of a dry run by rule."""
    assert done.returncode == 0, done.stderr
    return {
        line.split()[0]: int(line.split()[1])
        for line in done.stdout.splitlines()
        if len(line.split()) == 2 and line.split()[1].isdigit()
    }


@pytest.mark.slow
def test_a_failed_point_leaves_the_others_and_is_tried_again(checkout, tiny_kitti):
    grid = {"alpha": [0.9], "lmbda": [0.005, 0.02]}
    points = write_profile(checkout, grid, tiny_kitti, ENGINES[:1])
    failing, other = points
    broken = checkout / failing.folder / "checkpoints"
    broken.parent.mkdir(parents=True)
    broken.write_text("a file where a folder belongs")
    done = snakemake(checkout)
    assert done.returncode == 1
    finished = {p.name for p in points if (checkout / p.folder / "metrics.json").exists()}
    assert finished == {other.name}
    named = [
        line.split()[0]
        for line in (done.stdout + done.stderr).splitlines()
        if line.startswith("  runs/") and " which=" in line
    ]
    assert named == [f"{failing.folder}/notebook.ipynb"]
    assert (checkout / named[0]).exists()  # the executed notebook shows what went wrong
    broken.unlink()
    before = {path: path.stat().st_mtime_ns for path in (checkout / "runs").rglob("metrics.json")}
    assert planned(snakemake(checkout, "--dry-run"))["train"] == 1
    done = snakemake(checkout)
    assert done.returncode == 0, done.stderr
    assert (checkout / failing.folder / "metrics.json").exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    changed = write_profile(checkout, grid | {"lmbda": [0.005, 0.03]}, tiny_kitti, ENGINES[:1])
    assert len({p.name for p in changed} - {p.name for p in points}) == 1
    assert planned(snakemake(checkout, "--dry-run"))["train"] == 1


@pytest.mark.slow
def test_the_slurm_profile_submits_the_same_jobs(checkout, tiny_kitti):
    write_profile(checkout, GRID | {"seed": [1, 2]}, tiny_kitti)
    slurm = ["--profile", "params/slurm", "--dry-run", "--resources", "gpu=2"]
    done = snakemake(checkout, *slurm, "--printshellcmds")
    assert planned(done)["train"] == 16
    assert done.stdout.count("--gpus 1") == 16
    assert "slurm_partition=gpu" in done.stdout


@pytest.mark.slow
def test_jobs_take_different_gpus(tmp_path):
    command = "from pathlib import Path; from roilib.utils import notebooks; "
    command += "print(notebooks.claim_gpus({}, ['0', '1', '2'], Path({!r})), flush=True); input()"
    jobs = []

    def claimed(count):  # by a process that keeps them until it ends
        arguments = [sys.executable, "-c", command.format(count, str(tmp_path))]
        jobs.append(
            subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
            )
        )
        return jobs[-1].stdout.readline().strip()

    try:
        assert claimed(1) == "['0']"
        assert claimed(2) == "['1', '2']"
        with pytest.raises(ValueError, match=r"1 GPUs asked for, but of 0, 1, 2 only 0 are free"):
            notebooks.claim_gpus(1, ["0", "1", "2"], tmp_path)
        jobs[0].communicate("\n")
        assert claimed(1) == "['0']"
    finally:
        for job in jobs:
            job.kill()
            job.communicate()


def test_jobs_of_slurm_count_gpus_each_from_0(tmp_path, monkeypatch):
    with contextlib.ExitStack() as held:
        monkeypatch.setattr(
            notebooks, "_held", SimpleNamespace(append=held.enter_context)
        )  # until the test ends
        for job in ("17", "18"):
            monkeypatch.setenv("SLURM_JOB_ID", job)
            assert notebooks.claim_gpus(1, ["0"], tmp_path) == ["0"]
            with pytest.raises(
                ValueError, match="only 0 are free"
            ):  # but within one, each is taken once
                notebooks.claim_gpus(1, ["0"], tmp_path)


def test_visible_gpus_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert notebooks.gpus_here() == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert notebooks.gpus_here() == []
