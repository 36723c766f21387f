"""Test pictures decoded again by several codecs at equal bytes, for figures that show pictures.

    the runs of one rate ──► goal in bytes ──► the others' quality or byte cap ──► decoded pictures, their bytes and ROI-PSNR

A codec with several ROI strengths shows the one that its records of this picture favour: the best ROI whose background is at most 1 dB worse than
its best background at these bytes, or else the one that costs least.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roilib.codecs import conventional
from roilib.codecs.registry import CODEC_NAMES
from roilib.codecs.roic import Codec, load_codec
from roilib.datasets.dataset import RoiDataset
from roilib.engines.runs import Run
from roilib.evaluation.bootstrap import run_name
from roilib.evaluation.evaluate import weights_file
from roilib.metrics import psnr_of, regions, squared_errors
from roilib.roi import LMBDA_MIN, roi_mask

UNIFORM = 0.5  # alpha
BUDGET = 1.0  # dB of background that a ROI strength may cost
GOAL = 0.2  # bits per pixel, where no run of one rate sets another, and more where a codec's ROI mode does not get as low
SHOWN = (  # in this order; of several codecs in a group the first that was measured
    ("x265 slow", "x265 medium", "x264 slow", "x264 medium"),
    ("hyperprior_eval_with_objs", "hyperprior"),
    ("hyperprior_with_obj_features (zero_hooks)",),
    ("hyperprior_with_obj_features",),
    ("roi_vbr",),
)


@dataclass(frozen=True)
class Panel:
    """A picture, uint8 (H, W, 3); unless it is the original, with its stream, the dB inside and outside the ROI, and a record of what made it."""

    codec: str
    strength: float | None
    picture: np.ndarray
    stream: bytes | None = None
    roi_psnr: float | None = None
    bg_psnr: float | None = None
    record: dict | None = None


@dataclass(frozen=True)
class Scene:
    """A test picture: its id, the box to enlarge (4,), all boxes (K, 4), and the panels, the original first."""

    image: str
    box: np.ndarray
    boxes: np.ndarray
    panels: list[Panel]


def choose_boxes(data: RoiDataset, count: int = 3) -> list[tuple[int, np.ndarray]]:
    """(picture, box) of `count` objects in different pictures: the largest of each class, most frequent class first, then the largest of any.

    Objects that the border does not cut come first. A data set without objects gives its first picture as a whole.
    """
    found, labels = [], np.concatenate([sample.labels for sample in data.samples])
    for i, sample in enumerate(data.samples):
        height, width = data.size(i)
        for (x0, y0, x1, y1), label in zip(
            sample.boxes.tolist(), sample.labels.tolist(), strict=True
        ):
            inside = x0 > 2 and y0 > 2 and x1 < width - 3 and y1 < height - 3
            found.append((inside, (x1 - x0) * (y1 - y0), i, label, (x0, y0, x1, y1)))
    found.sort(reverse=True)
    classes = sorted(set(labels.tolist()), key=lambda label: (-(labels == label).sum(), label))[
        :count
    ]
    chosen: dict[int, np.ndarray] = {}
    for label in [*classes, *[None] * count]:
        free = (f for f in found if f[2] not in chosen and label in (None, f[3]))
        if len(chosen) < count and (best := next(free, None)):
            chosen[best[2]] = np.array(best[4], np.float32)
    return list(chosen.items()) or [(0, np.array([0, 0, *data.size(0)[::-1]], np.float32))]


def compare(
    runs: list[Run], records: list[dict], data: RoiDataset, places: Sequence[tuple[int, np.ndarray]]
) -> list[Scene]:
    """A scene of every place, by the codecs of SHOWN that have records of it."""
    return [_scene(runs, records, data, i, box) for i, box in places]


def _scene(
    runs: list[Run], records: list[dict], data: RoiDataset, i: int, box: np.ndarray
) -> Scene:
    image, boxes, _ = data[i]
    original, boxes, name = image.permute(1, 2, 0).numpy(), boxes.numpy(), data.samples[i].id
    mine = [r for r in records if r["image"] == name]
    names = [
        next((c for c in group if any(r["codec"] == c for r in mine)), None) for group in SHOWN
    ]
    by_codec = {codec: [r for r in mine if r["codec"] == codec] for codec in names if codec}
    for codec in by_codec.keys() & {"roi_vbr"}:  # of several the first
        by_codec[codec] = [
            r for r in by_codec[codec] if run_name(r) == run_name(by_codec[codec][0])
        ]
    fixed = closest_in_bytes(
        mine, name, [c for c in by_codec if c in CODEC_NAMES and c != "roi_vbr"]
    )
    least = max(
        (
            min(curve[0]["bytes"] for curve in _roi_curves(choices).values())
            for choices in by_codec.values()
        ),
        default=0,
    )
    goal = (
        float(np.median([r["bytes"] for r in fixed]))
        if fixed
        else max(GOAL * original.shape[0] * original.shape[1] / 8, least)
    )
    mask, panels = roi_mask(boxes, *original.shape[:2]), [Panel("original", None, original)]
    for codec, choices in by_codec.items():
        record = next((r for r in fixed if r["codec"] == codec), None)
        strength, stream, decoded = (
            _again(runs, record, original, boxes)
            if record
            else _at_bytes(runs, choices, goal, original, boxes)
        )
        _, *psnrs = (
            psnr_of(*error) for error in squared_errors(original, decoded, regions(mask)).values()
        )
        panels.append(Panel(codec, strength, decoded, stream, *psnrs, record or choices[0]))
    return Scene(name, box, boxes, panels)


def closest_in_bytes(records: list[dict], image: str, codecs: list[str]) -> list[dict]:
    """For each codec its record of `image`, chosen so that the bytes of all are near to each other."""
    choices = [
        [r for r in records if r["image"] == image and r["codec"] == codec] for codec in codecs
    ]
    goals = [r["bytes"] for r in min(choices, key=len, default=[])]
    rows = [
        [min(choice, key=lambda r: abs(math.log(r["bytes"] / goal))) for choice in choices]
        for goal in goals
    ]
    return min(
        rows, key=lambda rs: max(r["bytes"] for r in rs) / min(r["bytes"] for r in rs), default=[]
    )


def _again(
    runs: list[Run], record: dict, original: np.ndarray, boxes: np.ndarray
) -> tuple[float, bytes, np.ndarray]:
    """α, stream and decoded picture of a run's record, coded once more."""
    codec, setting = _codec(runs, record), record["setting"]
    stream = codec.encode(original, boxes, lmbda=setting["lmbda"], alpha=setting["alpha"])
    return setting["alpha"], stream, codec.decode(stream)


def _at_bytes(
    runs: list[Run], choices: list[dict], goal: float, original: np.ndarray, boxes: np.ndarray
) -> tuple[float, bytes, np.ndarray]:
    """ROI strength, stream and decoded picture of a codec that has any rate, at about `goal` bytes; choices: its records of this picture."""
    strength, curve = _strength(choices, goal)
    if choices[0]["codec"] in CODEC_NAMES:
        codec = _codec(runs, choices[0])
        stream = _within(codec, original, boxes, strength, math.ceil(goal))
        return strength, stream, codec.decode(stream)
    codec, _, preset = choices[0]["codec"].partition(" ")
    quality = float(
        np.interp(
            math.log(goal),
            *np.array([[math.log(r["bytes"]), r["setting"]["quality"]] for r in curve]).T,
        )
    )
    stream = conventional.encode(original, codec, round(quality, 2), boxes, strength, preset)
    return strength, stream, conventional.decode(stream, codec)


def _within(
    codec: Codec, original: np.ndarray, boxes: np.ndarray, alpha: float, limit: int
) -> bytes:
    """A stream of at most `limit` bytes, or at λ 0.0004 where even that takes more."""
    try:
        return codec.encode(original, boxes, alpha=alpha, max_bytes=limit)
    except ValueError:
        return codec.encode(original, boxes, alpha=alpha, lmbda=LMBDA_MIN)


def allocations(runs: list[Run], scene: Scene) -> dict[tuple[str, float], np.ndarray]:
    """(codec, ROI strength) → bits of each 16x16 cell of a scene's streams: roi_vbr's and, at as many bytes, its uniform mode's; else all models'."""
    original, trained = (
        scene.panels[0].picture,
        [panel for panel in scene.panels if panel.codec in CODEC_NAMES],
    )
    found = {}
    for panel in [p for p in trained if p.codec == "roi_vbr"] or trained:
        codec = _codec(runs, panel.record)
        if panel.codec == "roi_vbr" and panel.strength != UNIFORM:
            stream = _within(codec, original, scene.boxes, UNIFORM, len(panel.stream))
            found[panel.codec, UNIFORM] = codec.cell_bits(original, stream)
        found[panel.codec, panel.strength] = codec.cell_bits(original, panel.stream)
    return found


def _strength(choices: list[dict], goal: float) -> tuple[float, list[dict]]:
    """The ROI strength for `goal` bytes, of those that get as low, and its records by rising bytes."""
    curves = _curves(choices)
    curves = {s: curve for s, curve in curves.items() if curve[0]["bytes"] <= goal} or curves
    at = {
        s: [
            np.interp(goal, [r["bytes"] for r in c], [_db(r, name) for r in c])
            for name in ("roi_psnr", "bg_psnr")
        ]
        for s, c in curves.items()
    }
    floor, strong = (
        max(bg for _, bg in at.values()) - BUDGET,
        _roi_curves(choices).keys() & at.keys() or at.keys(),
    )
    best = max(
        (s for s in strong if at[s][1] >= floor),
        key=lambda s: at[s][0],
        default=max(strong, key=lambda s: at[s][1]),
    )
    return best, curves[best]


def _curves(choices: list[dict]) -> dict[float | None, list[dict]]:
    """ROI strength → its records by rising bytes."""
    curves: dict[float | None, list[dict]] = {}
    for record in sorted(choices, key=lambda r: r["bytes"]):
        curves.setdefault(
            record["setting"].get("alpha", record["setting"].get("qoffset")), []
        ).append(record)
    return curves


def _roi_curves(choices: list[dict]) -> dict[float | None, list[dict]]:
    """As `_curves`, without the uniform mode of a codec that has another."""
    curves = _curves(choices)
    return {s: curve for s, curve in curves.items() if s not in (UNIFORM, 0.0)} or curves


def _db(record: dict, name: str) -> float:
    """A PSNR of a record, the whole picture's where the set is empty; one without error ranks as if a single value were off by 1."""
    part = name.removesuffix("psnr")
    part = part if record[f"{part}count"] else ""
    return psnr_of(max(record[f"{part}sse"], 1.0), record[f"{part}count"])


def _codec(runs: list[Run], record: dict) -> Codec:
    if "weights" in record:
        return load_codec(weights_file(record["weights"]))
    return load_codec(next(run for run in runs if run.folder.name == record["run"]).weights)
