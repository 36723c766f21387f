"""Build the report: draw the figures of a results folder and compile report/report.typ.

    python report/build.py RESULTS [--figures FOLDER] [--out FILE.pdf]

RESULTS is a folder that notebook 05 wrote, or one of report/results/reference. Figures that show
pictures come from notebook 06 alone, so that a report of reference results has none of them. A
section whose files are missing is left out.
"""

import argparse
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import typst

from roilib.evaluation.tables import read_table
from roilib.utils.files import read_json, replacing
from roilib.visualization import rates
from roilib.visualization.style import save_figure, set_style

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "report" / "report.typ"
OUT = ROOT / "report" / "report.pdf"


def draw(results: str | Path, folder: str | Path) -> list[str]:
    """Draw every figure that needs tables only, from `results` into `folder`.

    Returns the names of the figures for which there are data.
    """
    set_style()
    tables = {
        name: read_table(results, name) for name in ("rates", "roi_trade", "detection", "training")
    }
    speed = Path(results) / "speed.json"
    made = {
        "rate_psnr": rates.rate_curves(tables["rates"], tables["roi_trade"]),
        "roi_plane": rates.roi_plane(tables["roi_trade"]),
        "alpha_sweep": rates.alpha_sweep(tables["rates"]),
        "detection": rates.detection_curves(tables["detection"], tables["roi_trade"]),
        "latency": rates.latency(read_json(speed) if speed.exists() else {}),
        "training": rates.training_curves(tables["training"]),
        "training_hours": rates.training_curves(tables["training"], "hours"),
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
    _check(results)
    root = Path(os.path.commonpath([ROOT, results, folder]))
    inputs = {"results": f"/{results.relative_to(root)}", "figures": f"/{folder.relative_to(root)}"}
    inputs["files"] = "\n".join(
        sorted(
            path.name for where in (results, folder) if where.is_dir() for path in where.iterdir()
        )
    )
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


def _check(results: Path) -> None:
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
        _check(options.results)
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
