"""Detection against rate: the AP that decoded pictures lose against uncompressed ones.

    records with detections ──► points: AP and bpp, of resamples too ──► tables

Losses are shares of the uncompressed AP in per cent, with 95 % bootstrap intervals over pictures,
the same pictures for both. The file `detections.json.gz` holds the input: the number of objects
of each picture, and the `detection.scored` rows of its detections.
"""

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from roilib.codecs.registry import codec_label
from roilib.evaluation.bootstrap import (
    COUNT,
    SEED,
    group,
    identity,
    picture_ids,
    resamples,
    run_name,
    with_interval,
)
from roilib.evaluation.comparisons.families import LOSSES, Family
from roilib.evaluation.detection import average_precisions
from roilib.evaluation.evaluate import UNCOMPRESSED
from roilib.utils.files import replacing

FILE = "detections.json.gz"
AP_NAMES = ("agnostic_ap50", "map50", "map50_95")  # APs whose loss is reported


def split_detections(records: list[dict]) -> tuple[list[dict], list[dict]]:
    """Split records into records without detections and the detections that `points` needs.

    Uncompressed pictures are in the second list only.
    """
    names = ("image", "codec", "setting", "run", "weights", "bpp", "objects", "detections")
    found = [{name: r[name] for name in names if name in r} for r in records if "detections" in r]
    coded = (r for r in records if r["codec"] != UNCOMPRESSED)
    return [{k: v for k, v in r.items() if k != "detections"} for r in coded], found


def write_detections(folder: Path, found: list[dict]) -> Path:
    """Write the second list of `split_detections` as `folder/detections.json.gz`.

    The same list gives the same bytes. Returns the path.
    """
    path, content = Path(folder) / FILE, json.dumps(found, separators=(",", ":"))
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(content.encode(), mtime=0))
    return path


def read_detections(folder: Path) -> list[dict]:
    """Read what `write_detections` wrote. Raises ValueError naming the file."""
    path = Path(folder) / FILE
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run notebook 05 with a detector first") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: not detections ({error})") from None


@dataclass(frozen=True, eq=False)
class Point:
    """One setting of a codec (given by one of its records), measured by a detector.

    bpp: (1 + B,), NaN for uncompressed pictures. precisions: APs by name, (1 + B,) each.
    """

    detector: str
    record: dict
    bpp: np.ndarray
    precisions: dict[str, np.ndarray]
    pictures: int
    objects: int

    def losses(self, original: "Point") -> dict[str, np.ndarray]:
        """Per cent of the uncompressed AP that is lost, of each of AP_NAMES; NaN for an AP of 0."""
        whole = {
            name: np.where(original.precisions[name] > 0, original.precisions[name], np.nan)
            for name in AP_NAMES
            if name in self.precisions
        }
        return {name: 100 * (1 - self.precisions[name] / value) for name, value in whole.items()}


def points(found: list[dict], count: int = COUNT, seed: int = SEED) -> list[Point]:
    """Every detector's points: the uncompressed pictures, then by codec, strength and rate."""
    originals = [r for r in found if r["codec"] == UNCOMPRESSED]
    pictures = picture_ids(originals)
    weights = resamples(len(pictures), count, seed) if pictures else np.zeros((1, 0))
    originals = sorted(originals, key=lambda r: r["image"])
    grouped = group([r for r in found if r["codec"] != UNCOMPRESSED], pictures)
    settings = [originals] if originals else []
    for _, members in sorted(grouped.items() if originals else ()):
        settings += [records for _, records in sorted(members.items())]
    counts = [r["objects"] for r in originals]
    result = []
    for detector in originals[0]["detections"] if originals else ():
        for records in settings:
            bpp = weights @ np.array([r.get("bpp", np.nan) for r in records]) / weights.sum(1)
            precisions = average_precisions(
                [r["detections"][detector] for r in records], counts, weights
            )
            sizes = len(pictures), sum(count[0] for count in counts)
            result.append(Point(detector, records[0], bpp, precisions, *sizes))
    return result


def _originals(found: Sequence[Point]) -> dict[str, Point]:
    return {point.detector: point for point in found if point.record["codec"] == UNCOMPRESSED}


def detection_table(found: Sequence[Point]) -> pd.DataFrame:
    """One row per detector and point, uncompressed pictures too: APs, losses with intervals."""
    originals, rows = _originals(found), []
    for point in found:
        row = {"detector": point.detector} | _who(point.record) | point.record["setting"]
        row |= {"bpp": point.bpp[0]} | {name: ap[0] for name, ap in point.precisions.items()}
        for name, loss in point.losses(originals[point.detector]).items():
            row |= with_interval(f"{name}_loss", loss)
        rows.append(row | {"pictures": point.pictures, "objects": point.objects})
    return pd.DataFrame(rows)


def detection_at_rates(found: Sequence[Point], rates: Sequence[float] = (0.15,)) -> pd.DataFrame:
    """APs of a detector at given bpp, one row per curve: a codec at one ROI strength.

    Curves are linear in log bpp; there is no row beyond their ends.
    """
    originals, rows = _originals(found), []
    for (detector, codec, run, strength, *_), members in _curves(found).items():
        for rate in rates:
            here = _at_rate(members, rate)
            if not np.isfinite(here.precisions["agnostic_ap50"][0]):
                continue
            row = {"detector": detector, "codec": codec, "label": codec_label(codec)}
            row |= {"run": run, "strength": strength, "at_bpp": rate}
            for name, loss in here.losses(originals[detector]).items():
                row |= {name: here.precisions[name][0]} | with_interval(f"{name}_loss", loss)
            rows.append(row | {"pictures": here.pictures})
    return pd.DataFrame(rows)


def detection_at_losses(
    found: Sequence[Point],
    codecs: Sequence[Family],
    rates: Sequence[float] = (0.15,),
    losses: Sequence[float] = LOSSES,
) -> pd.DataFrame:
    """The AP that ROI modes lose at given bpp and equal background loss, with intervals.

    codecs: those of `families`, for the same pictures and as many resamples. Values are
    interpolated along a codec's strengths, like ROI gains.
    """
    originals, curves, rows = _originals(found), _curves(found), []
    for (detector, original), codec, rate in product(originals.items(), codecs, rates):
        keys = [(detector, c.codec, c.run, c.strength, c.uniform, c.trained) for c in codec.members]
        if not codec.has_roi or not all(key in curves for key in keys):
            continue
        lost = [_at_rate(curves[key], rate).losses(original) for key in keys]
        who = codec.uniform
        for loss in losses:
            row = {"detector": detector, "codec": who.codec, "label": who.label, "run": who.run}
            row |= {"strength": codec.strength_at(loss), "bg_loss": loss, "at_bpp": rate}
            for name in lost[0]:
                values = codec.at_loss(loss, [member[name] for member in lost])
                row |= with_interval(f"{name}_loss", values)
            rows.append(row | {"pictures": original.pictures})
    return pd.DataFrame(rows)


def _curves(found: Sequence[Point]) -> dict[tuple, list[Point]]:
    """(detector, *identity) of a codec at one ROI strength → its points by rising rate."""
    curves: dict[tuple, list[Point]] = {}
    for point in found:
        if point.record["codec"] != UNCOMPRESSED:
            curves.setdefault((point.detector, *identity(point.record)), []).append(point)
    return {key: sorted(members, key=lambda p: p.bpp[0]) for key, members in curves.items()}


def _at_rate(members: list[Point], rate: float) -> Point:
    """A point between those of a curve, at a rate; its APs are NaN beyond the curve's ends."""
    names = [name for name in AP_NAMES if name in members[0].precisions]
    return replace(members[0], precisions={name: _at(members, name, rate) for name in names})


def _at(members: list[Point], name: str, rate: float) -> np.ndarray:
    """(1 + B,) a curve's AP at a rate, NaN beyond its ends."""
    bpp = np.stack([p.bpp for p in members], 1)
    values = np.stack([p.precisions[name] for p in members], 1)
    ends = {"left": np.nan, "right": np.nan}
    return np.array(
        [np.interp(np.log(rate), np.log(x), y, **ends) for x, y in zip(bpp, values, strict=True)]
    )


def _who(record: dict) -> dict:
    codec = record["codec"]
    return {"codec": codec, "label": codec_label(codec), "run": run_name(record)}
