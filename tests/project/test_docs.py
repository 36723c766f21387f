"""docs/: the site builds without a warning, and its Python blocks run."""

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, REPOSITORY / "docs" / "build.py", tmp_path / "site"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "04_roi_training" in (tmp_path / "site" / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("page", [REPOSITORY / "README.md", *PAGES], ids=lambda path: path.stem)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report").symlink_to(REPOSITORY / "report")
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})
