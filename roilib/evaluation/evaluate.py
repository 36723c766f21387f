"""Codecs on whole frames: real bytes, decoded again, measured as records.

    codec, setting ─┐
    frame, boxes ───┴─► encode ──► bytes ──► decode ──► record

One record is one picture under one setting: image, codec, setting, bytes, bpp, psnr, roi_psnr,
bg_psnr, car_psnr … (of the objects of each class), the squared errors behind the PSNRs (so that
they pool), yuv_psnr, ms_ssim and haarpsi, a hash of the stream, for our codecs bpp_estimated, and
what detectors find on the decoded picture. Times are kept apart, since no two runs share them.
"""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from roilib.codecs.codec import Codec
from roilib.codecs.container import Header
from roilib.codecs.conventional import ConventionalCodec
from roilib.codecs.protocol import ImageCodec
from roilib.codecs.registry import codec_name
from roilib.codecs.roic import load_codec
from roilib.datasets.dataset import RoiDataset
from roilib.engines.runs import Run, all_runs, is_shorter, read_run
from roilib.evaluation import detection
from roilib.metrics import picture_metrics
from roilib.models.detector import HookedDetector
from roilib.models.weights import picture_hash, trained_on, training_of
from roilib.parameters import SHIPPED, SHIPPED_YUV, Parameters
from roilib.roi import roi_mask
from roilib.utils.files import read_json, write_json
from roilib.utils.pretrained import PRETRAINED_CODECS, pretrained
from roilib.utils.provenance import origin, sha256

UNCOMPRESSED = "uncompressed"  # the codec of a record of a picture as it is
Setting = Mapping[str, float]  # keywords of a codec's `encode`
Detectors = Mapping[str, HookedDetector]


def trained_settings(
    p: Parameters, lmbdas: Sequence[float] = (), alphas: Sequence[float] = ()
) -> list[Setting]:
    """List the λ and α at which to measure a trained model.

    A model of one rate is measured at those of its training, a model for every rate at every pair
    of the lists.
    """
    if p.which != "roi_vbr" or p.fixed_rate:
        lmbdas = alphas = ()
    return [
        {"lmbda": lmbda, "alpha": alpha}
        for lmbda, alpha in product(lmbdas or [p.lmbda], alphas or [p.alpha])
    ]


def conventional_settings(name: str, grid: Mapping[str, Sequence[float]]) -> list[Setting]:
    """List every pair of a conventional codec's grid of `quality` and `qoffset` (default 0).

    Raises ValueError naming the codec for an unknown name or key, or a value outside its range.
    """
    codec = ConventionalCodec(name)
    limits = {"quality": codec.quality_range, "qoffset": (-1, 1)}
    if not isinstance(grid, Mapping) or "quality" not in grid or grid.keys() - limits.keys():
        raise ValueError(
            f"{name}: settings are lists of quality and, if wanted, qoffset, not {grid!r}"
        )
    for key, values in grid.items():
        low, high = limits[key]
        if not isinstance(values, Sequence) or not all(
            isinstance(v, Real) and low <= v <= high for v in values
        ):
            raise ValueError(
                f"{name}: {key} is a list of numbers from {low} to {high}, not {values!r}"
            )
    if not codec.has_roi and any(grid.get("qoffset", ())):
        raise ValueError(f"{name}: this codec has no ROI here; its qoffset is 0")
    return [
        {"quality": quality, "qoffset": qoffset}
        for quality, qoffset in product(grid["quality"], grid.get("qoffset", [0.0]))
    ]


def evaluate(
    codec: ImageCodec,
    data: RoiDataset,
    settings: Sequence[Setting] | None = None,
    detectors: Detectors | None = None,
) -> Iterator[tuple[dict, dict]]:
    """Measure a codec on every picture of `data` at each setting; its labelled boxes are the ROI.

    The encoder gets the same boxes, or the sample's `coder_boxes`. settings: None: those of our
    codec's training. Yields (record, times) for each picture and setting.
    """
    if isinstance(codec, str | Path):
        raise ValueError(f"{codec}: load_codec makes a codec of a weights file")
    for setting in trained_settings(codec.parameters) if settings is None else settings:
        for sample, (image, boxes, labels) in zip(data.samples, data, strict=True):
            about = {"image": sample.id} | _about(codec, setting)
            original, boxes = image.permute(1, 2, 0).numpy(), boxes.numpy()
            groups = detection.grouped(labels, data.classes)
            given = boxes if sample.coder_boxes is None else sample.coder_boxes
            measured, seconds = _measure(codec, setting, original, given, boxes, groups, detectors)
            yield about | measured, about | {"seconds": seconds}


def _about(codec: ImageCodec, setting: Setting) -> dict:
    """Return a record's codec and setting, and of our codecs the run."""
    if not isinstance(codec, Codec):
        return {"codec": codec.name, "setting": dict(setting)}
    p = codec.parameters
    training = {name: getattr(p, name) for name in ("seed", "loss_form", "metric")}
    return {"codec": codec_name(p), "setting": {**setting, **training}, "run": p.name}


def _measure(
    codec: ImageCodec,
    setting: Setting,
    original: np.ndarray,
    given: np.ndarray,
    boxes: np.ndarray,
    groups: Tensor,
    detectors: Detectors | None,
) -> tuple[dict, dict]:
    """Code one picture; return its measures, and the seconds of encoding and decoding.

    given: the encoder's boxes; boxes: those in which quality is measured.
    """
    height, width = original.shape[:2]
    start = now()
    stream = codec.encode(original, given, **setting)
    encoded = now()
    decoded = codec.decode(stream)
    seconds = {"encode": encoded - start, "decode": now() - encoded}
    rate = {
        "bytes": len(stream),
        "bpp": 8 * len(stream) / (height * width),
        "sha256": hashlib.sha256(stream).hexdigest()[:16],
    }
    if isinstance(codec, Codec):
        container = len(stream) - sum(map(len, Header.unpack(stream)[1]))
        bits = codec.estimate(original, given, **setting) + 8 * container
        rate["bpp_estimated"] = bits / (height * width)
    classes = {
        name.lower(): roi_mask(boxes[groups.numpy() == k], height, width)
        for k, name in enumerate(detection.BENCHMARK)
    }
    quality = picture_metrics(original, decoded, roi_mask(boxes, height, width), classes)
    found = _detections(decoded, torch.from_numpy(boxes), groups, detectors)
    return rate | quality | found, seconds


def uncompressed(data: RoiDataset, detectors: Detectors) -> Iterator[tuple[dict, dict]]:
    """Yield (record, {}) of each uncompressed picture, with what detectors find in it.

    Such a record has no bytes; it has the counts of `detection.objects`.
    """
    for sample, (image, boxes, labels) in zip(data.samples, data, strict=True):
        groups = detection.grouped(labels, data.classes)
        about = {"image": sample.id, "codec": UNCOMPRESSED, "setting": {}}
        picture, boxes = image.permute(1, 2, 0).numpy(), boxes.as_subclass(Tensor)
        found = _detections(picture, boxes, groups, detectors)
        yield about | {"objects": detection.objects(groups)} | found, {}


def _detections(
    image: np.ndarray, boxes: Tensor, groups: Tensor, detectors: Detectors | None
) -> dict:
    """Return `detections`, the rows of `detection.scored` by detector, if there is a detector."""
    frame = torch.from_numpy(image).permute(2, 0, 1)
    found = {
        name: detection.scored(detection.detect(detector, frame), boxes, groups)
        for name, detector in (detectors or {}).items()
    }
    return {"detections": found} if found else {}


def now() -> float:
    """Return the time in seconds, once the GPU has finished its queue."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def write_records(folder: Path, name: str, records: list[dict]) -> Path:
    """Write records as `folder/name.json` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", records)
    return folder / f"{name}.json"


def read_records(folder: Path, name: str = "records") -> list[dict]:
    """Read what `write_records` wrote. Raises ValueError naming the file."""
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        raise ValueError(f"{path}: no such file; run notebook 05 first")
    records = read_json(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path}: no records")
    return records


def weights_file(name: str) -> Path:
    """Return the path of a weights file; "shipped" and "shipped_yuv" are ours."""
    tune = {SHIPPED: "rgb", SHIPPED_YUV: "yuv"}.get(name)
    return pretrained(PRETRAINED_CODECS[tune]) if tune else Path(name)


def finished_runs(
    logdir: str | Path, names: list[str] | None = None, needed: bool = True
) -> list[Run]:
    """Read the finished training runs below `logdir`, all or those in `names`.

    Of a training that went on with a higher `max_steps`, all means the longest run alone. Raises
    ValueError when one of `names` is missing, or none is found though `needed`.
    """
    runs = [read_run(Path(logdir) / name) for name in names] if names else all_runs(logdir)
    for run in runs if names else ():
        if run.metrics is None:
            raise ValueError(f"{run.folder}: not a finished run")
    runs = [run for run in runs if run.metrics and run.weights.exists()]
    if not names:
        runs = [run for run in runs if not any(is_shorter(run, other) for other in runs)]
    if not runs and needed:
        raise ValueError(f"{logdir}: no finished training run; run notebooks 03 and 04 first")
    return runs


def provenance(
    parameters: Mapping,
    data: RoiDataset,
    runs: Sequence[Run] = (),
    weights: Sequence[str] = (),
    detectors: Sequence[Path] = (),
) -> dict:
    """Return the origin of an evaluation's numbers.

    It has the parameters, the code, the machine and versions, the pictures; parameters, code, steps
    and time of each run and weights file; and the hashes of detectors.
    """
    found = {}
    for run in runs:
        trained, timing = (read_json(run.folder / name) for name in ("hparams.json", "timing.json"))
        code = {name: trained["environment"].get(name) for name in ("commit", "dirty", "source")}
        found[run.folder.name] = (
            {"parameters": trained["parameters"], "steps": run.metrics["steps"]} | code | timing
        )
    codecs = {name: load_codec(weights_file(name)) for name in weights}
    files = {
        name: {"parameters": codec.parameters.model_dump(), "model": codec.id.hex()}
        for name, codec in codecs.items()
    }
    for name, about in files.items():
        about |= training_of(weights_file(name))
    return origin(parameters) | {
        "pictures": len(data),
        "pictures_sha256": sha256(sample.path for sample in data.samples),
        "runs": found,
        "weights": files,
        "detectors": {path.stem: sha256([path]) for path in detectors},
    }


def refuse_training_pictures(
    runs: Sequence[Run], data: RoiDataset, weights: Sequence[str] = ()
) -> None:
    """Raise ValueError if a run or a weights file trained on one of these pictures.

    Pictures are compared by content, so names and folders do not matter. Runs of earlier versions
    hold only the ids of their pictures.
    """
    measured = {picture_hash(sample.path): sample.id for sample in data.samples}
    trained = {name: trained_on(weights_file(name)) for name in weights}
    for run in runs:
        splits, start = read_json(run.splits), run.parameters.start_file
        removed = splits.get("removed", {}).values()  # after they had trained it
        trained[run.splits] = {*splits.get("train_pictures", ()), *removed}
        if "train_pictures" not in splits:
            trained[run.splits] = {h for h, id in measured.items() if id in splits["train"]}
        if start and start.is_file():
            trained[run.splits] |= trained_on(start)
    for source, pictures in trained.items():
        seen = [id for digest, id in measured.items() if digest in pictures]
        if seen:
            raise ValueError(
                f"{source}: trained on {seen[0]} and {len(seen) - 1} more of these pictures; "
                "measure on the data set's own test split, or on other pictures"
            )


def worst_estimate(records: list[dict]) -> float:
    """Return the largest relative difference between real and estimated bits per pixel."""
    return max(
        (abs(r["bpp"] / r["bpp_estimated"] - 1) for r in records if "bpp_estimated" in r),
        default=math.nan,
    )
