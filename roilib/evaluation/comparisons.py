"""Codecs compared: BD-rates, ROI gain within a budget of background loss, and byte ratios, all with 95 % bootstrap intervals over pictures.

    curves ──► families (a codec: its uniform curve and its ROI strengths) ──► tables, one row a comparison

Values are bjontegaard's (Akima, roilib.metrics); resamples go through the same interpolation by roilib.evaluation.bd_rate. Where curves have fewer than
6 points or share less than half of the shorter one's range there is no number but a note.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from roilib.evaluation.bd_rate import akima_slopes, evaluate, integrate, pchip_slopes
from roilib.evaluation.bootstrap import MEAN, PARTS, Curve, curves, with_interval
from roilib.metrics import MIN_POINTS, bd_psnr, bd_rate
from roilib.utils.files import read_json

BUDGETS = (0.3, 0.5, 1.0)  # dB of background BD-PSNR
HULL_BPP = (0.1, 0.5)


@dataclass(frozen=True, eq=False)
class Difference:
    """A BD-rate (%) or BD-PSNR (dB): rows[0] the value, the others of resamples, NaN where there is none, and why in `note`."""

    rows: np.ndarray
    overlap: float
    points: int
    note: str


def rate_difference(anchor: Curve, test: Curve, part: str) -> Difference:
    """BD-rate of two curves, over the points of each that are better than all cheaper ones."""
    (rate_a, psnr_a), (rate_t, psnr_t) = anchor.rising(part), test.rising(part)
    value, overlap = bd_rate(
        list(zip(rate_a[0], psnr_a[0], strict=True)), list(zip(rate_t[0], psnr_t[0], strict=True))
    )
    rows = (
        None
        if value is None
        else 100 * np.expm1(_mean_difference(psnr_a, np.log(rate_a), psnr_t, np.log(rate_t)))
    )
    return _difference(value, overlap, min(rate_a.shape[1], rate_t.shape[1]), rows, len(anchor.bpp))


def psnr_difference(anchor: Curve, test: Curve, part: str) -> Difference:
    """BD-PSNR of two curves, over the points that have a PSNR."""
    (rate_a, psnr_a), (rate_t, psnr_t) = anchor.with_psnr(part), test.with_psnr(part)
    value, overlap = bd_psnr(
        list(zip(rate_a[0], psnr_a[0], strict=True)), list(zip(rate_t[0], psnr_t[0], strict=True))
    )
    rows = (
        None if value is None else _mean_difference(np.log(rate_a), psnr_a, np.log(rate_t), psnr_t)
    )
    return _difference(value, overlap, min(rate_a.shape[1], rate_t.shape[1]), rows, len(anchor.bpp))


def _difference(
    value: float | None, overlap: float, points: int, rows: np.ndarray | None, count: int
) -> Difference:
    if value is None:
        note = (
            f"fewer than {MIN_POINTS} points"
            if points < MIN_POINTS
            else "curves share less than half of their range"
        )
        return Difference(np.full(count, np.nan), overlap, points, note)
    rows[0] = value
    return Difference(rows, overlap, points, "")


def _mean_difference(
    x_a: np.ndarray, y_a: np.ndarray, x_t: np.ndarray, y_t: np.ndarray
) -> np.ndarray:
    """Mean of y_t - y_a over the x that both curves (rows) have; NaN where they share none."""
    low, high = np.maximum(x_a[:, 0], x_t[:, 0]), np.minimum(x_a[:, -1], x_t[:, -1])
    with np.errstate(all="ignore"):
        area = [integrate(x, y, akima_slopes(x, y), low, high) for x, y in ((x_t, y_t), (x_a, y_a))]
        return np.where(high > low, (area[0] - area[1]) / (high - low), np.nan)


@dataclass(frozen=True, eq=False)
class Family:
    """One codec's curves: the one that treats all pixels alike (None where it has no such mode), and its other ROI strengths, mildest first."""

    uniform: Curve | None
    strong: list[Curve]

    @property
    def members(self) -> list[Curve]:
        """All curves, the uniform one first."""
        return [*([self.uniform] if self.uniform else []), *self.strong]

    @cached_property
    def gains(self) -> list[tuple[Difference, Difference]]:
        """Of each of `strong` against `uniform`: ROI BD-rate and background BD-PSNR."""
        return [
            (
                rate_difference(self.uniform, curve, "roi_"),
                psnr_difference(self.uniform, curve, "bg_"),
            )
            for curve in self.strong
        ]

    def choose(self, budget: float) -> int:
        """Which of `members` has the best ROI BD-rate among those whose background loss is within `budget`; 0, the uniform one, if none is.

        There is no interpolation between strengths: a codec gets what one of its measured settings reaches.
        """
        gains = [
            0.0,
            *(
                roi.rows[0] if -bg.rows[0] <= budget and not roi.note else np.inf
                for roi, bg in self.gains
            ),
        ]
        return int(np.argmin(gains))


def families(records: list[dict]) -> list[Family]:
    """The codecs of these records: peers, then trained ones, each roi_vbr for itself and at the end."""
    found: dict[tuple[bool, bool, str, str], list[Curve]] = {}
    for curve in curves(records):
        found.setdefault(
            (curve.trained, curve.codec == "roi_vbr", curve.codec, curve.run), []
        ).append(curve)
    by_strength = [
        sorted(members, key=lambda c: abs(c.strength - (0.5 if c.trained else 0)))
        for _, members in sorted(found.items())
    ]
    return [
        Family(next((c for c in members if c.uniform), None), [c for c in members if not c.uniform])
        for members in by_strength
    ]


def pairs(codecs: list[Family]) -> list[tuple[Family, Family]]:
    """What is compared: every codec with every trained one that comes later in the order of `families`."""
    return [(anchor, test) for anchor, test in combinations(codecs, 2) if test.members[0].trained]


def budget_table(codecs: list[Family], budgets: tuple[float, ...] = BUDGETS) -> pd.DataFrame:
    """ROI BD-rate at a limited background loss, of every codec with a uniform mode and another, against its own uniform mode.

    Resamples keep the strength that all pictures chose; how sure it is to stay within the budget is what the loss's own interval says.
    """
    rows = []
    for codec in codecs:
        for budget in budgets if codec.uniform and codec.strong else ():
            i = codec.choose(budget)
            best, nothing = codec.members[i], np.zeros(len(codec.uniform.bpp))
            gain, loss = (
                (codec.gains[i - 1][0].rows, 0.0 - codec.gains[i - 1][1].rows)
                if i
                else (nothing, nothing)
            )
            notes = [
                f"{curve.strength:g}: {d.note}"
                for curve, both in zip(codec.strong, codec.gains, strict=True)
                for d in both
                if d.note
            ]
            row = {
                "codec": best.codec,
                "label": best.label,
                "run": best.run,
                "budget": budget,
                "strength": best.strength,
            }
            row |= with_interval("roi_bd_rate", gain, "low", "high") | with_interval(
                "bg_loss", loss
            )
            points = min(min(roi.points, bg.points) for roi, bg in codec.gains)
            rows.append(
                row
                | {
                    "strengths": len(codec.strong),
                    "points": points,
                    "pictures": best.pictures,
                    "note": "; ".join(dict.fromkeys(notes)),
                }
            )
    return pd.DataFrame(rows)


def bd_table(codecs: list[Family], budgets: tuple[float, ...] = BUDGETS) -> pd.DataFrame:
    """BD-rate and BD-PSNR of `pairs`: both uniform, or at the same α where one of two trained codecs is never so, and both at a budget's best."""
    rows = []
    for anchor, test in pairs(codecs):
        if anchor.uniform and test.uniform:
            rows += [_bd_row(anchor.uniform, test.uniform, None, part) for part in PARTS]
            best = [
                (b, anchor.members[anchor.choose(b)], test.members[test.choose(b)])
                for b in budgets
                if test.strong
            ]
            rows += [
                _bd_row(a, t, budget, part) for budget, a, t in best for part in ("roi_", "bg_")
            ]
        else:
            same = [
                (a, t)
                for a in anchor.members
                for t in test.members
                if a.trained and a.strength == t.strength
            ]
            rows += [_bd_row(a, t, None, part) for a, t in same for part in PARTS]
    return pd.DataFrame(rows)


def published_table(codecs: list[Family], path: str | Path) -> pd.DataFrame:
    """BD-rate and BD-PSNR of trained codecs' uniform modes against a published curve: a JSON file with codec, bpp and psnr, means over the pictures.

    The same pictures must have been measured. Their resamples move our curve only: of the published one just the means are known.
    """
    try:
        content = read_json(Path(path))
        points = sorted(zip(content["bpp"], content["psnr"], strict=True))
        name, (bpp, psnr) = str(content["codec"]), np.array(points, float).T
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a published curve of codec, bpp and psnr ({error})"
        ) from None
    rows = []
    for test in (codec.uniform for codec in codecs if codec.uniform and codec.uniform.trained):
        shape = (len(test.bpp), len(bpp))
        curve = {"bpp": np.broadcast_to(bpp, shape), "psnr": {MEAN: np.broadcast_to(psnr, shape)}}
        anchor = Curve(
            name, "published", 0.0, True, False, tuple(bpp), **curve, pictures=test.pictures
        )
        rows.append(_bd_row(anchor, test, None, MEAN))
    return pd.DataFrame(rows)


def _bd_row(anchor: Curve, test: Curve, budget: float | None, part: str) -> dict:
    rate, psnr = rate_difference(anchor, test, part), psnr_difference(anchor, test, part)
    row = {
        f"{name}{key}": value
        for name, curve in (("anchor", anchor), ("test", test))
        for key, value in _who(curve).items()
    }
    row |= (
        {"budget": budget, "metric": "psnr_mean" if part == MEAN else f"{part}psnr"}
        | with_interval("bd_rate", rate.rows, "low", "high")
        | with_interval("bd_psnr", psnr.rows)
    )
    notes = dict.fromkeys(note for note in (rate.note, psnr.note) if note)
    return row | {
        "overlap": rate.overlap,
        "rate_overlap": psnr.overlap,
        "points": rate.points,
        "pictures": anchor.pictures,
        "note": "; ".join(notes),
    }


def _who(curve: Curve) -> dict:
    return {"": curve.codec, "_label": curve.label, "_run": curve.run, "_strength": curve.strength}


def byte_ratio_tables(
    codecs: list[Family], bpp: tuple[float, float] = HULL_BPP
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How many bytes a trained codec needs to be at least as good as another, inside and outside the ROI: one row a pair, and one a point.

    The points are those of the other's hull with a rate in `bpp`: none of its own has less rate and more of both PSNRs. `bpp_ours` is the least rate
    at which one of our strengths, its curve interpolated in log bpp by PCHIP, reaches the point's ROI and background PSNR. A pair's `ratio` is the
    geometric mean over the points that ours reaches. Resamples keep the points.
    """
    summary, points = [], []
    for theirs, ours in pairs(codecs):
        places = hull(theirs, bpp)
        if not places or max(curve.bpp.shape[1] for curve in ours.members) < 3:
            continue
        goal = {name: _points(theirs, places, name) for name in ("bpp", *PARTS)}
        ratios = (
            np.fmin.reduce([_bpp_reaching(curve, goal) for curve in ours.members]) / goal["bpp"]
        )
        ratios[~np.isfinite(ratios)] = np.nan
        found = [
            _point_row(theirs, ours, place, ratios[:, k], {n: v[0, k] for n, v in goal.items()})
            for k, place in enumerate(places)
        ]
        points += found
        reached = np.isfinite(ratios[0])
        mean = (
            np.exp(np.log(ratios[:, reached]).mean(1))
            if reached.any()
            else np.full(len(ratios), np.nan)
        )
        row = {
            f"{name}{key}": v
            for name, codec in (("theirs", theirs), ("ours", ours))
            for key, v in _who(codec.members[0]).items()
            if key != "_strength"
        }
        row |= with_interval("ratio", mean, "low", "high") | {
            "reached": int(reached.sum()),
            "hull": len(places),
        }
        summary.append(
            row | {"bpp_low": bpp[0], "bpp_high": bpp[1], "pictures": ours.members[0].pictures}
        )
    return pd.DataFrame(summary), pd.DataFrame(points)


def hull(codec: Family, bpp: tuple[float, float]) -> list[tuple[int, int]]:
    """(curve, point) of a codec's points within a range of rates, by rate, of which no other has at most the rate and at least both PSNRs."""
    places = [(i, k) for i, curve in enumerate(codec.members) for k in range(curve.bpp.shape[1])]
    values = np.stack(
        [
            _points(codec, places, name)[0] * sign
            for name, sign in (("bpp", -1), ("roi_", 1), ("bg_", 1))
        ],
        1,
    )
    better = (values[None] >= values[:, None]).all(2) & (values[None] != values[:, None]).any(2)
    kept = [
        k
        for k in np.argsort(-values[:, 0])
        if not better[k].any() and bpp[0] <= -values[k, 0] <= bpp[1]
    ]
    return [places[k] for k in kept]


def _points(codec: Family, places: list[tuple[int, int]], name: str) -> np.ndarray:
    """(1 + B, len(places)) bpp or PSNR of points."""
    return np.stack(
        [
            (codec.members[i].bpp if name == "bpp" else codec.members[i].psnr[name])[:, k]
            for i, k in places
        ],
        1,
    )


def _point_row(
    theirs: Family, ours: Family, place: tuple[int, int], ratio: np.ndarray, goal: dict[str, float]
) -> dict:
    curve, own = theirs.members[place[0]], ours.members[0]
    row = {
        "theirs": curve.codec,
        "theirs_run": curve.run,
        "ours": own.codec,
        "ours_run": own.run,
        "theirs_strength": curve.strength,
    }
    row |= {
        "theirs_setting": curve.knobs[place[1]],
        "bpp": goal["bpp"],
        "roi_psnr": goal["roi_"],
        "bg_psnr": goal["bg_"],
    }
    return row | {"bpp_ours": goal["bpp"] * ratio[0]} | with_interval("ratio", ratio, "low", "high")


def _bpp_reaching(curve: Curve, goal: dict[str, np.ndarray]) -> np.ndarray:
    """(1 + B, H): the least bpp of a curve at which both PSNRs are those of `goal` or more; inf beyond its best."""
    least = []
    for part in ("roi_", "bg_"):
        bpp, psnr = curve.rising(part)
        if bpp.shape[1] < 3:
            return np.full(goal["bpp"].shape, np.inf)
        with np.errstate(all="ignore"):
            inside = np.exp(
                evaluate(psnr, np.log(bpp), pchip_slopes(psnr, np.log(bpp)), goal[part])
            )
        least.append(
            np.where(
                goal[part] <= psnr[:, :1],
                bpp[:, :1],
                np.where(goal[part] > psnr[:, -1:], np.inf, inside),
            )
        )
    return np.maximum(*least)
