"""Bytes that one codec needs for the ROI and the background of another's best points."""

import numpy as np
import pandas as pd

from roilib.evaluation.bd_rate import interpolate, pchip_slopes
from roilib.evaluation.bootstrap import Curve, with_interval
from roilib.evaluation.comparisons.families import MIN_KNOTS, Family, pairs, who

PSNR = "psnr"
HULL_BPP = (0.1, 0.5)  # rates of the points that `byte_ratio_tables` compares


def byte_ratio_tables(
    codecs: list[Family], bpp: tuple[float, float] = HULL_BPP, measure: str = PSNR
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Bytes that a trained codec needs to be at least as good inside and outside the ROI.

    Returns one row per pair of codecs, and one per point of the other's hull with a rate in `bpp`.
    `bpp_ours` is the least rate at which one of our strengths, its curve interpolated in log bpp by
    PCHIP, reaches the point's ROI and background PSNR. A pair's `ratio` is the geometric mean over
    the `reached` points of `hull`. Resamples keep the points. measure: PSNR (pooled) or YUV
    (means over pictures); both tables are empty where records lack it.
    """
    summary, points = [], []
    names = _names(measure)
    for theirs, ours in pairs(codecs):
        if any(name not in c.quality for f in (theirs, ours) for c in f.members for name in names):
            continue
        places = hull(theirs, bpp, measure)
        if not places or max(curve.bpp.shape[1] for curve in ours.members) < MIN_KNOTS:
            continue
        goal = {name: _points(theirs, places, name) for name in ("bpp", *names)}
        least = np.fmin.reduce([_bpp_reaching(curve, goal, names) for curve in ours.members])
        ratios = least / goal["bpp"]
        ratios[~np.isfinite(ratios)] = np.nan
        points += [
            _point_row(
                theirs, ours, place, ratios[:, k], {n: v[0, k] for n, v in goal.items()}, measure
            )
            for k, place in enumerate(places)
        ]
        reached = np.isfinite(ratios[0])
        mean = np.full(len(ratios), np.nan)
        if reached.any():
            mean = np.exp(np.log(ratios[:, reached]).mean(1))
        summary.append(
            {
                name if key == "codec" else f"{name}_{key}": value
                for name, codec in (("theirs", theirs), ("ours", ours))
                for key, value in who(codec.members[0]).items()
                if key != "strength"
            }
            | with_interval("ratio", mean, "low", "high")
            | {"reached": int(reached.sum()), "hull": len(places)}
            | {"bpp_low": bpp[0], "bpp_high": bpp[1], "pictures": ours.members[0].pictures}
        )
    return pd.DataFrame(summary), pd.DataFrame(points)


def _names(measure: str) -> tuple[str, str]:
    """Return the names of curves' qualities of ROI and background."""
    return ("roi_", "bg_") if measure == PSNR else (f"roi_{measure}", f"bg_{measure}")


def hull(codec: Family, bpp: tuple[float, float], measure: str = PSNR) -> list[tuple[int, int]]:
    """Find a codec's undominated points within a range of rates: (curve, point), by rate.

    No other point of the codec has at most the rate and at least both PSNRs.
    """
    places = [(i, k) for i, curve in enumerate(codec.members) for k in range(curve.bpp.shape[1])]
    columns = [_points(codec, places, name)[0] for name in ("bpp", *_names(measure))]
    values = np.stack(columns, 1) * (-1, 1, 1)
    better = (values[None] >= values[:, None]).all(2) & (values[None] != values[:, None]).any(2)
    return [
        places[k]
        for k in np.argsort(-values[:, 0])
        if not better[k].any() and bpp[0] <= -values[k, 0] <= bpp[1]
    ]


def _points(codec: Family, places: list[tuple[int, int]], name: str) -> np.ndarray:
    """(1 + B, len(places)) bpp or PSNR of points."""
    columns = [
        codec.members[i].bpp if name == "bpp" else codec.members[i].quality[name] for i, _ in places
    ]
    return np.stack([column[:, k] for column, (_, k) in zip(columns, places, strict=True)], 1)


def _point_row(
    theirs: Family,
    ours: Family,
    place: tuple[int, int],
    ratio: np.ndarray,
    goal: dict[str, float],
    measure: str,
) -> dict:
    curve, own = theirs.members[place[0]], ours.members[0]
    roi, background = (goal[name] for name in _names(measure))
    return {
        "theirs": curve.codec,
        "theirs_run": curve.run,
        "ours": own.codec,
        "ours_run": own.run,
        "theirs_strength": curve.strength,
        "theirs_setting": curve.knobs[place[1]],
        "bpp": goal["bpp"],
        f"roi_{measure}": roi,
        f"bg_{measure}": background,
        "bpp_ours": goal["bpp"] * ratio[0],
    } | with_interval("ratio", ratio, "low", "high")


def _bpp_reaching(curve: Curve, goal: dict[str, np.ndarray], names: tuple[str, str]) -> np.ndarray:
    """(1 + B, H): least bpp of a curve that reaches both PSNRs of `goal`; inf beyond its best."""
    least = []
    for part in names:
        bpp, psnr = curve.rising(part)
        if bpp.shape[1] < MIN_KNOTS:
            return np.full(goal["bpp"].shape, np.inf)
        log_bpp = np.log(bpp)
        with np.errstate(all="ignore"):
            inside = np.exp(interpolate(psnr, log_bpp, pchip_slopes(psnr, log_bpp), goal[part]))
        beyond = np.where(goal[part] > psnr[:, -1:], np.inf, inside)
        least.append(np.where(goal[part] <= psnr[:, :1], bpp[:, :1], beyond))
    return np.maximum(*least)
