"""Run the playground in a real browser, for the README's screenshot and for the tests.

    python benchmarks/screenshot.py report/pictures/playground.png

JupyterLab serves a copy of notebook 07 from a temporary folder. Chromium opens it and runs all
cells.
"""

import argparse
import contextlib
import functools
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import papermill
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from roilib.utils.files import replacing
from roilib.utils.notebooks import ROOT

NOTEBOOK = "07_playground.ipynb"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
SIZE = {"width": 1400, "height": 900}
# Where the sample set's first test picture has a traffic sign, as shares of its width and height.
SIGN = (0.232, 0.34, 0.263, 0.46)
SECONDS = 120  # a busy machine may take this long for one step
RUN_ALL = """async () => {
    await jupyterapp.restored;
    await jupyterapp.shell.currentWidget.sessionContext.ready;
    await jupyterapp.commands.execute("application:toggle-left-area");
    jupyterapp.commands.execute("notebook:run-all-cells");
}"""


TROUBLE = ".roi-error:not(:empty), .jp-RenderedText[data-mime-type='application/vnd.jupyter.error']"
PIXELS = """image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL();
}"""


def find_browser() -> str | None:
    """Return the path of an installed Chromium."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Start JupyterLab on a folder, with its own settings; yield the address of notebook 07."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options = {
        "ServerApp.root_dir": folder,
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "IdentityProvider.token": token,
    }
    options |= {"ServerApp.allow_root": True, "LabApp.expose_app_in_browser": True}
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    own = {
        f"JUPYTERLAB_{part}_DIR": str(folder / part.lower()) for part in ("SETTINGS", "WORKSPACES")
    }
    notification = (
        folder
        / "settings"
        / "@jupyterlab"
        / "apputils-extension"
        / "notification.jupyterlab-settings"
    )
    notification.parent.mkdir(parents=True)
    notification.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(
            command, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, folder / "lab.log")
        yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}?token={token}"
    finally:
        server.terminate()
        server.wait()


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(10 * SECONDS):
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(address),
        ):
            return
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()}")


@contextlib.contextmanager
def playground(**parameters) -> Iterator[Page]:
    """Run notebook 07 in JupyterLab in Chromium; yield the page when it shows a first result."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        papermill.execute_notebook(
            str(ROOT / "notebooks" / NOTEBOOK),
            str(folder / NOTEBOOK),
            parameters,
            prepare_only=True,
            progress_bar=False,
        )
        with jupyterlab(folder) as address:
            browser = playwright.chromium.launch(executable_path=find_browser(), args=QUIET)
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(1000 * SECONDS)
            page.goto(address)
            page.locator(".jp-Notebook .jp-Cell").first.wait_for()
            page.evaluate(RUN_ALL)
            page.locator(f".roi-view[data-shown], {TROUBLE}").first.wait_for()
            if trouble := page.locator(TROUBLE).all_inner_texts():
                raise RuntimeError(trouble[0])
            page.locator(".jp-NotebookPanel-toolbar [data-status=idle]").wait_for()
            page.locator(".roi-view:not(.working)").wait_for()
            page.locator(".jp-OutputArea", has=page.locator(".roi-view")).evaluate(
                "area => area.scrollIntoView()"
            )
            yield page
            browser.close()


def answered(page: Page, act: Callable[[], None]) -> None:
    """Call `act`, which changes a setting, and wait until its result is on screen."""
    before = page.locator(".roi-view").get_attribute("data-shown")
    act()
    page.locator(f".roi-view:not(.working):not([data-shown='{before}'])").wait_for()


def slide(page: Page, place: int, steps: int) -> None:
    """Move slider number `place` (λ, α, byte budget) by `steps`."""
    page.locator(".roilib-playground .noUi-handle").nth(place).focus()
    for _ in range(abs(steps)):
        page.keyboard.press("ArrowRight" if steps > 0 else "ArrowLeft")


def draw(page: Page, box: tuple[float, float, float, float]) -> None:
    """Draw a box with the mouse; its corners are shares of the picture's width and height."""
    place = page.locator(".roi-stage").bounding_box()
    (x0, y0), (x1, y1) = (
        (place["x"] + x * place["width"], place["y"] + y * place["height"])
        for x, y in (box[:2], box[2:])
    )
    page.keyboard.down("Shift")
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move(x1, y1, steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")


def numbers(page: Page) -> dict[str, list[str]]:
    """Return the table's rows by name, a cell for each codec."""
    rows = page.locator(".roi-view tr").all()
    return {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}


def pixels(page: Page, name: str = "ours") -> str:
    """Return the picture on screen named `name` (ours, theirs or heat) as a data address."""
    return page.locator(f".roi-stage .roi-{name}").evaluate(PIXELS)


def main() -> None:
    """Write the screenshot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a PNG file")
    args = parser.parse_args()
    with playground() as page, tempfile.TemporaryDirectory() as folder:
        answered(page, lambda: draw(page, SIGN))
        for step in (1, 1, 1, -1, -1, -1):
            answered(page, functools.partial(slide, page, 1, step))
        page.wait_for_timeout(500)  # until "working …" has faded
        page.screenshot(path=f"{folder}/page.png")
        with Image.open(f"{folder}/page.png") as shot, replacing(args.out) as temporary:
            shot.convert("RGB").save(temporary, "png", optimize=True)


if __name__ == "__main__":
    main()
