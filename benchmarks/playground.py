"""Time from a slider's move to the picture on screen, in notebook 07's playground.

    python benchmarks/playground.py [--pictures FOLDER] [--moves 20] [--json FILE]

The notebook runs in JupyterLab and headless Chromium on this machine. The browser measures the time
from the slider's change to the frame that shows the picture coded with it.
"""

import argparse
import functools
from pathlib import Path

import numpy as np
import screenshot

from roilib.utils.files import write_json
from roilib.utils.provenance import origin


def main() -> None:
    """Print the times; write them with --json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures",
        help="folder whose first picture is coded; default: the sample set's test pictures",
    )
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = {}
    for against in ("", "x265 medium"):
        with screenshot.playground(pictures=args.pictures, against=against) as page:
            for move in range(args.moves):
                screenshot.answered(
                    page,
                    functools.partial(screenshot.slide, page, move // 2 % 2, 1 - 2 * (move % 2)),
                )
            times = [
                int(time) for time in page.locator(".roi-clock").get_attribute("title").split(", ")
            ]
        name = against or "original"
        result[name] = {
            "median": float(np.median(times)),
            "p95": float(np.quantile(times, 0.95)),
            "moves": len(times),
        }
        print(f"beside the {name}, ms from slider to picture: {result[name]}", flush=True)
    if args.json:
        write_json(args.json, {"milliseconds_beside": result} | origin(vars(args)))


if __name__ == "__main__":
    main()
