"""All points of an evaluation: measured in parallel processes, cached by content.

    runs, weights × (λ, α)      ┐
    conventional codecs × grid  ├─► tasks ──► processes ──► cache/<hash>.json ──► records, times
    uncompressed pictures       ┘

A task is one picture under one setting. Its hash covers the model's weights, device and precision
(or the conventional codecs' libraries), the modules and libraries that code and measure, the
setting, the picture's bytes and its objects. A stopped evaluation therefore continues where it was,
and stale points are never used. Detections are stored with the point, under the hash of the
detector's file. A new detector causes the point to be measured again.
"""

import functools
import hashlib
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from roilib.codecs.codec import Codec
from roilib.codecs.conventional import ConventionalCodec
from roilib.codecs.registry import codec_name
from roilib.codecs.roic import load_codec
from roilib.codecs.video import TooSmall
from roilib.datasets.dataset import RoiDataset
from roilib.datasets.images import Sample
from roilib.engines.runs import Run
from roilib.evaluation.bootstrap import STRENGTHS, TRAININGS
from roilib.evaluation.evaluate import (
    SHIPPED,
    Setting,
    conventional_settings,
    evaluate,
    trained_settings,
    uncompressed,
    weights_file,
)
from roilib.models.detector import HookedDetector, open_yolo
from roilib.parameters import WITHOUT_EFFECT, Parameters
from roilib.roi import alpha_index, quality_index
from roilib.utils import provenance
from roilib.utils.files import write_json
from roilib.utils.pretrained import PRETRAINED_DETECTOR, pretrained
from roilib.utils.processes import cores, end_with_parent

LIBRARIES = ("av", "pillow", "pillow-jxl-plugin")  # make the conventional codecs' bytes
MEASURES = ("piq", "pytorch-msssim", "torch", "ultralytics")  # these measure every point
MEASURING = ("evaluation.evaluate", "evaluation.detection", "metrics")  # modules of every point
OURS = "codecs.codec"  # module that makes our bytes
CONVENTIONAL = "codecs.conventional"  # module that makes the conventional codecs' bytes
# Modules that conventional codecs do without.
OUR_WEIGHTS = {"codecs.roic", "models.weights", "engines.runs"}
FORMAT = 3  # of the cached files; a new number invalidates them all


@dataclass(frozen=True)
class Task:
    """One picture under a setting of trained `weights` or a `conventional` codec, or uncompressed.

    detector: the file of the detector whose features the model needs; None: the pretrained one.
    detectors: files of the detectors that see the decoded picture. source: the name of the weights
    in the record, ("run", name) or ("weights", name).
    """

    sample: Sample
    classes: tuple[str, ...]
    setting: Setting = field(default_factory=dict)
    weights: Path | None = None
    detector: Path | None = None
    conventional: str = ""
    device: str = "cpu"
    detectors: tuple[Path, ...] = ()
    source: tuple[str, str] | None = None

    def measure(self) -> tuple[dict, dict]:
        """Return (record, times)."""
        data = RoiDataset([self.sample], self.classes)
        detectors = {path.stem: _detector(path, self.device) for path in self.detectors}
        if not self.weights and not self.conventional:
            return next(uncompressed(data, detectors))
        codec = (
            _codec(self.weights, self.device, self.detector)
            if self.weights
            else ConventionalCodec(self.conventional)
        )
        return next(evaluate(codec, data, [self.setting], detectors))

    def key(self) -> str:
        """Return the hash of this point's content."""
        if self.weights:
            coder = _codec(self.weights, self.device, self.detector)
            unit = torch.backends.cpu.get_cpu_capability()
            codec = [coder.id.hex(), coder.device.type, coder.bf16, unit, _code(OURS)]
        else:
            codec = [self.conventional, *map(version, LIBRARIES), _code(CONVENTIONAL)]
        objects = [self.sample.boxes.tolist(), [self.classes[i] for i in self.sample.labels]]
        if self.sample.coder_boxes is not None:
            objects.append(self.sample.coder_boxes.tolist())
        picture = hashlib.sha256(self.sample.path.read_bytes()).hexdigest()
        about = [codec, dict(self.setting), self.sample.id, objects, picture]
        content = [FORMAT, *map(version, MEASURES), *about]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@functools.lru_cache(4)
def _codec(weights: Path, device: str, detector: Path | None) -> Codec:
    return load_codec(weights, device, detector=detector)


@functools.lru_cache(4)
def _detector(weights: Path, device: str) -> HookedDetector:
    return HookedDetector(weights).to(device)


@functools.lru_cache
def _code(codec: str) -> str:
    """Hash every module that the bytes of a codec or their measures depend on."""
    others = {CONVENTIONAL} if codec == OURS else {OURS, *OUR_WEIGHTS}
    return provenance.sha256(provenance.sources((codec, *MEASURING), without=others))[:16]


@functools.lru_cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def detector_files(names: Sequence[str]) -> tuple[Path, ...]:
    """Return the paths of detectors' weights, "shipped" being ours.

    Raises ValueError naming a file that is missing, is no detector, or has the name of another.
    """
    files = tuple(
        pretrained(PRETRAINED_DETECTOR) if name == SHIPPED else Path(name) for name in names
    )
    for i, path in enumerate(files):
        if not path.is_file():
            raise ValueError(f"{path}: no such detector weights")
        if path.stem in {other.stem for other in files[:i]}:
            raise ValueError(
                f"{path}: a second detector of this name; tables tell detectors apart by name"
            )
        open_yolo(path)  # now, not after the first codec
    return files


def _run_model(run: Run) -> tuple[Parameters, dict]:
    """Return a run's parameters, and the fields of a Task that measures it."""
    p, source = run.parameters, ("run", run.folder.name)
    return p, {"weights": run.weights, "detector": p.own_detector, "source": source}


def _weights_model(name: str) -> tuple[Parameters, dict]:
    """Return the parameters of a weights file, and the fields of a Task that measures it."""
    path = weights_file(name)
    return load_codec(path).parameters, {"weights": path, "source": ("weights", name)}


def tasks(
    runs: Sequence[Run],
    data: RoiDataset,
    lmbdas: Sequence[float] = (),
    alphas: Sequence[float] = (),
    conventional: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    device: str = "cpu",
    weights: Sequence[str] = (),
    detectors: Sequence[Path] = (),
) -> list[Task]:
    """List every picture of `data` under every setting of every codec.

    Runs and weights files ("shipped": ours) are measured at the `trained_settings` of lmbdas and
    alphas, each conventional codec at its grid of `quality` and `qoffset`. With detectors the
    uncompressed pictures are measured too. A repeated setting is listed once. Raises ValueError for
    invalid settings, for a picture that is too small for a codec, and where there is nothing to
    measure.
    """
    for check, values in ((quality_index, lmbdas), (alpha_index, alphas)):
        for value in values:
            check(value)
    _check_trainings(runs)
    grids = {name: conventional_settings(name, grid) for name, grid in (conventional or {}).items()}
    _check_sizes(data, grids)
    models = [_run_model(run) for run in runs] + [_weights_model(name) for name in weights]
    ours = [
        (setting, model) for p, model in models for setting in trained_settings(p, lmbdas, alphas)
    ]
    with_knobs = [p for p, _ in models if p.which == "roi_vbr"]
    knobs = [s for p in with_knobs for s in trained_settings(p, lmbdas, alphas)]
    _check_boxes(data, knobs + [setting for grid in grids.values() for setting in grid])
    theirs = [(setting, {"conventional": name}) for name, grid in grids.items() for setting in grid]
    plain = [({}, {})] if detectors else []
    options = {"device": device, "detectors": tuple(detectors)}
    found = [
        Task(sample, data.classes, setting, **codec, **options)
        for setting, codec in _without_repeats(ours + theirs + plain)
        for sample in data.samples
    ]
    if not found:
        raise ValueError(
            f"nothing to measure: {len(data)} pictures, {len(ours)} settings of trained weights, "
            f"{len(theirs)} of conventional codecs"
        )
    return found


def _check_trainings(runs: Sequence[Run]) -> None:
    """Raise ValueError for two runs of one model, λ, α and seed: their points would be mixed."""
    found: dict[tuple, Run] = {}
    for run in runs:
        p = run.parameters
        if p.which == "roi_vbr" and not p.fixed_rate:
            continue  # each has a curve of its own
        key = (codec_name(p), p.lmbda, p.alpha, *(getattr(p, name) for name in TRAININGS))
        if other := found.get(key):
            values = other.parameters.model_dump(exclude=WITHOUT_EFFECT)
            differ = [k for k, v in p.model_dump(exclude=WITHOUT_EFFECT).items() if v != values[k]]
            what = ", ".join(differ) or "the weights that they started from"
            raise ValueError(
                f"{other.folder} and {run.folder} differ in {what} alone and would be "
                "points of one curve: name those to measure in runs, or give each a logdir"
            )
        found[key] = run


def _check_sizes(data: RoiDataset, conventional: Iterable[str]) -> None:
    """Raise ValueError naming a picture that is too small for one of the conventional codecs."""
    codecs = [ConventionalCodec(name) for name in conventional]
    for i, sample in enumerate(data.samples if codecs else ()):
        size = data.size(i)
        for codec in codecs:
            try:
                codec.check_size(*size)
            except TooSmall as error:
                raise ValueError(f"{sample.path}: {error}") from None


def _without_repeats(settings: list[tuple[Setting, dict]]) -> list[tuple[Setting, dict]]:
    """Leave out settings that are given again: tables would count their pictures twice."""
    return [setting for i, setting in enumerate(settings) if setting not in settings[:i]]


def _check_boxes(data: RoiDataset, settings: Sequence[Setting]) -> None:
    """Raise ValueError for ROI strengths when no picture has a box, so that they have no effect."""
    if not data.samples or any(len(sample.boxes) for sample in data.samples):
        return
    for name, uniform in STRENGTHS.items():
        strengths = {setting.get(name, uniform) for setting in settings} - {uniform}
        if strengths:
            raise ValueError(
                f"{data.samples[0].path.parent}: no picture has boxes, without which {name} "
                f"{min(strengths):g} has no effect; boxes=detector finds some, {name}={uniform:g} "
                "measures all pixels alike"
            )


def measure(
    points: Sequence[Task], cache: Path, workers: int | None = None
) -> Iterator[tuple[dict, dict]]:
    """Yield (record, times) of each task, in order.

    cache: folder of known points. workers: number of processes; None: one per core, or a single one
    with a GPU.
    """
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
    """Return a point from the cache; measure it first if it or its detections are missing."""
    path = cache / f"{point.key()}.json"
    wanted = {_digest(file): file.stem for file in point.detectors}
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
        found = json.loads(path.read_text())  # fields in the order that later calls see
    seen = {name: found["detections"][digest] for digest, name in wanted.items()}
    source = dict([point.source] if point.source else [])
    record, times = (
        {k: v for k, v in part.items() if k != "run"} | source
        for part in (found["record"], found["times"])
    )
    return record | ({"detections": seen} if seen else {}), times
