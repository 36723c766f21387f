"""The arms of the paper's question: what they reach by real bytes, and if they use their hooks.

    python benchmarks/paper_arms.py RUNS RESULTS --data-root DIR

RUNS: the logdir of trained arms (params/paper_small.yaml). RESULTS: the folder to which notebook 05
wrote their records. Writes RESULTS/arms.json, a row a run, and RESULTS/swaps.json, the swap test
(swaps.py) of each arm's first seed at each λ, that of the most arms first.
"""

import argparse
import itertools
import json
import sys
from collections import Counter
from pathlib import Path

from swaps import swap_records, swap_table

from roilib.datasets.dataset import evaluation_pictures
from roilib.engines.runs import Run
from roilib.evaluation.evaluate import finished_runs, read_records
from roilib.metrics import pooled_psnr
from roilib.parameters import Parameters
from roilib.utils.files import write_json
from roilib.utils.provenance import origin

ARMS = "hyperprior_with_obj_features"  # the engine of all arms; other runs are left out


def arm_name(p: Parameters) -> str:
    """Return what the report calls an arm: its loss, and what the encoder sees.

    Raises ValueError for another model than the extended one.
    """
    if p.which != ARMS:
        raise ValueError(f"{p.name}: an arm is a {ARMS}")
    seen = "mask" if p.mask_hooks else "zeros" if p.zero_hooks else "features"
    variants = ["both"] if p.decoder_roi else []
    variants += [p.conditioning] if p.conditioning != "concat" else []
    variants += [str(p.obj_det_img_size)] if p.uses_detector and p.crop != "grid" else []
    variants += [f"{p.loss_form}-loss"] if p.loss_form != "corrected" else []
    if (p.alpha, seen, variants) == (0.5, "zeros", []):
        return "plain"
    return "-".join(["roi" if p.alpha > 0.5 else "plain", seen, *variants])


def arm_row(run: Run, records: list[dict]) -> dict:
    """Return an arm's row; records: of all runs, as notebook 05 writes them."""
    p, own = run.parameters, [r for r in records if r.get("run") == run.folder.name]
    timing = json.loads((run.folder / "timing.json").read_text())
    return {
        "arm": arm_name(p),
        "codec": own[0]["codec"],
        "lmbda": p.lmbda,
        "alpha": p.alpha,
        "seed": p.seed,
        "steps": run.metrics["steps"],
        "core_hours": timing["seconds"] / 3600,
        "bpp": sum(r["bpp"] for r in own) / len(own),
        "psnr": pooled_psnr(own, ""),
        "roi_psnr": pooled_psnr(own, "roi_"),
        "bg_psnr": pooled_psnr(own, "bg_"),
    }


def swap_rows(run: Run, data_root: str, pictures: int | None) -> list[dict]:
    """Return the swap test of a run, with its arm's name and the number of pictures."""
    codec = run.codec()
    where = {"data_root": data_root, "unlabelled": None}
    data = evaluation_pictures(codec.parameters.model_copy(update=where))
    data.samples = data.samples[:pictures]
    about = {"arm": arm_name(run.parameters), "lmbda": run.parameters.lmbda}
    table = swap_table(swap_records(codec, data))
    return [about | row | {"pictures": len(data)} for row in table]


def main(arguments: list[str] | None = None) -> int:
    """Write both files; 0, or 2 with one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--data-root", default="data/kitti")
    parser.add_argument(
        "--pictures", type=int, help="swap only the first of the test pictures, 2 or more"
    )
    parser.add_argument("--arms-only", action="store_true", help="leave swaps.json as it is")
    options = parser.parse_args(arguments)
    try:
        records = read_records(options.results)
        known = {r.get("run") for r in records}
        runs = [
            run
            for run in finished_runs(options.runs)
            if run.folder.name in known and run.parameters.which == ARMS
        ]
        rows = [arm_row(run, records) for run in runs]
        write_json(options.results / "arms.json", {"rows": rows} | origin(vars(options)))
        if options.arms_only:
            return 0
        rates = [rate for rate, _ in Counter(row["lmbda"] for row in rows).most_common()]
        swapped: dict[tuple, Run] = {}
        for run in sorted(
            runs, key=lambda run: (rates.index(run.parameters.lmbda), run.parameters.seed)
        ):
            swapped.setdefault((run.parameters.lmbda, arm_name(run.parameters)), run)
        swaps = (swap_rows(run, options.data_root, options.pictures) for run in swapped.values())
        table = {"rows": list(itertools.chain(*swaps))}
        write_json(options.results / "swaps.json", table | origin(vars(options)))
    except ValueError as error:
        print(f"paper_arms: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
