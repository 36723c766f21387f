"""All points of an evaluation, in parallel processes, each kept by its content so that a stopped evaluation goes on.

    runs, weights × (λ, α) ┐
    peers × grid           ├─► tasks, one a picture and setting ──► processes ──► cache/<hash>.json ──► records, times
    uncompressed pictures  ┘

A point's hash is of the model's weights, device and precision (or the peer's libraries), the modules that code and measure, the setting, the
picture's bytes and its objects, so nothing stale is found. What a detector found is kept with the point, by the hash of the detector's file: a new
detector measures it again, without one it is read as it is.
"""

import functools
import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from roilib.codecs.roic import Codec, load_codec
from roilib.datasets.dataset import RoiDataset
from roilib.datasets.images import Sample
from roilib.engines.runs import Run
from roilib.evaluation.evaluate import (
    SHIPPED,
    evaluate,
    evaluate_peer,
    peer_settings,
    settings,
    uncompressed,
    weights_file,
)
from roilib.models.detector import HookedDetector
from roilib.roi import alpha_index, quality_index
from roilib.utils import provenance
from roilib.utils.files import write_json
from roilib.utils.pretrained import PRETRAINED_DETECTOR, pretrained
from roilib.utils.processes import cores, end_with_parent

LIBRARIES = ("av", "pillow", "pillow-jxl-plugin")  # which make the peers' bytes
MEASURING = ("evaluation.evaluate", "evaluation.detection", "metrics")  # of every point
OURS, CONVENTIONAL = "codecs.roic", "codecs.conventional"  # what makes the bytes
FORM = 2  # of the cached files; another one makes them all anew


@dataclass(frozen=True)
class Task:
    """One picture under one setting: of trained `weights` (knobs lmbda, alpha), of a `peer` (quality, qoffset), or as it is, and who looks at it.

    source: what the record says that the weights are, {"run": name} or {"weights": name} as items.
    """

    sample: Sample
    classes: tuple[str, ...]
    knobs: tuple[float, ...] = ()
    weights: Path | None = None
    peer: str = ""
    device: str = "cpu"
    detectors: tuple[Path, ...] = ()
    source: tuple[tuple[str, str], ...] = ()

    def measure(self) -> tuple[dict, dict]:
        """(record, times)."""
        data = RoiDataset([self.sample], self.classes)
        detectors = {path.stem: _detector(path, self.device) for path in self.detectors}
        knobs = [[knob] for knob in self.knobs]
        if self.weights:
            return next(evaluate(_codec(self.weights, self.device), data, *knobs, detectors))
        return next(
            evaluate_peer(data, self.peer, *knobs, detectors)
            if self.peer
            else uncompressed(data, detectors)
        )

    def key(self) -> str:
        """What stands for this point's content."""
        if self.weights:
            coder = _codec(self.weights, self.device)
            codec = [
                coder.id.hex(),
                coder.device.type,
                coder.bf16,
                _code(OURS),
            ]
        else:
            codec = [
                self.peer,
                *map(version, LIBRARIES),
                _code(CONVENTIONAL),
            ]
        objects = [self.sample.boxes.tolist(), [self.classes[i] for i in self.sample.labels]]
        content = [
            FORM,
            codec,
            self.knobs,
            self.sample.id,
            objects,
            hashlib.sha256(self.sample.path.read_bytes()).hexdigest(),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


@functools.lru_cache(4)
def _codec(weights: Path, device: str) -> Codec:
    return load_codec(weights, device)


@functools.lru_cache(4)
def _detector(weights: Path, device: str) -> HookedDetector:
    return HookedDetector(weights).to(device)


@functools.lru_cache
def _code(codec: str) -> str:
    """A hash of every module that the bytes of a codec or their measures depend on."""
    others = {OURS, CONVENTIONAL} - {codec}
    return provenance.sha256(provenance.sources((codec, *MEASURING), without=others))[:16]


@functools.lru_cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def detector_files(names: Sequence[str]) -> tuple[Path, ...]:
    """Paths of detectors' weights, "shipped" being ours. Raises ValueError naming one that is missing or has the name of another."""
    files = tuple(
        pretrained(PRETRAINED_DETECTOR) if name == SHIPPED else Path(name) for name in names
    )
    for i, path in enumerate(files):
        if not path.is_file():
            raise ValueError(f"{path}: no such detector weights")
        if path.stem in {other.stem for other in files[:i]}:
            raise ValueError(
                f"{path}: a second detector of this name, which the tables could not tell apart"
            )
    return files


def tasks(
    runs: Sequence[Run],
    data: RoiDataset,
    lmbdas: Sequence[float] = (),
    alphas: Sequence[float] = (),
    peers: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    device: str = "cpu",
    weights: Sequence[str] = (),
    detectors: Sequence[Path] = (),
) -> list[Task]:
    """Every picture of `data` by every run and weights file ("shipped": ours) at the `evaluation.settings` of these lists, and by every peer at its
    grid of `quality` and `qoffset`; with detectors also as it is.
    """
    for index, values in (
        (quality_index, lmbdas),
        (alpha_index, alphas),
    ):  # what is wrong is found before hours of measuring
        for value in values:
            index(value)
    grids = {name: peer_settings(name, grid) for name, grid in (peers or {}).items()}
    models = [(run.weights, run.parameters, ("run", run.parameters.name)) for run in runs]
    models += [
        (weights_file(name), load_codec(weights_file(name)).parameters, ("weights", name))
        for name in weights
    ]
    ours = [
        (knobs, {"weights": path, "source": (source,)})
        for path, p, source in models
        for knobs in settings(p, lmbdas, alphas)
    ]
    theirs = [(knobs, {"peer": name}) for name, grid in grids.items() for knobs in grid]
    plain = [((), {})] if detectors else []
    options = {"device": device, "detectors": tuple(detectors)}
    found = [
        Task(sample, data.classes, knobs, **codec, **options)
        for knobs, codec in ours + theirs + plain
        for sample in data.samples
    ]
    if not found:
        raise ValueError(
            f"nothing to measure: {len(data)} pictures, {len(ours)} settings of trained weights, {len(theirs)} of peers"
        )
    return found


def measure(
    points: Sequence[Task], cache: Path, workers: int | None = None
) -> Iterator[tuple[dict, dict]]:
    """(record, times) of each task, in order. `cache`: folder of what is known already; workers: processes, None: one a core, or one with a GPU."""
    cache.mkdir(parents=True, exist_ok=True)
    workers = workers or (
        1 if any(torch.device(point.device).type == "cuda" for point in points) else cores()
    )
    look = functools.partial(_look, cache)
    if workers == 1:
        yield from map(look, points)
        return
    threads = max(1, cores() // workers)
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin, (threads,)
    ) as pool:
        yield from pool.map(look, points)


def _begin(threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)


def _look(cache: Path, point: Task) -> tuple[dict, dict]:
    """What the cache has of this point; measured first if it has nothing readable, or not what these detectors find."""
    path, wanted = (
        cache / f"{point.key()}.json",
        {_digest(file): file.stem for file in point.detectors},
    )
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        found = None
    if found is None or not wanted.keys() <= found["detections"].keys():
        record, times = point.measure()
        rows = record.pop("detections", {})
        known = found["detections"] if found else {}
        found = {
            "record": record,
            "times": times,
            "detections": known | {digest: rows[name] for digest, name in wanted.items()},
        }
        write_json(path, found)
        found = json.loads(path.read_text())  # what a later look sees, to the order of its fields
    seen = (
        {"detections": {name: found["detections"][digest] for digest, name in wanted.items()}}
        if wanted
        else {}
    )
    record, times = (
        {k: v for k, v in part.items() if k != "run"} | dict(point.source)
        for part in (found["record"], found["times"])
    )
    return record | seen, times
