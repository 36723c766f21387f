"""All points of an evaluation, in parallel processes, each kept by its content so that a stopped evaluation goes on.

    runs × (λ, α) ┐
                  ├─► tasks, one a picture and setting ──► processes ──► cache/<hash>.json ──► records, times
    peers × grid ─┘

A point's hash is of the model's weights (or the peer's libraries), the setting, the picture's bytes and its boxes, so nothing stale is found.
"""

import functools
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch

from roilib.codec import Codec, load_codec
from roilib.datasets import RoiDataset, Sample
from roilib.evaluation import evaluate, evaluate_peer, settings
from roilib.runs import Run, write_json

LIBRARIES = ("av", "pillow", "pillow-jxl-plugin")  # which make the peers' bytes
FORM = 1  # of the cached files; another one makes them all anew


@dataclass(frozen=True)
class Task:
    """One picture under one setting: of a trained run's `weights` (knobs lmbda, alpha), or of a `peer` (quality, qoffset)."""

    sample: Sample
    classes: tuple[str, ...]
    knobs: tuple[float, float]
    weights: Path | None = None
    peer: str = ""
    device: str = "cpu"

    def measure(self) -> tuple[dict, dict]:
        """(record, times)."""
        data = RoiDataset([self.sample], self.classes)
        first, second = ([knob] for knob in self.knobs)
        return next(
            evaluate(_codec(self.weights, self.device), data, first, second) if self.weights else evaluate_peer(data, self.peer, first, second)
        )

    def key(self) -> str:
        """What stands for this point's content."""
        codec = _codec(self.weights, self.device).id.hex() if self.weights else [self.peer, *map(version, LIBRARIES)]
        content = [FORM, codec, self.knobs, self.sample.id, self.sample.boxes.tolist(), hashlib.sha256(self.sample.path.read_bytes()).hexdigest()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


@functools.lru_cache(4)
def _codec(weights: Path, device: str) -> Codec:
    return load_codec(weights, device)


def tasks(
    runs: Sequence[Run],
    data: RoiDataset,
    lmbdas: Sequence[float] = (),
    alphas: Sequence[float] = (),
    peers: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    device: str = "cpu",
) -> list[Task]:
    """Every picture of `data` by every run at the `evaluation.settings` of these lists, and by every peer at its grid of `quality` and `qoffset`."""
    grids = {name: list(product(grid["quality"], grid.get("qoffset", [0.0]))) for name, grid in (peers or {}).items()}
    ours = [(knobs, {"weights": run.weights, "device": device}) for run in runs for knobs in settings(run.parameters, lmbdas, alphas)]
    theirs = [(knobs, {"peer": name}) for name, grid in grids.items() for knobs in grid]
    return [Task(sample, data.classes, knobs, **codec) for knobs, codec in ours + theirs for sample in data.samples]


def measure(points: Sequence[Task], cache: Path, workers: int | None = None) -> Iterator[tuple[dict, dict]]:
    """(record, times) of each task, in order. `cache`: folder of what is known already; workers: processes, None: one a core, or one with a GPU."""
    cache.mkdir(parents=True, exist_ok=True)
    workers = workers or (1 if any(torch.device(point.device).type == "cuda" for point in points) else os.cpu_count() or 1)
    look = functools.partial(_look, cache)
    if workers == 1:
        yield from map(look, points)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        yield from pool.map(look, points)


def _look(cache: Path, point: Task) -> tuple[dict, dict]:
    """What the cache has of this point; measured first if it has nothing readable."""
    path = cache / f"{point.key()}.json"
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        record, times = point.measure()
        found = {"record": record, "times": times}
        write_json(path, found)
    return found["record"], found["times"]
