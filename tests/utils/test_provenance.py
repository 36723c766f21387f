"""roilib.utils.provenance: whatever writes numbers says where they come from."""

import ast
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from conftest import REPOSITORY

from roilib.utils import provenance
from roilib.utils.provenance import environment, origin, sha256

WRITERS = [
    path
    for kind in ("roilib/**/*.py", "benchmarks/*.py", "notebooks/*.ipynb")
    for path in sorted(REPOSITORY.glob(kind))
]
WITHOUT_ORIGIN = {  # modules that write JSON without its origin, and where the origin is
    "roilib/utils/notebooks.py": "provenance.json beside it",
    "roilib/engines/train.py": "hparams.json of the run",
    "roilib/evaluation/evaluate.py": "provenance.json, written by notebook 05",
    "roilib/apps/drive/report.py": "drive.provenance made it",
    "roilib/evaluation/cache.py": "a cache, by the content of what was measured",
    "roilib/engines/checkpoints.py": "a state to resume from, inside a run's folder",
}


def calls(path: Path) -> list[ast.Call]:
    """Every call in a module, or in a notebook's code."""
    source = path.read_text()
    if path.suffix == ".ipynb":
        source = "\n".join(
            "".join(cell["source"])
            for cell in json.loads(source)["cells"]
            if cell["cell_type"] == "code"
        )
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]


def name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def test_whoever_writes_numbers_writes_where_they_come_from():
    without = set()
    for path in WRITERS:
        for call in calls(path):
            inner = {name(node) for node in ast.walk(call) if isinstance(node, ast.Call)}
            written = name(call) == "write_json" or ast.unparse(call.func) == "torch.save"
            if written and not inner & {"origin", "provenance"}:
                without.add(path.relative_to(REPOSITORY).as_posix())
    assert without == WITHOUT_ORIGIN.keys()


def test_an_environment_lacks_the_version_of_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    packages = environment()["packages"]
    assert packages == {"torch": version("torch"), "no-such-package": None}


def test_an_environment_names_code_versions_and_machine():
    about = environment()
    assert {
        "commit",
        "dirty",
        "source",
        "machine",
        "processor",
        "cores",
        "cpu_capability",
        "threads",
        "gpus",
    } < about.keys()
    assert about["python"] == sys.version.split()[0]
    assert {"torch", "compressai", "numpy", "ultralytics", "av"} <= about["packages"].keys()
    assert all(version(package) == number for package, number in about["packages"].items())
    assert about["processor"]
    told_again = origin(
        {"path": Path("a/b"), "paths": [Path("c")], "numbers": (1, 2.5), "none": None}
    )
    assert told_again == {
        "parameters": {"path": "a/b", "paths": ["c"], "numbers": [1, 2.5], "none": None},
        "environment": about,
    }


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_is_that_of_these_modules_and_changes_show(tmp_path, monkeypatch):
    here = tmp_path / "roilib"
    shutil.copytree(REPOSITORY / "roilib", here, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "HERE", here)
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "not these modules")
    installed = environment()
    assert (installed["commit"], installed["dirty"]) == (None, None)
    results = tmp_path / "report" / "results" / "records.json"
    results.parent.mkdir(parents=True)
    results.write_text("measured")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "these modules")
    results.write_text("measured anew")
    clean = environment()
    assert (clean["commit"], clean["dirty"]) == (git(tmp_path, "rev-parse", "HEAD"), False)
    (here / "roi.py").write_text("changed")
    changed = environment()
    assert (changed["commit"], changed["dirty"]) == (clean["commit"], True)
    assert (
        changed["source"]
        != clean["source"]
        == installed["source"]
        == sha256(sorted((REPOSITORY / "roilib").rglob("*.py")))
    )
