"""Bjøntegaard differences of two curves, and piecewise cubics through many curves at once.

    bd_rate, bd_psnr          bjontegaard's numbers (Akima), with a check that the curves overlap
    akima_slopes, integrate   the same cubics for all bootstrap resamples in one array, about 60
    pchip_slopes, interpolate   times faster than scipy, which takes one curve at a time

x, y: (B, P), B curves of P points each; x rises along a row, and a row whose x does not gives NaN.
Agreement with scipy and bjontegaard: tests/evaluation/test_bd_rate.py.
"""

import math
from collections.abc import Callable, Sequence

import bjontegaard
import numpy as np

MIN_POINTS = 6  # of a curve that is compared
MIN_OVERLAP = 0.5  # shared range of two curves, as a share of the shorter one
LEAST_RISE = 0.05  # dB; a point that costs more and gains less is past the end of a codec's scale


def rising(quality: Sequence[float | None]) -> list[int]:
    """Select the points that beat every cheaper one by at least LEAST_RISE.

    quality: PSNRs by rising rate; a point without one is left out.
    """
    best, kept = -math.inf, []
    for i, value in enumerate(quality):
        if _known(value) and value >= best + LEAST_RISE:
            best, kept = value, [*kept, i]
    return kept


def bd_rate(
    anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]
) -> tuple[float | None, float]:
    """Mean difference of rate at equal quality in per cent (negative: `test` needs less).

    anchor, test: (bpp, dB) points; those without a PSNR are left out. Akima interpolation
    (Herglotz et al. 2022). Returns the difference and the overlap: the shared range of dB as a
    share of the shorter one. The difference is None for curves of fewer than MIN_POINTS points or
    an overlap below MIN_OVERLAP.
    """
    return _bjontegaard(bjontegaard.bd_rate, anchor, test, 1)


def bd_psnr(
    anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]
) -> tuple[float | None, float]:
    """Mean difference of dB at equal rate (positive: `test` is better), else as `bd_rate`.

    The overlap is that of the logarithmic rates.
    """
    return _bjontegaard(bjontegaard.bd_psnr, anchor, test, 0)


def _bjontegaard(
    difference: Callable, anchor: Sequence, test: Sequence, shared: int
) -> tuple[float | None, float]:
    """shared: the column whose range both curves must share, 0 bpp or 1 dB."""
    curves = [
        np.array(sorted({point for point in curve if _known(point[1])}), float).reshape(-1, 2).T
        for curve in (anchor, test)
    ]
    ranges = [_range(curve[shared] if shared else np.log(curve[shared])) for curve in curves]
    common = min(r[1] for r in ranges) - max(r[0] for r in ranges)
    overlap = max(0.0, common) / max(min(r[1] - r[0] for r in ranges), 1e-12)
    if min(curve.shape[1] for curve in curves) < MIN_POINTS or overlap < MIN_OVERLAP:
        return None, float(overlap)
    if not all((np.diff(curve[shared]) > 0).all() for curve in curves):
        raise ValueError("a rate-distortion curve whose quality does not rise with its rate")
    options = {"method": "akima", "require_matching_points": False, "min_overlap": 0}
    return float(difference(*curves[0], *curves[1], **options)), float(overlap)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _range(values: np.ndarray) -> tuple[float, float]:
    return (values.min(), values.max()) if values.size else (0.0, 0.0)


def akima_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slopes (B, P) by Akima's rule (1970), P ≥ 3: the chord that bends less weighs more."""
    chords = np.diff(y) / np.diff(x)
    before = [2 * chords[:, :1] - chords[:, 1:2], 3 * chords[:, :1] - 2 * chords[:, 1:2]]
    after = [2 * chords[:, -1:] - chords[:, -2:-1], 3 * chords[:, -1:] - 2 * chords[:, -2:-1]]
    m = np.concatenate([before[1], before[0], chords, *after], 1)
    bends = np.abs(np.diff(m))
    left, right = bends[:, 2:], bends[:, :-2]
    total = left + right
    straight = total <= 1e-9 * total.max(1, keepdims=True)
    weighted = (left * m[:, 1:-2] + right * m[:, 2:-1]) / np.where(straight, 1, total)
    return np.where(straight, (m[:, 3:] + m[:, :-3]) / 2, weighted)


def pchip_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slopes (B, P) by Fritsch and Butland's rule (1984), P ≥ 3.

    Weighted harmonic means of the chords, so that a monotone curve stays monotone.
    """
    h = np.diff(x)
    chords = np.diff(y) / h
    w1, w2 = 2 * h[:, 1:] + h[:, :-1], h[:, 1:] + 2 * h[:, :-1]
    turning = chords[:, :-1] * chords[:, 1:] <= 0
    safe = np.where(turning[:, None], 1.0, np.stack([chords[:, :-1], chords[:, 1:]], 1))
    inner = np.where(turning, 0.0, (w1 + w2) / (w1 / safe[:, 0] + w2 / safe[:, 1]))
    first, last = (
        _end_slope(h[:, 0], h[:, 1], chords[:, 0], chords[:, 1]),
        _end_slope(h[:, -1], h[:, -2], chords[:, -1], chords[:, -2]),
    )
    return np.concatenate([first[:, None], inner, last[:, None]], 1)


def _end_slope(h0: np.ndarray, h1: np.ndarray, m0: np.ndarray, m1: np.ndarray) -> np.ndarray:
    """Slope of the parabola through an end's three points, limited so that it does not turn."""
    slope = ((2 * h0 + h1) * m0 - h0 * m1) / (h0 + h1)
    slope = np.where(np.sign(slope) != np.sign(m0), 0.0, slope)
    return np.where((np.sign(m0) != np.sign(m1)) & (np.abs(slope) > 3 * np.abs(m0)), 3 * m0, slope)


def interpolate(x: np.ndarray, y: np.ndarray, slopes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values (B, Q) of the cubics at `at` (B, Q); NaN outside a curve's ends."""
    i = ((at[:, :, None] >= x[:, None, :]).sum(2) - 1).clip(0, x.shape[1] - 2)
    coefficients = [np.take_along_axis(c, i, 1) for c in _coefficients(x, y, slopes)]
    inside = (at >= x[:, :1]) & (at <= x[:, -1:]) & _rising(x)[:, None]
    return np.where(inside, _horner(coefficients, at - np.take_along_axis(x, i, 1)), np.nan)


def integrate(
    x: np.ndarray, y: np.ndarray, slopes: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Integrals (B,) of the cubics from low to high (B,), both within the curve."""
    powers = [c / (n + 1) for n, c in enumerate(_coefficients(x, y, slopes))]
    ends = [np.clip(limit[:, None], x[:, :-1], x[:, 1:]) - x[:, :-1] for limit in (low, high)]
    parts = [end * _horner(powers, end) for end in ends]
    return np.where(_rising(x), (parts[1] - parts[0]).sum(1), np.nan)


def _coefficients(x: np.ndarray, y: np.ndarray, slopes: np.ndarray) -> list[np.ndarray]:
    """Coefficients of 1, t, t², t³, (B, P - 1) each; t counts from each piece's left end."""
    h, chords = np.diff(x), np.diff(y) / np.diff(x)
    excess = (slopes[:, :-1] + slopes[:, 1:] - 2 * chords) / h
    return [y[:, :-1], slopes[:, :-1], (chords - slopes[:, :-1]) / h - excess, excess / h]


def _horner(coefficients: list[np.ndarray], t: np.ndarray) -> np.ndarray:
    value = np.zeros_like(t)
    for c in reversed(coefficients):
        value = value * t + c
    return value


def _rising(x: np.ndarray) -> np.ndarray:
    return (np.diff(x) > 0).all(1)
