"""Piecewise cubics through many curves at once: what scipy's Akima1DInterpolator and PchipInterpolator are for one curve, for the bootstrap.

x, y: (B, P) curves of P points each, x rising along a row; a row whose x does not rise gives NaN. Agreement with scipy and bjontegaard:
tests/test_interpolation.py.
"""

import numpy as np


def akima_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slopes (B, P) at the points by Akima's rule (1970), P ≥ 3: of the chords beside a point the one that bends less counts more."""
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
    """Slopes (B, P) by Fritsch and Butland's rule (1984), P ≥ 3: harmonic means of the chords, so that a monotone curve stays monotone."""
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
    """Of the parabola through the three points at an end, kept from turning (PCHIP's rule)."""
    slope = ((2 * h0 + h1) * m0 - h0 * m1) / (h0 + h1)
    slope = np.where(np.sign(slope) != np.sign(m0), 0.0, slope)
    return np.where((np.sign(m0) != np.sign(m1)) & (np.abs(slope) > 3 * np.abs(m0)), 3 * m0, slope)


def evaluate(x: np.ndarray, y: np.ndarray, slopes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values (B, Q) of the cubics at `at` (B, Q); NaN outside a curve's ends."""
    i = ((at[:, :, None] >= x[:, None, :]).sum(2) - 1).clip(0, x.shape[1] - 2)
    coefficients = [np.take_along_axis(c, i, 1) for c in _coefficients(x, y, slopes)]
    inside = (at >= x[:, :1]) & (at <= x[:, -1:]) & _rising(x)[:, None]
    return np.where(inside, _horner(coefficients, at - np.take_along_axis(x, i, 1)), np.nan)


def integrate(
    x: np.ndarray, y: np.ndarray, slopes: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Integrals (B,) of the cubics from low to high (B,), both between the curve's ends."""
    powers = [c / (n + 1) for n, c in enumerate(_coefficients(x, y, slopes))]
    ends = [np.clip(limit[:, None], x[:, :-1], x[:, 1:]) - x[:, :-1] for limit in (low, high)]
    parts = [end * _horner(powers, end) for end in ends]
    return np.where(_rising(x), (parts[1] - parts[0]).sum(1), np.nan)


def _coefficients(x: np.ndarray, y: np.ndarray, slopes: np.ndarray) -> list[np.ndarray]:
    """Of 1, t, t², t³ with t from each piece's left end, (B, P - 1) each."""
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
