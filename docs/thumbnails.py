"""Make README's thumbnails, a figure of each notebook: `python docs/thumbnails.py [RUNS]`.

RUNS is a folder of runs, by default that of the sample profile. No other profile's pictures may be
committed. A notebook without a finished run keeps its thumbnail.
"""

import base64
import io
import json
import sys
from pathlib import Path

from build import EXECUTED, ROOT, executed_notebooks
from PIL import Image

FIGURES = {  # notebook → which of its figures, counted from the first or from the last (-1)
    "01_dataset_exploration": 4,
    "02_detector_hooks": 0,
    "03_baseline_training": -1,
    "04_roi_training": -1,
    "05_evaluation": 0,
    "06_figures": -1,
    "07_playground": 0,
    "08_thin_link": 0,
}
SIZE = (320, 160)  # pixels, at most
COLOURS = 128  # of the palette, so that a file has less than 40 kB


def figures(notebook: Path) -> list[Image.Image]:
    """The PNGs among an executed notebook's outputs."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    found = [data["image/png"] for data in outputs if "image/png" in data]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in found]


def main(runs: Path = EXECUTED, folder: Path = ROOT / "report" / "pictures" / "notebooks") -> None:
    """Write `NN.png` for each finished notebook."""
    for name, path in executed_notebooks(runs).items():
        picture = figures(path)[FIGURES[Path(name).stem]].convert("RGB")
        picture.thumbnail(SIZE, Image.Resampling.LANCZOS)
        picture.quantize(COLOURS).save(folder / f"{name[:2]}.png", optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
