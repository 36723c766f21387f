"""Imports point down inside roilib: the order of its folders in pyproject.toml.

Imports of other packages are quick where every process has them.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from conftest import REPOSITORY

PACKAGE = REPOSITORY / "roilib"
LINTER = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]


def lint(folder):
    """Run the linter on the package in `folder`."""
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_the_contract_lists_every_folder_and_module():
    (contract,) = LINTER["contracts"]
    listed = [name for layer in contract["layers"] for name in layer.split(" : ")]
    there = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or list(path.glob("*.py"))
    }
    assert len(listed) == len(set(listed))
    assert {*listed, "__init__", "__main__"} == there
    assert contract["exhaustive"]


def test_an_upward_import_is_refused(tmp_path):
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "roilib", ignore=shutil.ignore_patterns("__pycache__"))
    assert lint(tmp_path).returncode == 0
    module = tmp_path / "roilib" / "roi.py"
    module.write_text(module.read_text() + "\nfrom roilib.models import roi_vbr\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "roilib.roi is not allowed to import roilib.models" in done.stdout


def test_a_notebooks_processes_build_no_parser_of_iris():
    code = "import sys, roilib.utils.notebooks; print('rfc3987_syntax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout == "False\n"  # with jsonschema 4.25 and later, it takes 3 s
