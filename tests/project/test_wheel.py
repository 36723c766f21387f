"""The wheel: every module of roilib, the playground's files and the pretrained weights."""

import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.slow

WEIGHTS = REPOSITORY / "data" / "weights"


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Build the wheel from a copy of the package; its files' names."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("roilib", "data/weights"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", folder, folder]
    subprocess.run(command, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return {name for name in wheel.namelist() if name.startswith("roilib/")}


def test_what_docker_copies_before_the_installation_is_enough(tmp_path):
    before = (REPOSITORY / "Dockerfile").read_text().partition("RUN ./run_all.sh --setup")[0]
    for line in re.findall(r"^COPY --chown=researcher (.+?)$", before.replace("\\\n", " "), re.M):
        *files, to = line.split()
        (tmp_path / to).mkdir(parents=True, exist_ok=True)
        for file in (REPOSITORY / name for name in files):
            if file.is_dir():
                shutil.copytree(file, tmp_path / to, dirs_exist_ok=True)
            else:
                shutil.copy(file, tmp_path / to)
    build = "from setuptools.build_meta import build_editable; print(build_editable('.'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        assert any(name.endswith(".pth") for name in wheel.namelist())


def test_it_has_every_module(names):
    there = {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("roilib/**/*.py")}
    assert {name for name in names if name.endswith(".py")} == there


def test_it_has_the_weights_but_not_their_scripts(names):
    files = {"SHA256SUMS"} | {
        path.name for path in WEIGHTS.iterdir() if path.suffix in (".pt", ".safetensors", ".json")
    }
    pretrained = {name for name in names if name.startswith("roilib/pretrained/")}
    assert pretrained == {f"roilib/pretrained/{name}" for name in files}


def test_it_has_the_playgrounds_files(names):
    folder = "roilib/apps/playground"
    assert {f"{folder}/widgets.js", f"{folder}/widgets.css"} <= names
