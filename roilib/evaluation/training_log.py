"""Training curves as a table, from the TensorBoard events of runs, finished or not.

    python -m roilib.evaluation.training_log OUT.csv RUN_FOLDER [RUN_FOLDER …]

One row an epoch: run, codec, label, part (test, or train where nothing was tested), step, hours of training until then, loss, estimated bpp and
PSNRs. A pause between two sittings does not count as training.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from roilib.codecs.registry import CODEC_NAMES, codec_name
from roilib.engines.runs import Run, read_run
from roilib.utils.files import replacing

TERMS = ("loss", "bpp_loss", "psnr", "roi_psnr", "bg_psnr")
COLUMNS = ("run", "codec", "label", "part", "step", "hours", *TERMS)
MAX_ROWS = 150  # of a run: what a figure can show
PAUSE = 5  # median times between epochs: longer means that nothing ran


def training_table(runs: Sequence[Run]) -> pd.DataFrame:
    """COLUMNS of all runs' epochs, at most MAX_ROWS a run. Raises ValueError naming a folder without epochs."""
    tables = []
    for run, label in zip(runs, run_labels(runs), strict=True):
        table = _epochs(run.folder)
        table = table.iloc[
            np.unique(np.linspace(0, len(table) - 1, MAX_ROWS).round().astype(int))
        ].copy()
        table[["hours", *TERMS]] = table[["hours", *TERMS]].map(lambda value: float(f"{value:.5g}"))
        tables.append(
            table.assign(run=run.folder.name, codec=codec_name(run.parameters), label=label)
        )
    return pd.concat(tables)[list(COLUMNS)] if tables else pd.DataFrame(columns=COLUMNS)


def run_labels(runs: Sequence[Run]) -> list[str]:
    """What each run is called in a legend: its codec, λ and α where they are fixed, and the end of its folder's name where that leaves two alike."""
    labels = []
    for p in (run.parameters for run in runs):
        knobs = "" if p.which == "roi_vbr" and not p.fixed_rate else f", λ {p.lmbda:g}"
        labels.append(
            CODEC_NAMES[codec_name(p)]
            + knobs
            + (f", α {p.alpha:g}" if p.which == "hyperprior_with_obj_features" else "")
        )
    return [
        label if labels.count(label) == 1 else f"{label}, {run.folder.name[-4:]}"
        for label, run in zip(labels, runs, strict=True)
    ]


def _epochs(folder: Path) -> pd.DataFrame:
    """part, step, hours and TERMS of a run's epochs."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every restart
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    known = set(events.Tags()["scalars"])
    part = next((part for part in ("test", "train") if f"epoch/{part}/loss" in known), None)
    if part is None:
        raise ValueError(f"{folder}: no TensorBoard events of a finished epoch")
    terms = {}
    for term in TERMS:
        scalars = events.Scalars(f"epoch/{part}/{term}") if f"epoch/{part}/{term}" in known else []
        terms[term] = pd.Series({scalar.step: scalar.value for scalar in scalars}, dtype=float)
    clock = pd.Series(
        {scalar.step: scalar.wall_time for scalar in events.Scalars(f"epoch/{part}/loss")}
    )
    return (
        pd.DataFrame(terms).assign(part=part, hours=_hours(clock)).rename_axis("step").reset_index()
    )


def _hours(clock: pd.Series) -> pd.Series:
    """Hours of training until each epoch; clock: step → seconds. The first epoch, whose start is not logged, and pauses count as long as their steps
    usually take."""
    steps = clock.index.to_series().diff().fillna(clock.index[0])
    pace = clock.diff() / steps
    usual = pace.median() if len(clock) > 1 else 0.0
    return (pace.where(pace < PAUSE * usual, usual) * steps).cumsum() / 3600


def main() -> int:
    """0, or 2 with one line for a folder that is not a run's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER")
    options = parser.parse_args()
    try:
        table = training_table([read_run(folder) for folder in options.runs])
        with replacing(options.out) as temporary:
            table.to_csv(temporary, index=False)
    except (ValueError, OSError) as error:
        print(f"roilib.evaluation.training_log: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
