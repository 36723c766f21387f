"""Trained runs on whole frames: real `.roic` streams, decoded again, measured as records.

    run folder ──► codec ─┐
    frame, boxes ─────────┴─► encode ──► bytes ──► decode ──► record

One record is one picture under one setting: image, codec, setting, bytes, bpp, bpp_estimated, psnr, roi_psnr, bg_psnr, car_psnr … (of the objects of
each class), ms_ssim, the squared errors behind the PSNRs (so that they pool), a hash of the stream, and what detectors find on the decoded picture,
where some are given. Times are kept apart, since no two runs share them.
"""

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from numbers import Real
from pathlib import Path

import numpy as np
import torch

from roilib.codecs import conventional
from roilib.codecs.container import Header
from roilib.codecs.registry import codec_name
from roilib.codecs.roic import Codec, load_codec
from roilib.datasets.dataset import RoiDataset
from roilib.engines.runs import Run
from roilib.evaluation import detection
from roilib.metrics import picture_metrics
from roilib.models.detector import HookedDetector
from roilib.models.weights import picture_hash, trained_on, training_of
from roilib.parameters import Parameters
from roilib.roi import roi_mask
from roilib.utils.files import read_json, write_json
from roilib.utils.pretrained import PRETRAINED_WEIGHTS, pretrained
from roilib.utils.provenance import origin, sha256

UNCOMPRESSED, SHIPPED = "uncompressed", "shipped"
Detectors = Mapping[str, HookedDetector]


def settings(
    p: Parameters, lmbdas: Sequence[float] = (), alphas: Sequence[float] = ()
) -> list[tuple[float, float]]:
    """The (λ, α) at which a model of this training is to be measured: its own, or for one that has them all every pair of the lists."""
    if p.which != "roi_vbr" or p.fixed_rate:
        return [(p.lmbda, p.alpha)]
    return list(product(lmbdas or [p.lmbda], alphas or [p.alpha]))


def evaluate(
    codec: Codec,
    data: RoiDataset,
    lmbdas: Sequence[float] = (),
    alphas: Sequence[float] = (),
    detectors: Detectors | None = None,
) -> Iterator[tuple[dict, dict]]:
    """Code every whole picture of `data` at the `settings` of these lists, its labelled boxes being the ROI: (record, times) of each."""
    p = codec.parameters
    for lmbda, alpha in settings(p, lmbdas, alphas):
        knobs = {"lmbda": lmbda, "alpha": alpha}
        where = {
            "codec": codec_name(p),
            "setting": knobs | {name: getattr(p, name) for name in ("seed", "loss_form", "metric")},
            "run": p.name,
        }
        for image, boxes, measured in _measure(
            data, functools.partial(codec.encode, **knobs), codec.decode, where, detectors
        ):
            stream = measured[0].pop("stream")
            container = len(stream) - sum(map(len, Header.unpack(stream)[1]))
            bits = codec.estimate(image, boxes, **knobs) + 8 * container
            measured[0]["bpp_estimated"] = bits / (image.shape[0] * image.shape[1])
            yield measured


def evaluate_peer(
    data: RoiDataset,
    name: str,
    qualities: Sequence[float],
    qoffsets: Sequence[float] = (0.0,),
    detectors: Detectors | None = None,
) -> Iterator[tuple[dict, dict]]:
    """Code every whole picture of `data` by a codec of roilib.codecs.conventional, as "x265 medium" or "jpeg": (record, times) of each picture at each setting."""
    codec, _, preset = name.partition(" ")
    for quality, qoffset in peer_settings(name, {"quality": qualities, "qoffset": qoffsets}):

        def encode(image: np.ndarray, boxes: np.ndarray, quality=quality, qoffset=qoffset) -> bytes:
            return conventional.encode(image, codec, quality, boxes, qoffset, preset)

        where = {"codec": name, "setting": {"quality": quality, "qoffset": qoffset}}
        for _, _, (record, times) in _measure(
            data, encode, functools.partial(conventional.decode, codec=codec), where, detectors
        ):
            del record["stream"]
            yield record, times


def peer_settings(name: str, grid: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    """The (quality, qoffset) pairs of a peer's grid of `quality` (a video codec's crf, 0 to 51, or 0 to 100) and `qoffset` (-1 to 1).

    Raises ValueError naming the peer for a name, a key or a value that is none.
    """
    codec, _, preset = name.partition(" ")
    if codec not in conventional.VIDEO + conventional.STILL or bool(preset) != (
        codec in conventional.VIDEO
    ):
        raise ValueError(
            f"{name}: a peer is x264 or x265 with a preset, as 'x265 medium', or one of {', '.join(conventional.STILL)}"
        )
    limits = {"quality": (0, 51) if codec in conventional.VIDEO else (0, 100), "qoffset": (-1, 1)}
    if not isinstance(grid, Mapping) or "quality" not in grid or grid.keys() - limits.keys():
        raise ValueError(
            f"{name}: a peer's settings are lists of quality and, where wanted, qoffset, not {grid!r}"
        )
    for key, values in grid.items():
        low, high = limits[key]
        if not isinstance(values, Sequence) or not all(
            isinstance(v, Real) and low <= v <= high for v in values
        ):
            raise ValueError(
                f"{name}: {key} is a list of numbers from {low} to {high}, not {values!r}"
            )
    return list(product(grid["quality"], grid.get("qoffset", [0.0])))


def uncompressed(data: RoiDataset, detectors: Detectors) -> Iterator[tuple[dict, dict]]:
    """What detectors find on the pictures as they are: (record without bytes but with the numbers of `objects`, no times) of each."""
    for sample, (image, boxes, labels) in zip(data.samples, data, strict=True):
        groups = detection.grouped(labels, data.classes)
        record = {
            "image": sample.id,
            "codec": UNCOMPRESSED,
            "setting": {},
            "objects": detection.objects(groups),
        }
        yield (
            record
            | _detections(
                image.permute(1, 2, 0).numpy(), boxes.as_subclass(torch.Tensor), groups, detectors
            ),
            {},
        )


def _measure(
    data: RoiDataset, encode: Callable, decode: Callable, where: dict, detectors: Detectors | None
) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[dict, dict]]]:
    """Each picture of `data`, its boxes, and (record, times) of coding it; the record still holds the stream."""
    for i, sample in enumerate(data.samples):
        image, boxes, labels = data[i]
        original, boxes, groups = (
            image.permute(1, 2, 0).numpy(),
            boxes.numpy(),
            detection.grouped(labels, data.classes),
        )
        height, width = original.shape[:2]
        start = now()
        stream = encode(original, boxes)
        encoded = now()
        decoded = decode(stream)
        seconds = {"encode": encoded - start, "decode": now() - encoded}
        rate = {
            "stream": stream,
            "bytes": len(stream),
            "bpp": 8 * len(stream) / (height * width),
            "sha256": hashlib.sha256(stream).hexdigest()[:16],
        }
        mask, here = roi_mask(boxes, height, width), {"image": sample.id} | where
        classes = {
            name.lower(): roi_mask(boxes[groups.numpy() == k], height, width)
            for k, name in enumerate(detection.BENCHMARK)
        }
        measured = picture_metrics(original, decoded, mask, classes) | _detections(
            decoded, torch.from_numpy(boxes), groups, detectors
        )
        yield original, boxes, (here | rate | measured, here | {"seconds": seconds})


def _detections(
    image: np.ndarray, boxes: torch.Tensor, groups: torch.Tensor, detectors: Detectors | None
) -> dict:
    """`detections`, the rows of `detection.scored` by detector, where there is one."""
    frame = torch.from_numpy(image).permute(2, 0, 1)
    found = {
        name: detection.scored(detection.detect(detector, frame), boxes, groups)
        for name, detector in (detectors or {}).items()
    }
    return {"detections": found} if found else {}


def now() -> float:
    """Seconds, after what was queued on the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def write_records(folder: Path, name: str, records: list[dict]) -> Path:
    """Write records as `folder/name.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", records)
    return folder / f"{name}.json"


def read_records(folder: Path, name: str = "records") -> list[dict]:
    """Records that `write_records` wrote. Raises ValueError naming the file."""
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        raise ValueError(f"{path}: no such file; run notebook 05 first")
    records = read_json(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path}: no records")
    return records


def weights_file(name: str) -> Path:
    """The weights file that `name` is the path of, or "shipped" stands for."""
    return pretrained(PRETRAINED_WEIGHTS) if name == SHIPPED else Path(name)


def finished_runs(
    logdir: str | Path, names: list[str] | None = None, needed: bool = True
) -> list[Run]:
    """Finished training runs below `logdir`, all or those in `names`. Raises ValueError when one is missing, or there is none though `needed`."""
    folders = [Path(logdir) / name for name in names or _finished_names(Path(logdir))]
    runs = [Run(folder, Parameters.parse(_parameters(folder))) for folder in folders]
    runs = [run for run in runs if run.parameters.what == "train"]
    if not runs and needed:
        raise ValueError(f"{logdir}: no finished training run; run notebooks 03 and 04 first")
    return runs


def _finished_names(logdir: Path) -> list[str]:
    return sorted(
        path.parent.name
        for path in logdir.glob("*/metrics.json")
        if (path.parent / "weights.safetensors").exists()
    )


def _parameters(folder: Path) -> dict:
    try:
        return json.loads((folder / "metrics.json").read_text())["parameters"]
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: not a finished run ({error})") from None


def provenance(
    parameters: Mapping,
    data: RoiDataset,
    runs: Sequence[Run] = (),
    weights: Sequence[str] = (),
    detectors: Sequence[Path] = (),
) -> dict:
    """Where an evaluation's numbers come from: its parameters, this code, machine and versions, the pictures; each run's parameters, code, steps and
    time; weights files' parameters, model, steps and time; detectors' hashes.
    """
    found = {}
    for run in runs:
        trained, timing = (
            json.loads((run.folder / name).read_text()) for name in ("hparams.json", "timing.json")
        )
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
    pictures = {
        "pictures": len(data),
        "pictures_sha256": sha256(sample.path for sample in data.samples),
    }
    return (
        origin(parameters)
        | pictures
        | {
            "runs": found,
            "weights": files,
            "detectors": {path.stem: sha256([path]) for path in detectors},
        }
    )


def refuse_training_pictures(
    runs: list[Run], data: RoiDataset, dataset: str, weights: Sequence[str] = ()
) -> None:
    """Raise ValueError when a run trained on one of the pictures (of the same `dataset`) that it is to be measured on, or one of these weights files
    did, which know them by their bytes.
    """
    for name in weights:
        known = trained_on(weights_file(name))
        seen = [
            sample.id for sample in data.samples if known and picture_hash(sample.path) in known
        ]
        if seen:
            raise ValueError(
                f"{name}: was trained on {seen[0]} and {len(seen) - 1} more of these pictures; take the root's own split or others"
            )
    for run in runs:
        splits = json.loads(run.splits.read_text())
        seen = set(splits["train"]) & set(data.ids) if splits["dataset"] == dataset else set()
        if seen:
            raise ValueError(
                f"{run.splits}: the run trained on {min(seen)} and {len(seen) - 1} more of the test pictures; use its own split"
            )


def worst_estimate(records: list[dict]) -> float:
    """Largest relative difference between real and estimated bits per pixel."""
    return max(
        (abs(r["bpp"] / r["bpp_estimated"] - 1) for r in records if "bpp_estimated" in r),
        default=math.nan,
    )
