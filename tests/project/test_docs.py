"""docs/: the site builds without a warning, and the commands of README and docs run.

A block of `bash` or `python` runs in a clone beside the reader's files, unless the line above it
says why not: `<!-- not run: needs KITTI -->`.
"""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import nbformat
import pytest
from conftest import REPOSITORY, street, write_tiny_kitti
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")),
    *sorted((REPOSITORY / "data" / "weights").glob("*.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
BLOCK = re.compile(
    r"^(?: *<!-- not run: (?P<why>[^\n]+) -->\n)?(?P<indent> *)```(?P<language>\S*)\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
COMMANDS = {"bash", "python"}
SHOWN = {"text", "json", "bibtex", "{toctree}", "{eval-rst}"}


def blocks(page: Path) -> list[re.Match]:
    """A page's fenced blocks."""
    return list(BLOCK.finditer(page.read_text(encoding="utf-8")))


def name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, REPOSITORY / "docs" / "build.py", tmp_path / "site"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "04_roi_training" in (tmp_path / "site" / "index.html").read_text()
    api = (tmp_path / "site" / "api.html").read_text()
    assert re.search(r"<p[^>]*>Code pictures as <code[^>]*><span[^>]*>.roic</span>", api)
    assert re.search(r"<pre><span></span>image, boxes, λ, α ──►", api)  # a diagram


def test_thumbnails_are_figures_of_the_newest_finished_notebooks(tmp_path):
    for i, (run, grey) in enumerate({"new": 200, "old": 100, "unfinished": 0}.items()):
        png = io.BytesIO()
        Image.new("RGB", (640, 320), (grey,) * 3).save(png, "PNG")
        figure = new_output(
            "display_data", {"image/png": base64.b64encode(png.getvalue()).decode()}
        )
        cells = [new_code_cell(outputs=[figure])]
        about = {"papermill": {"input_path": "notebooks/04_roi_training.ipynb"}}
        (tmp_path / run).mkdir()
        path = tmp_path / run / "notebook.ipynb"
        nbformat.write(new_notebook(cells=cells, metadata=about), path)
        os.utime(path, (1e9 - i, 1e9 - i) if run != "unfinished" else None)
        if run != "unfinished":
            (tmp_path / run / "metrics.json").write_text("{}")
    script = REPOSITORY / "docs" / "thumbnails.py"
    subprocess.run([sys.executable, script, tmp_path, tmp_path], check=True)
    assert [path.name for path in tmp_path.glob("*.png")] == ["04.png"]
    picture = Image.open(tmp_path / "04.png").convert("L")
    assert (picture.size, picture.getpixel((0, 0))) == ((320, 160), 200)


def test_the_readmes_thumbnails_are_small():
    shown = re.findall(
        r"!\[\]\((report/pictures/notebooks/\S+)\)", (REPOSITORY / "README.md").read_text("utf-8")
    )
    assert len(shown) == len(list((REPOSITORY / "report/pictures/notebooks").iterdir()))
    assert max((REPOSITORY / path).stat().st_size for path in shown) <= 40_000


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_has_a_language_that_says_whether_it_runs(page):
    found = blocks(page)
    assert len(found) == page.read_text(encoding="utf-8").count("```") / 2
    for block in found:
        assert block["language"] in COMMANDS | SHOWN, block[0]
        assert block["language"] in COMMANDS or not block["why"], block[0]
    assert not re.search(r"^    (\$|roilib|python|docker|\./)", page.read_text(), re.MULTILINE)


@pytest.fixture
def clone(tmp_path):
    """A clone that counts as set up, and the files that a reader has."""
    (tmp_path / ".venv").mkdir()
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    for entry in {line.split("/")[0] for line in tracked.stdout.splitlines()}:
        (tmp_path / entry).symlink_to(REPOSITORY / entry)
    for entry in ("bin", "lib", "pyvenv.cfg"):
        (tmp_path / ".venv" / entry).symlink_to(Path(sys.prefix) / entry)
    sums = "cat pyproject.toml constraints.txt setup.sh | cksum >.venv/installed"
    subprocess.run(["bash", "-c", sums], cwd=tmp_path, check=True)
    write_tiny_kitti(tmp_path / "my_data")
    (tmp_path / "my_pictures").mkdir()
    for file in ("street.png", "frame.png", "my_pictures/street.png"):
        Image.fromarray(street(0)).save(tmp_path / file)
    for file in ("boxes.json", "my_pictures/street.json"):
        (tmp_path / file).write_text(json.dumps([[10, 50, 58, 80]]))
    (tmp_path / "uplink.csv").write_text("time_s,mbit_s\n0,0.8\n")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=160, height=96)
        for i in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(street(i), "rgb24")))
        container.mux(stream.encode(None))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if any(b["language"] in COMMANDS and not b["why"] for b in blocks(page))
    ],
    ids=name,
)
def test_the_commands_of_a_page_run(page, clone):
    for block in blocks(page):
        if block["language"] not in COMMANDS or block["why"]:
            continue
        word = [sys.executable, "-c"] if block["language"] == "python" else ["bash", "-euc"]
        text = block["text"] if "python" in word[0] else f". ./setup.sh\n{block['text']}"
        environment = os.environ | {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*word, text], cwd=clone, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block[0]}\n{done.stdout}{done.stderr}"
