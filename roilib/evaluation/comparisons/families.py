"""Codecs as families of curves, and the differences of two curves.

    curves ──► families: a codec's uniform curve and those of its ROI strengths
    two curves ──► BD-rate, BD-PSNR

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

import numpy as np

from roilib.codecs.registry import ANY_RATE
from roilib.evaluation.bd_rate import (
    MIN_POINTS,
    akima_slopes,
    bd_psnr,
    bd_rate,
    integrate,
    interpolate,
    pchip_slopes,
)
from roilib.evaluation.bootstrap import COUNT, Curve, curves

LOSSES = (0.3, 0.5, 1.0)  # dB of background BD-PSNR at which codecs are compared
MIN_KNOTS = 3  # points that PCHIP needs
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
        key = (curve.trained, curve.codec in ANY_RATE, curve.codec, curve.run)
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


def who(curve: Curve) -> dict:
    """Return the columns that name a curve."""
    return {name: getattr(curve, name) for name in ("codec", "label", "run", "strength")}
