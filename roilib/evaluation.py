"""Trained runs on whole frames: real bitstreams, decoded again, measured as records.

    run folder ──► model ─┐
    frame ──► pad to 64 ──┴─► compress ──► bytes ──► decompress ──► cut ──► record

One record is one picture under one setting: image, codec, setting, bytes, bpp, bpp_estimated, psnr, roi_psnr, bg_psnr, ms_ssim and the squared
errors behind the PSNRs (so that they pool). Times are kept apart, since no two runs share them.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from compressai.models import CompressionModel
from torch import Tensor

from roilib.datasets import RoiDataset
from roilib.detector import CODEC_STRIDES, HookedDetector, pad
from roilib.metrics import picture_metrics
from roilib.models import HyperpriorWithObjFeatures, build_model, load_weights
from roilib.parameters import Parameters
from roilib.roi import roi_mask
from roilib.runs import Run, write_json

CODEC_NAMES = {  # what a codec is called in figures, in the order of the paper's
    "hyperprior": "baseline",
    "hyperprior_eval_with_objs": "baseline",
    "hyperprior_with_obj_features (zero_hooks)": "ROI loss, zero hooks",
    "hyperprior_with_obj_features (mask_hooks)": "ROI loss, mask hooks",
    "hyperprior_with_obj_features": "ROI loss, object features",
}


def codec_name(p: Parameters) -> str:
    """The engine, with what its hooks carry."""
    hooks = "zero_hooks" if p.zero_hooks else "mask_hooks" if p.mask_hooks else None
    return f"{p.which} ({hooks})" if hooks else p.which


@dataclass
class TrainedCodec:
    """A trained model with the detector it needs (None: none), ready to code whole frames."""

    parameters: Parameters
    model: CompressionModel
    detector: HookedDetector | None

    @classmethod
    def from_run(cls, run: Run, device: torch.device | str = "cpu") -> "TrainedCodec":
        """The model of a finished run. Raises ValueError naming a missing or damaged weights file."""
        model = build_model(run.parameters)
        load_weights(run.weights, model, run.parameters)
        detector = HookedDetector(run.parameters.detector_weights).to(device) if run.parameters.uses_detector else None
        return cls(run.parameters, model.eval().to(device), detector)

    def inputs(self, image: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """What the model sees of a frame: image uint8 (3, H, W), mask (1, H, W) → x, and where it takes them features and mask."""
        device = next(self.model.parameters()).device
        frame = image[None].to(device).float() / 255
        x = pad(frame, self.model.downsampling_factor)
        if not isinstance(self.model, HyperpriorWithObjFeatures):
            return (x,)
        features = frame_features(self.detector, frame, x.shape[-2:]) if self.detector else None
        return x, features, pad(mask[None].to(device), self.model.downsampling_factor, value=0)

    @torch.no_grad()
    def code(self, image: Tensor, mask: Tensor) -> tuple[np.ndarray, int, float, dict[str, float]]:
        """Compress and decompress a frame: decoded uint8 (H, W, 3), bytes, estimated bits, and seconds of each stage."""
        start = _now()
        inputs = self.inputs(image, mask)
        prepared = _now()
        packed = self.model.compress(*inputs)
        encoded = _now()
        x_hat = self.model.decompress(packed["strings"], packed["shape"])["x_hat"]
        decoded = _now()
        bits = sum(-v.double().log2().sum().item() for v in self.model(*inputs)["likelihoods"].values())
        height, width = image.shape[-2:]
        picture = x_hat[0, :, :height, :width].mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
        seconds = {"detector": prepared - start, "encode": encoded - prepared, "decode": decoded - encoded}
        return picture, sum(len(s[0]) for s in packed["strings"]), bits, seconds


def _now() -> float:
    """Seconds, after what was queued on the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def frame_features(detector: HookedDetector, frame: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """The detector's features of a frame (B, 3, H, W), continued by repetition to the codec's padded `size` (a multiple of 64)."""
    features = detector.codec_features(frame)
    sizes = [(size[0] // s, size[1] // s) for s in CODEC_STRIDES]
    return [F.pad(f, (0, w - f.shape[-1], 0, h - f.shape[-2]), "replicate") for f, (h, w) in zip(features, sizes, strict=True)]


def evaluate(codec: TrainedCodec, data: RoiDataset) -> Iterator[tuple[dict, dict]]:
    """Code every whole picture of `data`: (record, times) of each."""
    setting = {name: getattr(codec.parameters, name) for name in ("lmbda", "alpha", "seed", "loss_form", "metric")}
    for i, sample in enumerate(data.samples):
        image, boxes, _ = data[i]
        height, width = image.shape[-2:]
        mask = roi_mask(boxes, height, width)
        decoded, size, bits, seconds = codec.code(image, mask)
        original = image.permute(1, 2, 0).numpy()
        where = {"image": sample.id, "codec": codec_name(codec.parameters), "setting": setting, "run": codec.parameters.name}
        rate = {"bytes": size, "bpp": 8 * size / (height * width), "bpp_estimated": bits / (height * width)}
        yield where | rate | picture_metrics(original, decoded, mask[0].bool().numpy()), where | {"seconds": seconds}


def write_records(folder: Path, name: str, records: list[dict]) -> Path:
    """Write records as `folder/name.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", records)
    return folder / f"{name}.json"


def read_records(folder: Path, name: str = "records") -> list[dict]:
    """Records that `write_records` wrote. Raises ValueError naming the file."""
    path = Path(folder) / f"{name}.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run notebook 05 first") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def finished_runs(logdir: str | Path, names: list[str] | None = None) -> list[Run]:
    """Finished training runs below `logdir`, all or those in `names`. Raises ValueError when there is none or one is missing."""
    folders = [Path(logdir) / name for name in names or sorted(path.parent.name for path in Path(logdir).glob("hyperprior*/metrics.json"))]
    runs = [Run(folder, Parameters.parse(_parameters(folder))) for folder in folders]
    runs = [run for run in runs if run.parameters.what == "train"]
    if not runs:
        raise ValueError(f"{logdir}: no finished training run; run notebooks 03 and 04 first")
    return runs


def _parameters(folder: Path) -> dict:
    try:
        return json.loads((folder / "metrics.json").read_text())["parameters"]
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: not a finished run ({error})") from None


def closest_in_bytes(records: list[dict], image: str, codecs: list[str]) -> list[dict]:
    """For each codec its record of `image`, chosen so that the bytes of all are as near to each other as the records allow."""
    choices = [[r for r in records if r["image"] == image and r["codec"] == codec] for codec in codecs]
    return list(min(product(*choices), key=lambda rs: max(r["bytes"] for r in rs) / min(r["bytes"] for r in rs)))


def comparison(runs: list[Run], records: list[dict], data: RoiDataset, i: int) -> list[tuple[str, np.ndarray, str]]:
    """Panels for `plots.roi_comparison` of picture i: the original and one decoded picture a codec, at about equal bytes."""
    image, boxes, _ = data[i]
    mask = roi_mask(boxes, *image.shape[-2:])
    codecs = sorted({r["codec"] for r in records}, key=list(CODEC_NAMES).index)
    panels = [("original", image.permute(1, 2, 0).numpy(), data.samples[i].id)]
    for record in closest_in_bytes(records, data.samples[i].id, codecs):
        run = next(run for run in runs if run.folder.name == record["run"])
        decoded = TrainedCodec.from_run(run).code(image, mask)[0]
        panels.append((CODEC_NAMES[record["codec"]], decoded, f"{record['bpp']:.3f} bpp, ROI {record['roi_psnr']:.2f} dB"))
    return panels


def histories(runs: list[Run]) -> dict[str, list[dict]]:
    """Legend → history of each run."""
    named = {}
    for run in runs:
        p = run.parameters
        name = CODEC_NAMES[codec_name(p)] + f", λ {p.lmbda:g}" + (f", α {p.alpha:g}" if p.which == "hyperprior_with_obj_features" else "")
        named[name if name not in named else f"{name}, {run.folder.name[-4:]}"] = run.metrics["history"]
    return named


def largest_box(data: RoiDataset) -> tuple[int, np.ndarray]:
    """Index and box (4,) of the largest object, if possible one that the border does not cut; the first picture whole if there is no object."""
    candidates = []
    for i, sample in enumerate(data.samples):
        height, width = data.size(i)
        for x0, y0, x1, y1 in sample.boxes.tolist():
            inside = x0 > 2 and y0 > 2 and x1 < width - 3 and y1 < height - 3
            candidates.append((inside, (x1 - x0) * (y1 - y0), i, (x0, y0, x1, y1)))
    if not candidates:
        return 0, np.array([0, 0, *data.size(0)[::-1]], np.float32)
    _, _, i, box = max(candidates)
    return i, np.array(box, np.float32)


def refuse_training_pictures(runs: list[Run], data: RoiDataset, dataset: str) -> None:
    """Raise ValueError when a run trained on one of the pictures (of the same `dataset`) that it is to be measured on."""
    for run in runs:
        splits = json.loads(run.splits.read_text())
        seen = set(splits["train"]) & set(data.ids) if splits["dataset"] == dataset else set()
        if seen:
            raise ValueError(f"{run.splits}: the run trained on {min(seen)} and {len(seen) - 1} more of the test pictures; use its own split")


def worst_estimate(records: list[dict]) -> float:
    """Largest relative difference between real and estimated bits per pixel."""
    return max((abs(r["bpp"] / r["bpp_estimated"] - 1) for r in records), default=math.nan)
