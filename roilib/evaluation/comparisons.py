"""Codecs compared: BD-rates, ROI gain at equal background loss, byte ratios, with 95 % intervals.

    curves ──► families (a codec: its uniform curve and its ROI strengths) ──► tables

Values are bjontegaard's; resamples go through the same interpolation. Where curves have fewer than
MIN_POINTS points or share less than half of the shorter one's range, a note replaces the number.

Equal background loss: a ROI mode can always gain by ruining the background. Gains are therefore
read where it loses a given number of dB of background BD-PSNR against its own uniform mode. Between
measured strengths, `at_loss` interpolates; beyond the strongest one there is no number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from roilib.codecs.registry import codec_label
from roilib.evaluation.bd_rate import (
    MIN_POINTS,
    akima_slopes,
    bd_psnr,
    bd_rate,
    integrate,
    interpolate,
    pchip_slopes,
)
from roilib.evaluation.bootstrap import (
    COUNT,
    MEAN,
    MEASURES,
    PARTS,
    Curve,
    curves,
    resamples,
    with_interval,
)
from roilib.metrics import pooled_psnr
from roilib.utils.files import read_json

LOSSES = (0.3, 0.5, 1.0)  # dB of background BD-PSNR at which codecs are compared
HULL_BPP = (0.1, 0.5)  # rates of the points that `byte_ratio_tables` compares
MIN_KNOTS = 3  # points that PCHIP needs
WITH_FEATURES = "hyperprior_with_obj_features"
ZERO_HOOKS = f"{WITH_FEATURES} (zero_hooks)"
OUTSIDE = "no comparable strengths on both sides of this loss"


@dataclass(frozen=True, eq=False)
class Difference:
    """A BD-rate (%) or BD-PSNR (dB) of two curves.

    rows: [0] the value, the others those of resamples; NaN if there is none; `note` says why.
    """

    rows: np.ndarray
    overlap: float
    points: int
    note: str


def rate_difference(anchor: Curve, test: Curve, part: str) -> Difference:
    """BD-rate of two curves, over the points of each that are better than all cheaper ones.

    part: one of PARTS or MEASURES, here and below.
    """
    (rate_a, psnr_a), (rate_t, psnr_t) = anchor.rising(part), test.rising(part)
    value, overlap = bd_rate(_pairs(rate_a, psnr_a), _pairs(rate_t, psnr_t))
    rows = np.full(len(anchor.bpp), np.nan)
    if value is not None:
        logs = _mean_difference(psnr_a, np.log(rate_a), psnr_t, np.log(rate_t))
        rows = 100 * np.expm1(logs)
    return _difference(value, overlap, min(rate_a.shape[1], rate_t.shape[1]), rows)


def psnr_difference(anchor: Curve, test: Curve, part: str) -> Difference:
    """BD-PSNR of two curves, over the points that have this quality."""
    (rate_a, psnr_a), (rate_t, psnr_t) = anchor.known(part), test.known(part)
    value, overlap = bd_psnr(_pairs(rate_a, psnr_a), _pairs(rate_t, psnr_t))
    rows = np.full(len(anchor.bpp), np.nan)
    if value is not None:
        rows = _mean_difference(np.log(rate_a), psnr_a, np.log(rate_t), psnr_t)
    return _difference(value, overlap, min(rate_a.shape[1], rate_t.shape[1]), rows)


def _pairs(rate: np.ndarray, psnr: np.ndarray) -> list[tuple[float, float]]:
    return list(zip(rate[0], psnr[0], strict=True))


def _difference(value: float | None, overlap: float, points: int, rows: np.ndarray) -> Difference:
    if value is not None:
        rows[0] = value
        return Difference(rows, overlap, points, "")
    few, far = f"fewer than {MIN_POINTS} points", "curves share less than half of their range"
    return Difference(rows, overlap, points, few if points < MIN_POINTS else far)


def _mean_difference(
    x_a: np.ndarray, y_a: np.ndarray, x_t: np.ndarray, y_t: np.ndarray
) -> np.ndarray:
    """Mean of y_t - y_a over the x that both curves (rows) have; NaN if they share none."""
    low, high = np.maximum(x_a[:, 0], x_t[:, 0]), np.minimum(x_a[:, -1], x_t[:, -1])
    with np.errstate(all="ignore"):
        area = [integrate(x, y, akima_slopes(x, y), low, high) for x, y in ((x_t, y_t), (x_a, y_a))]
        return np.where(high > low, (area[0] - area[1]) / (high - low), np.nan)


def at_loss(losses: np.ndarray, values: np.ndarray, loss: float) -> np.ndarray:
    """Interpolate values along a codec's strengths to where the background loses `loss` dB.

    losses, values: (S, R), R resamples of S strengths from the uniform mode (loss 0) on. Monotone
    cubics (PCHIP) of the value over the loss, through the strengths that lose more than every
    milder one in row 0. Returns (R,); NaN outside the measured range, and for a resample in which
    the losses do not rise.
    """
    kept, highest = [], -np.inf
    for i, (lost, value) in enumerate(zip(losses[:, 0], values[:, 0], strict=True)):
        if np.isfinite(value) and lost > highest:
            kept, highest = [*kept, i], lost
    if len(kept) < MIN_KNOTS:
        return np.full(losses.shape[1], np.nan)
    x, y = losses[kept].T, values[kept].T
    with np.errstate(all="ignore"):
        return interpolate(x, y, pchip_slopes(x, y), np.full((len(x), 1), loss))[:, 0]


@dataclass(frozen=True, eq=False)
class Family:
    """One codec's curves: the uniform one (None if it has no such mode), and its ROI strengths.

    strong: mildest first.
    """

    uniform: Curve | None
    strong: list[Curve]

    @property
    def members(self) -> list[Curve]:
        """All curves, the uniform one first."""
        return [*([self.uniform] if self.uniform else []), *self.strong]

    @property
    def has_roi(self) -> bool:
        """Whether the codec has both a uniform and a ROI mode."""
        return bool(self.uniform and self.strong)

    @cached_property
    def gains(self) -> list[tuple[Difference, Difference]]:
        """ROI BD-rate and background BD-PSNR of each of `strong` against `uniform`."""
        return [
            (
                rate_difference(self.uniform, curve, "roi_"),
                psnr_difference(self.uniform, curve, "bg_"),
            )
            for curve in self.strong
        ]

    @cached_property
    def losses(self) -> np.ndarray:
        """(S, R) dB of background that each of `members` loses against `uniform`, its 0 first."""
        nothing = np.zeros(len(self.uniform.bpp))
        return np.stack([nothing, *(0.0 - bg.rows for _, bg in self.gains)])

    def at_loss(self, loss: float, values: Sequence[np.ndarray]) -> np.ndarray:
        """Interpolate a value (R,) of each of `members` to a background loss: (R,)."""
        return at_loss(self.losses, np.stack(values), loss)

    def strength_at(self, loss: float) -> float:
        """Interpolate the ROI strength that costs so many dB of background."""
        strengths = [np.full(self.losses.shape[1], curve.strength) for curve in self.members]
        return float(self.at_loss(loss, strengths)[0])


def families(records: list[dict], count: int = COUNT) -> list[Family]:
    """Sort the curves of these records by codec: conventional ones first, each roi_vbr last.

    count: resamples.
    """
    found: dict[tuple[bool, bool, str, str], list[Curve]] = {}
    for curve in curves(records, count):
        key = (curve.trained, curve.codec == "roi_vbr", curve.codec, curve.run)
        found.setdefault(key, []).append(curve)
    by_strength = [
        sorted(members, key=lambda c: abs(c.strength - (0.5 if c.trained else 0)))
        for _, members in sorted(found.items())
    ]
    return [
        Family(next((c for c in members if c.uniform), None), [c for c in members if not c.uniform])
        for members in by_strength
    ]


def pairs(codecs: list[Family]) -> list[tuple[Family, Family]]:
    """Pair every codec with every trained one that comes later in the order of `families`."""
    return [(anchor, test) for anchor, test in combinations(codecs, 2) if test.members[0].trained]


def trade_table(codecs: list[Family]) -> pd.DataFrame:
    """Gain of each ROI strength inside the ROI and loss outside, against the codec's uniform mode.

    Rows: codec and strength. Columns: roi_bd_rate (%), bg_loss (dB), intervals, curves' overlaps.
    """
    rows = []
    for codec in (codec for codec in codecs if codec.has_roi):
        for curve, (roi, bg) in zip(codec.strong, codec.gains, strict=True):
            notes = dict.fromkeys(note for note in (roi.note, bg.note) if note)
            rows.append(
                _who(curve)
                | with_interval("roi_bd_rate", roi.rows, "low", "high")
                | with_interval("bg_loss", 0.0 - bg.rows)
                | {"overlap": roi.overlap, "rate_overlap": bg.overlap, "note": "; ".join(notes)}
            )
    return pd.DataFrame(rows)


def nearest_strength(trade: pd.DataFrame, codec: str, loss: float = LOSSES[-1]) -> float | None:
    """Return the measured ROI strength whose background loss is nearest to `loss` dB.

    trade: of `trade_table`; the first run of the codec counts. None if no loss is known.
    """
    rows = trade[trade["codec"] == codec].dropna(subset="bg_loss") if len(trade) else trade
    if rows.empty:
        return None
    rows = rows[rows["run"].fillna("") == rows["run"].fillna("").iloc[0]]
    return float(rows["strength"].iloc[(rows["bg_loss"] - loss).abs().argmin()])


def equal_background_table(codecs: list[Family], losses: Sequence[float] = LOSSES) -> pd.DataFrame:
    """ROI BD-rate of each codec's ROI mode against its own uniform mode, at equal background loss.

    strength is the interpolated one that costs exactly `bg_loss` dB of background BD-PSNR.
    """
    rows = []
    for codec in (codec for codec in codecs if codec.has_roi):
        gains = [np.zeros(len(codec.uniform.bpp)), *(roi.rows for roi, _ in codec.gains)]
        logs = [np.log1p(gain / 100) for gain in gains]
        for loss in losses:
            gain = 100 * np.expm1(codec.at_loss(loss, logs))
            rows.append(
                _who(codec.uniform)
                | {"strength": codec.strength_at(loss), "bg_loss": loss}
                | with_interval("roi_bd_rate", gain, "low", "high")
                | {"strengths": len(codec.strong), "pictures": codec.uniform.pictures}
                | {"note": "" if np.isfinite(gain[0]) else OUTSIDE}
            )
    return pd.DataFrame(rows)


def bd_table(codecs: list[Family], losses: Sequence[float] = LOSSES) -> pd.DataFrame:
    """BD-rate and BD-PSNR of `pairs`: both uniform, and both at equal background loss.

    The same by the other MEASURES, where all records have them: "BD-PSNR" is then in their dB.
    Trained codecs of which one has no uniform mode are compared at equal α.
    """
    rows = []
    for anchor, test in pairs(codecs):
        if anchor.uniform and test.uniform:
            parts = [*PARTS, *_measures(anchor.uniform, test.uniform)]
            rows += [_bd_row(anchor.uniform, test.uniform, part) for part in parts]
            if anchor.has_roi and test.has_roi:
                for part in [p for p in parts if p.startswith(("roi_", "bg_"))]:
                    rows += _equal_background_rows(anchor, test, part, losses)
        else:
            same = [
                (a, t)
                for a in anchor.members
                for t in test.members
                if a.trained and a.strength == t.strength
            ]
            rows += [_bd_row(a, t, part) for a, t in same for part in PARTS]
    return pd.DataFrame(rows)


def _measures(*found: Curve) -> list[str]:
    """Return those of MEASURES that all these curves have."""
    return [name for name in MEASURES if all(name in curve.quality for curve in found)]


def _equal_background_rows(
    anchor: Family, test: Family, part: str, losses: Sequence[float]
) -> list[dict]:
    """Compare every strength with every strength, then interpolate along both to each loss."""
    rates, psnrs = (
        [[difference(a, t, part) for t in test.members] for a in anchor.members]
        for difference in (rate_difference, psnr_difference)
    )

    def between(differences: list[list[Difference]], loss: float, log: bool) -> Difference:
        values = [[np.log1p(d.rows / 100) if log else d.rows for d in row] for row in differences]
        rows = anchor.at_loss(loss, [test.at_loss(loss, row) for row in values])
        every = [d for row in differences for d in row]
        return Difference(
            100 * np.expm1(rows) if log else rows,
            min(d.overlap for d in every),
            min(d.points for d in every),
            "" if np.isfinite(rows[0]) else OUTSIDE,
        )

    return [
        _row(
            *(_who(codec.uniform) | {"strength": codec.strength_at(x)} for codec in (anchor, test)),
            x,
            part,
            between(rates, x, log=True),
            between(psnrs, x, log=False),
            anchor.uniform.pictures,
        )
        for x in losses
    ]


def published_table(codecs: list[Family], path: str | Path) -> pd.DataFrame:
    """BD-rate and BD-PSNR of trained codecs' uniform modes against published curves.

    path: a JSON file with codec, bpp and psnr, means over the pictures, or a folder of them. The
    same pictures must have been measured. Their resamples move our curve only, since a published
    one is of means. Raises ValueError naming a file that is no such curve.
    """
    path = Path(path)
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return pd.DataFrame([row for one in paths for row in _published_rows(codecs, one)])


def _published_rows(codecs: list[Family], path: Path) -> list[dict]:
    try:
        content = read_json(path)
        points = sorted(zip(content["bpp"], content["psnr"], strict=True))
        name, (bpp, psnr) = str(content["codec"]), np.array(points, float).T
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a published curve of codec, bpp and psnr ({error})"
        ) from None
    rows = []
    for test in (codec.uniform for codec in codecs if codec.uniform and codec.uniform.trained):
        shape = (len(test.bpp), len(bpp))
        curve = {
            "bpp": np.broadcast_to(bpp, shape),
            "quality": {MEAN: np.broadcast_to(psnr, shape)},
        }
        anchor = Curve(
            name, "published", 0.0, True, False, tuple(bpp), **curve, pictures=test.pictures
        )
        rows.append(_bd_row(anchor, test, MEAN))
    return rows


def _bd_row(anchor: Curve, test: Curve, part: str) -> dict:
    rate, psnr = rate_difference(anchor, test, part), psnr_difference(anchor, test, part)
    return _row(_who(anchor), _who(test), None, part, rate, psnr, anchor.pictures)


def metric_name(part: str) -> str:
    """Return what tables call one of PARTS, MEAN or MEASURES."""
    if part in MEASURES:
        return f"{part}_mean" if part.endswith("psnr") else part
    return "psnr_mean" if part == MEAN else f"{part}psnr"


def _row(
    anchor: dict,
    test: dict,
    loss: float | None,
    part: str,
    rate: Difference,
    psnr: Difference,
    pictures: int,
) -> dict:
    """Return the cells of a comparison; anchor, test: of `_who`."""
    row = {
        name if key == "codec" else f"{name}_{key}": value
        for name, who in (("anchor", anchor), ("test", test))
        for key, value in who.items()
    }
    notes = dict.fromkeys(note for note in (rate.note, psnr.note) if note)
    return (
        row
        | {"bg_loss": loss, "metric": metric_name(part)}
        | with_interval("bd_rate", rate.rows, "low", "high")
        | with_interval("bd_psnr", psnr.rows)
        | {"overlap": rate.overlap, "rate_overlap": psnr.overlap, "points": rate.points}
        | {"pictures": pictures, "note": "; ".join(notes)}
    )


def _who(curve: Curve) -> dict:
    return {name: getattr(curve, name) for name in ("codec", "label", "run", "strength")}


def byte_ratio_tables(
    codecs: list[Family], bpp: tuple[float, float] = HULL_BPP
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Bytes that a trained codec needs to be at least as good inside and outside the ROI.

    Returns one row per pair of codecs, and one per point of the other's hull with a rate in `bpp`.
    `bpp_ours` is the least rate at which one of our strengths, its curve interpolated in log bpp by
    PCHIP, reaches the point's ROI and background PSNR. A pair's `ratio` is the geometric mean over
    the `reached` points of `hull`. Resamples keep the points.
    """
    summary, points = [], []
    for theirs, ours in pairs(codecs):
        places = hull(theirs, bpp)
        if not places or max(curve.bpp.shape[1] for curve in ours.members) < MIN_KNOTS:
            continue
        goal = {name: _points(theirs, places, name) for name in ("bpp", *PARTS)}
        least = np.fmin.reduce([_bpp_reaching(curve, goal) for curve in ours.members])
        ratios = least / goal["bpp"]
        ratios[~np.isfinite(ratios)] = np.nan
        points += [
            _point_row(theirs, ours, place, ratios[:, k], {n: v[0, k] for n, v in goal.items()})
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
                for key, value in _who(codec.members[0]).items()
                if key != "strength"
            }
            | with_interval("ratio", mean, "low", "high")
            | {"reached": int(reached.sum()), "hull": len(places)}
            | {"bpp_low": bpp[0], "bpp_high": bpp[1], "pictures": ours.members[0].pictures}
        )
    return pd.DataFrame(summary), pd.DataFrame(points)


def cost_table(records: list[dict], count: int = COUNT) -> pd.DataFrame:
    """What the paper's models pay, in the terms of the loss that they were trained on.

        cost = bpp + λ · mean(weight · squared error),   mean over pictures, of real bytes

    So one number weighs bytes, ROI and background as the training did. One row a model, λ and α:
    `cost`, and `difference` (%), how much less or more than the model with zero hooks that was
    trained on the same loss. The seeds of a model are averaged; intervals are of resampled pictures
    and seeds. Only trainings by the default loss are in the table.
    """
    found: dict[tuple, dict[int, list[dict]]] = {}
    for r in records:
        setting = r["setting"]
        known = r["codec"].startswith((WITH_FEATURES, "hyperprior_eval")) and "seed" in setting
        if known and (setting["loss_form"], setting["metric"]) == ("corrected", "mse"):
            model = (setting["lmbda"], setting["alpha"], r["codec"])
            found.setdefault(model, {}).setdefault(setting["seed"], []).append(r)
    costs = {model: _costs(seeds, count, i) for i, (model, seeds) in enumerate(found.items())}
    table = []
    for (lmbda, alpha, codec), seeds in sorted(found.items()):
        same = [r for rs in seeds.values() for r in rs]
        cost, zeros = (costs.get((lmbda, alpha, name)) for name in (codec, ZERO_HOOKS))
        difference = np.full(len(cost), np.nan)
        if zeros is not None and codec != ZERO_HOOKS:
            difference = 100 * (cost / zeros - 1)
        table.append(
            {"codec": codec, "label": codec_label(codec), "lmbda": lmbda, "alpha": alpha}
            | {"bpp": float(np.mean([r["bpp"] for r in same]))}
            | {f"{part}psnr": pooled_psnr(same, part) for part in ("roi_", "bg_")}
            | with_interval("cost", cost)
            | with_interval("difference", difference, "low", "high")
            | {"seeds": len(seeds), "pictures": len(same) // len(seeds)}
        )
    return pd.DataFrame(table)


def _costs(seeds: dict[int, list[dict]], count: int, stream: int) -> np.ndarray:
    """(1 + count,) mean costs: of all, then of resamples; `stream` draws this model's seeds."""
    costs = np.array([[_cost(r) for r in sorted(rs, key=_image)] for rs in seeds.values()])
    pictures, drawn = resamples(costs.shape[1], count), resamples(len(costs), count, 1 + stream)
    return np.einsum("bs,sp,bp->b", drawn, costs, pictures) / costs.size


def _image(record: dict) -> str:
    return record["image"]


def _cost(record: dict) -> float:
    alpha, lmbda = record["setting"]["alpha"], record["setting"]["lmbda"]
    weighted = 2 * (alpha * record["roi_sse"] + (1 - alpha) * record["bg_sse"])
    return record["bpp"] + lmbda * weighted / record["count"]


def hull(codec: Family, bpp: tuple[float, float]) -> list[tuple[int, int]]:
    """Find a codec's undominated points within a range of rates: (curve, point), by rate.

    No other point of the codec has at most the rate and at least both PSNRs.
    """
    places = [(i, k) for i, curve in enumerate(codec.members) for k in range(curve.bpp.shape[1])]
    signs = {"bpp": -1, "roi_": 1, "bg_": 1}
    values = np.stack([_points(codec, places, n)[0] * sign for n, sign in signs.items()], 1)
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
    theirs: Family, ours: Family, place: tuple[int, int], ratio: np.ndarray, goal: dict[str, float]
) -> dict:
    curve, own = theirs.members[place[0]], ours.members[0]
    return {
        "theirs": curve.codec,
        "theirs_run": curve.run,
        "ours": own.codec,
        "ours_run": own.run,
        "theirs_strength": curve.strength,
        "theirs_setting": curve.knobs[place[1]],
        "bpp": goal["bpp"],
        "roi_psnr": goal["roi_"],
        "bg_psnr": goal["bg_"],
        "bpp_ours": goal["bpp"] * ratio[0],
    } | with_interval("ratio", ratio, "low", "high")


def _bpp_reaching(curve: Curve, goal: dict[str, np.ndarray]) -> np.ndarray:
    """(1 + B, H): least bpp of a curve that reaches both PSNRs of `goal`; inf beyond its best."""
    least = []
    for part in ("roi_", "bg_"):
        bpp, psnr = curve.rising(part)
        if bpp.shape[1] < MIN_KNOTS:
            return np.full(goal["bpp"].shape, np.inf)
        log_bpp = np.log(bpp)
        with np.errstate(all="ignore"):
            inside = np.exp(interpolate(psnr, log_bpp, pchip_slopes(psnr, log_bpp), goal[part]))
        beyond = np.where(goal[part] > psnr[:, -1:], np.inf, inside)
        least.append(np.where(goal[part] <= psnr[:, :1], bpp[:, :1], beyond))
    return np.maximum(*least)
