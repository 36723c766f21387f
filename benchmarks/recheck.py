"""Measure random points of an evaluation again: are they as committed, to the byte?

    python benchmarks/recheck.py RESULTS --logdir runs/PROFILE --data-root DIR
                                 [--dataset kitti | --pictures FOLDER] [--count 10] [--seed 0]

RESULTS is a folder with notebook 05's records.json. Every field of a record must be the same, the
stream's hash included. The estimated rate and HaarPSI may differ by a millionth, since threads
change the order of their sums. Exit code 0: all points are the same. 1: some differ; each is named
with its differences. 2: a point cannot be measured, as one line says.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from roilib.datasets.dataset import RoiDataset, evaluation_pictures
from roilib.engines.runs import Run
from roilib.evaluation.cache import Task
from roilib.evaluation.evaluate import finished_runs, read_records, weights_file
from roilib.parameters import Parameters

SUMS = {"bpp_estimated", "haarpsi", "roi_haarpsi"}  # in an order that threads change


def draw(records: Sequence[dict], count: int, seed: int) -> list[dict]:
    """Draw `count` different records (all, where there are fewer), in their order."""
    chosen = np.random.default_rng(seed).choice(
        len(records), min(count, len(records)), replace=False
    )
    return [records[i] for i in sorted(chosen)]


def task(record: dict, runs: Sequence[Run], data: RoiDataset) -> Task:
    """Return the task that measures a record's point.

    Raises ValueError where its picture is not in `data`, or its run not among `runs`.
    """
    sample = next((sample for sample in data.samples if sample.id == record["image"]), None)
    if sample is None:
        raise ValueError(f"picture {record['image']} is not among the {len(data)} of these data")
    if "weights" in record:
        source, model = ("weights", record["weights"]), {"weights": weights_file(record["weights"])}
    elif "run" in record:
        run = next((run for run in runs if run.folder.name == record["run"]), None)
        if run is None:
            raise ValueError(f"run {record['run']} is not among the finished ones")
        source = "run", record["run"]
        model = {"weights": run.weights, "detector": run.parameters.own_detector}
    else:
        source, model = None, {"conventional": record["codec"]}
    names = ("lmbda", "alpha") if source else ("quality", "qoffset")
    knobs = {name: record["setting"][name] for name in names}
    return Task(sample, data.classes, knobs, source=source, **model)


def differences(record: dict, point: Task) -> dict[str, tuple]:
    """Measure a point; return the fields that differ: name → (committed, measured)."""
    now = point.measure()[0]
    if "weights" in record:
        now = {k: v for k, v in now.items() if k != "run"} | dict([point.source])
    different = {
        name: (value, now.get(name)) for name, value in record.items() if now.get(name) != value
    }
    for name in SUMS & different.keys():
        if None not in different[name] and math.isclose(*different[name], rel_tol=1e-6):
            del different[name]
    return different


def main() -> int:
    """Return 0, 1 or 2, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument(
        "--logdir", type=Path, default=Path("runs"), help="where the runs of the records are"
    )
    parser.add_argument("--dataset", default="kitti")
    parser.add_argument("--data-root", default="data/kitti")
    parser.add_argument(
        "--pictures", help="a folder of pictures and box files instead of a data set"
    )
    parser.add_argument("--train-size-p1", type=float, help="the profile's, where it has one")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        records = read_records(options.results)
        if not records or options.count < 1:
            points = f"{options.count} of {len(records)} points"
            raise ValueError(f"{options.results}: nothing to measure again, {points}")
        chosen = draw(records, options.count, options.seed)
        names = sorted({record["run"] for record in chosen if "run" in record})
        runs = finished_runs(options.logdir, names) if names else []
        where = {name: getattr(options, name) for name in ("dataset", "data_root", "train_size_p1")}
        data = evaluation_pictures(Parameters.parse(where), options.pictures)
        found = [(record, differences(record, task(record, runs, data))) for record in chosen]
    except ValueError as error:
        print(f"recheck: {error}", file=sys.stderr)
        return 2
    for record, changed in found:
        where = f"{record['image']} {record['codec']} {record['setting']}"
        outcome = f"DIFFERENT {changed}" if changed else "the same"
        print(f"{where}: {record['bytes']} bytes, {outcome}")
    wrong = sum(bool(changed) for _, changed in found)
    print(f"{len(found) - wrong} of {len(found)} points are the same")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
