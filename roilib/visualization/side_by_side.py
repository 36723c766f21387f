"""Test pictures decoded again by several codecs at equal bytes, for figures that show pictures.

    the runs of one rate ──► bytes ──► the other codecs' streams of at most these ──► pictures

A codec with several ROI strengths shows the measured one whose background loss over all pictures is
nearest to 1 dB (nearest_strength), of those that get as low in bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from roilib.codecs.codec import Codec
from roilib.codecs.conventional import ConventionalCodec
from roilib.codecs.protocol import DoesNotFit, ImageCodec
from roilib.codecs.registry import ANY_RATE, is_ours, uniform_strength
from roilib.codecs.roic import load_codec
from roilib.datasets.dataset import RoiDataset
from roilib.engines.runs import Run
from roilib.evaluation.bootstrap import Curve, curves, identity, run_name
from roilib.evaluation.comparisons.families import LOSSES, families
from roilib.evaluation.comparisons.paper_costs import ZERO_HOOKS
from roilib.evaluation.comparisons.roi_modes import trade_table
from roilib.evaluation.evaluate import evaluate, finished_runs, weights_file
from roilib.metrics import psnr_of, regions, squared_errors
from roilib.roi import LMBDA_MIN, roi_mask

SAME = ("dataset", "data_root", "N", "M", "metric")  # parameters of runs that `arms` compares
PLAIN = "plain loss"  # such a model with α 0.5 stands where the baseline stands
GOAL_BPP = 0.2  # where no run of one rate sets the bytes; more if a codec's ROI mode starts higher
SHOWN = (  # in this order; of several codecs in a group the first that was measured
    ANY_RATE,
    ("x265 slow", "x265 medium", "x264 slow", "x264 medium"),
    ("hyperprior_eval_with_objs", "hyperprior", PLAIN),
    (ZERO_HOOKS,),
    ("hyperprior_with_obj_features",),
    ("hyperprior_with_obj_features (mask_hooks, decoder_roi)",),
)


@dataclass(frozen=True)
class Panel:
    """A picture, uint8 (H, W, 3); if decoded, with its stream, PSNRs and a record of the codec."""

    codec: str
    strength: float | None
    picture: np.ndarray
    stream: bytes | None = None
    roi_psnr: float | None = None
    bg_psnr: float | None = None
    record: dict | None = None


@dataclass(frozen=True)
class Scene:
    """A test picture: id, the box to enlarge (4,), all boxes (K, 4), panels, the original first."""

    image: str
    box: np.ndarray
    boxes: np.ndarray
    panels: list[Panel]


def choose_boxes(data: RoiDataset, count: int = 2) -> list[tuple[int, np.ndarray]]:
    """Choose `count` objects in different pictures: (picture, box) of each.

    These are the largest of each class, most frequent class first, then the largest of any; objects
    that the border does not cut come first. Without any object the first picture is the box.
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


def arms(run: Run, data: RoiDataset, place: int, box: np.ndarray) -> Scene:
    """Make a scene of picture `place` by every finished run beside `run`, on SAME parameters."""
    wanted = {name: getattr(run.parameters, name) for name in SAME}
    runs = [
        other
        for other in finished_runs(run.parameters.logdir, needed=False)
        if {name: getattr(other.parameters, name) for name in SAME} == wanted
    ]
    one = RoiDataset([data.samples[place]], data.classes)
    records = [
        record | {"run": other.folder.name}
        for other in runs
        for record, _ in evaluate(other.codec(), one)
    ]
    return compare(runs, records, one, [(0, box)])[0]


def compare(
    runs: list[Run], records: list[dict], data: RoiDataset, places: Sequence[tuple[int, np.ndarray]]
) -> list[Scene]:
    """Make a scene of every place, by the codecs of SHOWN that have records of it."""
    trade = trade_table(families(records, 0)) if records else pd.DataFrame()
    return [_scene(runs, records, trade, data, i, box) for i, box in places]


def _scene(
    runs: list[Run],
    records: list[dict],
    trade: pd.DataFrame,
    data: RoiDataset,
    i: int,
    box: np.ndarray,
) -> Scene:
    image, boxes, _ = data[i]
    original, boxes, name = image.permute(1, 2, 0).numpy(), boxes.numpy(), data.samples[i].id
    by_codec = _shown([r for r in records if r["image"] == name])
    one_rate = {c: rs for c, rs in by_codec.items() if is_one_rate(c)}
    fixed = dict(zip(one_rate, closest_in_bytes(list(one_rate.values())), strict=True))
    pixels = original.shape[0] * original.shape[1]
    lowest = [min(c.bpp[0, 0] for c in _roi_curves(rs)) for rs in by_codec.values()]
    goal = max([GOAL_BPP, *lowest]) * pixels / 8
    if fixed:
        goal = float(np.median([r["bytes"] for r in fixed.values()]))
    panels, mask = [Panel("original", None, original)], roi_mask(boxes, *original.shape[:2])
    for codec_name, choices in by_codec.items():
        record = fixed.get(codec_name)
        codec = _codec(runs, record or choices[0])
        if record:
            setting = {knob: record["setting"][knob] for knob in ("lmbda", "alpha")}
            strength, stream = setting["alpha"], codec.encode(original, boxes, **setting)
        else:
            strength = strength_at(choices, 8 * goal / pixels, trade)
            stream = _within(codec, original, boxes, strength, math.ceil(goal))
        decoded = codec.decode(stream)
        errors = squared_errors(original, decoded, regions(mask))
        psnrs = [psnr_of(*errors[part]) for part in ("roi_", "bg_")]
        panels.append(Panel(codec_name, strength, decoded, stream, *psnrs, record or choices[0]))
    return Scene(name, box, boxes, panels)


def is_one_rate(codec: str) -> bool:
    """Return whether a codec of a panel has one rate and one ROI strength a run."""
    return codec == PLAIN or (is_ours(codec) and codec not in ANY_RATE)


def _shown(records: list[dict]) -> dict[str, list[dict]]:
    """Records of one picture by the codecs of SHOWN; of several roi_vbr those of the first.

    Of models of one rate only those trained for the ROI are shown, but for the baseline's place.
    """
    by_codec: dict[str, list[dict]] = {}
    for record in records:
        name, alpha = record["codec"], record["setting"].get("alpha")
        if name == ZERO_HOOKS and alpha == uniform_strength(name):
            name = PLAIN
        mine = by_codec.setdefault(name, [])
        if name not in ANY_RATE or not mine or run_name(record) == run_name(mine[0]):
            mine.append(record)
    for name, mine in by_codec.items():
        if is_one_rate(name):
            uniform = uniform_strength(ZERO_HOOKS)
            by_codec[name] = [r for r in mine if r["setting"]["alpha"] != uniform] or mine
    names = (next((c for c in group if c in by_codec), None) for group in SHOWN)
    return {name: by_codec[name] for name in names if name}


def closest_in_bytes(choices: list[list[dict]]) -> list[dict]:
    """Choose one record of each list so that the bytes of all are near to each other."""

    def spread(chosen: list[dict]) -> float:
        return max(r["bytes"] for r in chosen) / min(r["bytes"] for r in chosen)

    goals = [r["bytes"] for r in min(choices, key=len, default=[])]
    rows = [
        [min(choice, key=lambda r: abs(math.log(r["bytes"] / goal))) for choice in choices]
        for goal in goals
    ]
    return min(rows, key=spread, default=[])


def strength_at(choices: list[dict], bpp: float, trade: pd.DataFrame) -> float:
    """Choose a codec's ROI strength for a rate, from its records of one picture.

    It is the strength nearest to 1 dB of background loss, of those that get as low; the mildest of
    them if no loss is known. trade: of `trade_table`.
    """
    found, (codec, run, *_) = curves(choices, 0), identity(choices[0])
    found = [c for c in found if c.bpp[0, 0] <= bpp] or found
    found = [c for c in found if not c.uniform] or found
    losses = {}
    if len(trade):
        known = trade[(trade["codec"] == codec) & (trade["run"] == run)]
        losses = dict(zip(known["strength"], known["bg_loss"], strict=True))

    def distance(curve: Curve) -> tuple[float, float]:
        off = abs(losses.get(curve.strength, math.nan) - LOSSES[-1])
        mildness = abs(curve.strength - uniform_strength(codec))
        return (math.inf if math.isnan(off) else off), mildness

    return min(found, key=distance).strength


def _roi_curves(choices: list[dict]) -> list[Curve]:
    """A codec's curves of one picture, without the uniform one if it has another."""
    found = curves(choices, 0)
    return [c for c in found if not c.uniform] or found


def _within(
    codec: ImageCodec, original: np.ndarray, boxes: np.ndarray, strength: float, max_bytes: int
) -> bytes:
    """A stream of at most `max_bytes`, or of the worst quality if even that takes more."""
    if isinstance(codec, Codec):
        knob, worst = {"alpha": strength}, {"lmbda": LMBDA_MIN}
    else:
        knob = {"qoffset": strength}
        worst = {"quality": codec.qualities[0]}
    try:
        return codec.encode_within(original, boxes, max_bytes, **knob)
    except DoesNotFit:
        return codec.encode(original, boxes, **knob, **worst)


def allocations(runs: list[Run], scene: Scene) -> dict[tuple[str, float], np.ndarray]:
    """Bits of each 16x16 cell of a scene's streams: (codec, ROI strength) → (h, w).

    They are roi_vbr's and, at as many bytes, its uniform mode's; without a roi_vbr all models'.
    """
    original = scene.panels[0].picture
    trained = [panel for panel in scene.panels if is_ours(panel.codec)]
    found = {}
    for panel in [p for p in trained if p.codec in ANY_RATE] or trained:
        codec, uniform = _codec(runs, panel.record), uniform_strength(panel.codec)
        if panel.codec in ANY_RATE and panel.strength != uniform:
            stream = _within(codec, original, scene.boxes, uniform, len(panel.stream))
            found[panel.codec, uniform] = codec.cell_bits(original, stream)
        found[panel.codec, panel.strength] = codec.cell_bits(original, panel.stream)
    return found


def _codec(runs: list[Run], record: dict) -> ImageCodec:
    """The codec that made a record."""
    if "weights" in record:
        return load_codec(weights_file(record["weights"]))
    if "run" in record:
        return next(run for run in runs if run.folder.name == record["run"]).codec()
    return ConventionalCodec(record["codec"])
