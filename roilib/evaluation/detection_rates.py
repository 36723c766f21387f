"""Detection against rate: what a detector still finds on decoded pictures, anchored at the uncompressed ones.

    records with detections ──► points (AP and bpp of all pictures and of resamples) ──► detection_table, detection_at_rates

Losses are shares of the uncompressed AP in per cent, with 95 % bootstrap intervals over pictures, the same pictures for both. The file
`detections.json.gz` holds all that this needs: per picture the number of objects, per detection its score, group and the IoU thresholds it hits.
"""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from roilib.codecs.registry import CODEC_NAMES
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
from roilib.evaluation.detection import average_precisions
from roilib.evaluation.evaluate import UNCOMPRESSED
from roilib.utils.files import replacing

FILE = "detections.json.gz"
MEASURES = ("agnostic_ap50", "map50", "map50_95")  # those whose loss is reported


def apart(records: list[dict]) -> tuple[list[dict], list[dict]]:
    """Records without their detections, and what `points` needs of them: one each, uncompressed pictures included."""
    names = ("image", "codec", "setting", "run", "weights", "bpp", "objects", "detections")
    found = [{name: r[name] for name in names if name in r} for r in records if "detections" in r]
    return [
        {k: v for k, v in r.items() if k != "detections"}
        for r in records
        if r["codec"] != UNCOMPRESSED
    ], found


def write_detections(folder: Path, found: list[dict]) -> Path:
    """Write what `apart` found as `folder/detections.json.gz`, the same bytes each time."""
    path = Path(folder) / FILE
    with replacing(path) as temporary:
        temporary.write_bytes(
            gzip.compress(json.dumps(found, separators=(",", ":")).encode(), mtime=0)
        )
    return path


def read_detections(folder: Path) -> list[dict]:
    """What `write_detections` wrote. Raises ValueError naming the file."""
    path = Path(folder) / FILE
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run notebook 05 with a detector first") from None
    except (OSError, EOFError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not detections ({error})") from None


@dataclass(frozen=True, eq=False)
class Point:
    """A codec's setting (one of its records) seen by a detector: bpp (1 + B,) and APs by name, (1 + B,) each; NaN bpp for uncompressed pictures."""

    detector: str
    record: dict
    bpp: np.ndarray
    precisions: dict[str, np.ndarray]
    pictures: int
    objects: int

    def losses(self, original: "Point") -> dict[str, np.ndarray]:
        """Per cent of the uncompressed AP that is lost, of each of MEASURES; NaN where nothing was found to lose."""
        whole = {
            name: np.where(original.precisions[name] > 0, original.precisions[name], np.nan)
            for name in MEASURES
            if name in self.precisions
        }
        return {name: 100 * (1 - self.precisions[name] / value) for name, value in whole.items()}


def points(found: list[dict], count: int = COUNT, seed: int = SEED) -> list[Point]:
    """Every detector's points, the uncompressed pictures first, then by codec, strength and rate."""
    originals = [r for r in found if r["codec"] == UNCOMPRESSED]
    pictures = picture_ids(originals)
    weights = resamples(len(pictures), count, seed) if pictures else np.zeros((1, 0))
    originals = sorted(originals, key=lambda r: r["image"])
    grouped = group([r for r in found if r["codec"] != UNCOMPRESSED], pictures)
    settings = (
        [
            originals,
            *(
                records
                for _, members in sorted(grouped.items())
                for _, records in sorted(members.items())
            ),
        ]
        if originals
        else []
    )
    counts = [r["objects"] for r in originals]
    result = []
    for detector in originals[0]["detections"] if originals else ():
        for records in settings:
            bpp = weights @ np.array([r.get("bpp", np.nan) for r in records]) / weights.sum(1)
            precisions = average_precisions(
                [r["detections"][detector] for r in records], counts, weights
            )
            result.append(
                Point(
                    detector,
                    records[0],
                    bpp,
                    precisions,
                    len(pictures),
                    sum(count[0] for count in counts),
                )
            )
    return result


def _originals(found: Sequence[Point]) -> dict[str, Point]:
    return {point.detector: point for point in found if point.record["codec"] == UNCOMPRESSED}


def detection_table(found: Sequence[Point]) -> pd.DataFrame:
    """One row a detector and point, the uncompressed pictures included: APs, and their losses with intervals."""
    originals, rows = _originals(found), []
    for point in found:
        where = (
            {"detector": point.detector}
            | _who(point.record)
            | point.record["setting"]
            | {"bpp": point.bpp[0]}
        )
        values = {name: rows_[0] for name, rows_ in point.precisions.items()}
        losses = [
            with_interval(f"{name}_loss", loss)
            for name, loss in point.losses(originals[point.detector]).items()
        ]
        rows.append(
            where
            | values
            | {k: v for loss in losses for k, v in loss.items()}
            | {"pictures": point.pictures, "objects": point.objects}
        )
    return pd.DataFrame(rows)


def detection_at_rates(found: Sequence[Point], rates: Sequence[float] = (0.15,)) -> pd.DataFrame:
    """What each curve (a codec at one ROI strength) detects at given bpp, linear in log bpp between its points; no row beyond its ends."""
    originals, curves, rows = _originals(found), {}, []
    for point in found:
        if point.record["codec"] != UNCOMPRESSED:
            curves.setdefault((point.detector, *identity(point.record)), []).append(point)
    for (detector, codec, run, strength, *_), members in curves.items():
        members = sorted(members, key=lambda point: point.bpp[0])
        for rate in rates:
            at = {
                name: _at(members, name, rate) for name in MEASURES if name in members[0].precisions
            }
            if np.isfinite(at["agnostic_ap50"][0]):
                here = replace(members[0], precisions=at)
                row = {
                    "detector": detector,
                    "codec": codec,
                    "label": CODEC_NAMES.get(codec, codec),
                    "run": run,
                    "strength": strength,
                    "at_bpp": rate,
                }
                for name, loss in here.losses(originals[detector]).items():
                    row |= {name: at[name][0]} | with_interval(f"{name}_loss", loss)
                rows.append(row | {"pictures": here.pictures})
    return pd.DataFrame(rows)


def _at(members: list[Point], name: str, rate: float) -> np.ndarray:
    """(1 + B,) a curve's AP at a rate, NaN beyond its ends."""
    bpp, values = (
        np.stack(v, 1) for v in ([p.bpp for p in members], [p.precisions[name] for p in members])
    )
    return np.array(
        [
            np.interp(np.log(rate), np.log(x), y, left=np.nan, right=np.nan)
            for x, y in zip(bpp, values, strict=True)
        ]
    )


def _who(record: dict) -> dict:
    codec = record["codec"]
    return {"codec": codec, "label": CODEC_NAMES.get(codec, codec), "run": run_name(record)}
