"""Build the report: draw the figures of a results folder and compile report/report.typ.

    python report/build.py RESULTS [--figures FOLDER] [--out FILE.pdf]

RESULTS is a folder that notebook 05 wrote, or one of report/results/reference; the folders of
BESIDE are taken from beside it. Figures that show pictures come from notebook 06 alone, so that a
report of reference results has none of them. What has no files is left out.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import typst

from roilib.evaluation.tables.files import read_table
from roilib.utils.files import read_json, replacing
from roilib.visualization import rates
from roilib.visualization.style import save_figure, set_style

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "report" / "report.typ"
OUT = ROOT / "report" / "report.pdf"
# the paper's arms, drives, and other test sets
BESIDE = ("paper", "drive_kitti", "drive", "detected_boxes", "pandaset", "streets", "kodak")


def draw(results: str | Path, folder: str | Path) -> list[str]:
    """Draw every figure that needs tables only, from `results` into `folder`.

    Returns the names of the figures for which there are data.
    """
    set_style()
    names = ("rates", "roi_trade", "detection", "training")
    table, trade, detection, training = (read_table(results, name) for name in names)
    arms = Path(results).parent / "paper" / "arms.json"
    made = {
        "rate_psnr": rates.rate_curves(table, trade),
        "rate_yuv_psnr": rates.yuv_rate_curves(table, trade),
        "roi_plane": rates.roi_plane(trade),
        "detection": rates.detection_curves(detection, trade),
        "training": rates.training_curves(training),
        "arms": rates.arm_curves(pd.DataFrame(read_json(arms)["rows"] if arms.exists() else [])),
    }
    for name, figure in made.items():
        save_figure(figure, folder, name)
        if figure:
            plt.close(figure)
    return [name for name, figure in made.items() if figure]


def build(results: str | Path, folder: str | Path, out: str | Path = OUT) -> list[str]:
    """Compile the report of `results` with the figures in `folder`; return Typst's warnings.

    Raises ValueError with Typst's error, or naming a missing file.
    """
    results, folder, out = (Path(path).resolve() for path in (results, folder, out))
    check(results)
    beside = {name: results.parent / name for name in BESIDE if name != results.name}
    root = Path(os.path.commonpath([ROOT, results, folder]))
    inputs = {"results": f"/{results.relative_to(root)}", "figures": f"/{folder.relative_to(root)}"}
    files = [path.name for where in (results, folder) for path in where.glob("*")]
    files += [f"{name}/{path.name}" for name, where in beside.items() for path in where.glob("*")]
    inputs["files"] = "\n".join(sorted(files))
    sets = {"": results} | {n: p for n, p in beside.items() if f"{n}/records.json" in files}
    inputs["sets"] = json.dumps({name: _test_set(where) for name, where in sets.items()})
    try:
        pdf, warnings = typst.compile_with_warnings(
            SOURCE, root=root, sys_inputs=inputs, ignore_system_fonts=True
        )
    except typst.TypstError as error:
        raise ValueError(f"{SOURCE}: {error}") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_bytes(pdf)
    return [warning.message for warning in warnings]


def _test_set(results: Path) -> dict[str, float]:
    """Return how many streams and pictures there are, their megapixels, and the ROI's share (%)."""
    records = read_json(results / "records.json")
    pictures = {record["image"]: record for record in records}.values()
    count, roi = (sum(p[name] for p in pictures) for name in ("count", "roi_count"))
    shares = {"megapixels": count / 3e6, "roi": 100 * roi / count}
    return {"streams": len(records), "pictures": len(pictures)} | shares


def check(results: Path) -> None:
    """Raise ValueError naming a table that a report needs and RESULTS lacks."""
    for name in ("records.json", "rates.csv"):
        if not (results / name).is_file():
            raise ValueError(f"{results / name}: no such file; run notebook 05 first")


def main() -> int:
    """Return 0, or 2 with one line that says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="a folder with notebook 05's tables")
    parser.add_argument(
        "--figures",
        type=Path,
        help="its figures; default: the folder of the same name in report/figures",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="default: report/report.pdf")
    parser.add_argument("--compile-only", action="store_true", help="do not draw the figures again")
    options = parser.parse_args()
    folder = options.figures or ROOT / "report" / "figures" / options.results.resolve().name
    try:
        check(options.results)
        if not options.compile_only:
            draw(options.results, folder)
        for warning in build(options.results, folder, options.out):
            print(f"build: {warning}", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
