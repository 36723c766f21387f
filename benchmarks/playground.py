"""From a slider's move to the picture on screen: the playground of notebook 07 in JupyterLab and headless Chromium on this machine.

python benchmarks/playground.py [--pictures FOLDER] [--moves 20] [--json FILE]

The browser takes the time, from the change of the slider to the frame that shows what was coded with it.
"""

import argparse
import functools
from pathlib import Path

import numpy as np
import screenshot

from roilib.utils.files import write_json
from roilib.utils.provenance import origin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures",
        help="a folder of pictures, the first of which is coded; default: the sample set's test pictures",
    )
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = {}
    for peer in ("", "x265"):
        with screenshot.playground(pictures=args.pictures, peer=peer) as page:
            for move in range(args.moves):
                screenshot.answered(
                    page,
                    functools.partial(screenshot.slide, page, move // 2 % 2, 1 - 2 * (move % 2)),
                )
            times = [
                int(time) for time in page.locator(".roi-clock").get_attribute("title").split(", ")
            ]
        result[peer or "original"] = {
            "median": float(np.median(times)),
            "p95": float(np.quantile(times, 0.95)),
            "moves": len(times),
        }
        print(
            f"beside the {peer or 'original'}, ms from slider to picture: {result[peer or 'original']}",
            flush=True,
        )
    if args.json:
        write_json(args.json, {"milliseconds_beside": result} | origin(vars(args)))


if __name__ == "__main__":
    main()
