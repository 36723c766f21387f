"""roilib.evaluation.bd_rate: Bjøntegaard differences, and cubics that agree with scipy's."""

import math

import numpy as np
import pytest
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

from roilib.evaluation.bd_rate import (
    akima_slopes,
    bd_psnr,
    bd_rate,
    integrate,
    interpolate,
    pchip_slopes,
    rising,
)

RULES = [(akima_slopes, Akima1DInterpolator), (pchip_slopes, PchipInterpolator)]


@pytest.fixture(scope="module")
def curves():
    """200 rows of 8 points; some y fall, some have straight pieces."""
    random = np.random.default_rng(0)
    x, y = random.uniform(0.1, 2, (200, 8)).cumsum(1), random.normal(0.5, 1, (200, 8)).cumsum(1)
    y[::4, 2:6] = x[::4, 2:6]
    return x, y


@pytest.mark.parametrize(("slopes", "scipy"), RULES)
def test_values_and_integrals_are_scipys(curves, slopes, scipy):
    x, y = curves
    at = x[:, :1] + (x[:, -1:] - x[:, :1]) * np.linspace(0, 1, 23)
    low, high = at[:, 3], at[:, 17]
    one = [scipy(*row) for row in zip(x, y, strict=True)]
    assert interpolate(x, y, slopes(x, y), at[:, :-1]) == pytest.approx(
        np.array([f(a) for f, a in zip(one, at[:, :-1], strict=True)]), abs=1e-9
    )
    expected = np.array([f.integrate(a, b) for f, a, b in zip(one, low, high, strict=True)])
    assert integrate(x, y, slopes(x, y), low, high) == pytest.approx(expected, abs=1e-9)


def test_outside_and_on_rows_that_do_not_rise_there_is_nothing(curves):
    x, y = (v[:2].copy() for v in curves)
    x[1, 3] = x[1, 2]
    with np.errstate(all="ignore"):
        slopes = pchip_slopes(x, y)
        found = interpolate(x, y, slopes, np.stack([x[:, 0] - 0.1, x[:, 1], x[:, -1] + 0.1], 1))
        assert np.isnan(integrate(x, y, slopes, x[:, 0], x[:, -1])).tolist() == [False, True]
    assert np.isnan(found).tolist() == [[True, False, True], [True] * 3]
    assert found[0, 1] == pytest.approx(y[0, 1])


def curve(factor=1.0, shift=0.0, low=0):
    """(bpp, dB) of 6 dB a doubling of the rate, from 2^low / 10 bpp."""
    return [(factor * 0.1 * 2**i, 24 + 6 * i + shift) for i in range(low, low + 6)]


def test_bd_rate_of_a_scaled_curve_is_its_factor():
    value, overlap = bd_rate(curve(), curve(0.8))
    assert value == pytest.approx(-20, abs=0.1)
    assert overlap == pytest.approx(1)
    assert bd_rate(curve(), curve()) == (pytest.approx(0, abs=1e-9), pytest.approx(1))
    assert bd_rate(curve(0.8), curve())[0] == pytest.approx(25, abs=0.1)


def test_bd_psnr_of_a_shifted_curve_is_its_shift():
    assert bd_psnr(curve(), curve(shift=-0.5))[0] == pytest.approx(-0.5, abs=1e-6)


def test_bd_psnr_of_a_quality_that_hardly_moves_with_the_rate():
    flat = [
        (bpp, 24.0 - i / 100) for i, (bpp, _) in enumerate(curve())
    ]  # a background at its floor, all bits going to the ROI
    assert bd_psnr(curve(), flat)[0] == pytest.approx(-15 - 0.025, abs=1e-3)
    with pytest.raises(ValueError, match="does not rise"):
        bd_rate(flat, flat)


def test_points_that_cost_more_and_are_no_better_are_left_out():
    assert rising([20, 24, 24.02, 23, 26, 26.06]) == [0, 1, 4, 5]
    assert rising([]) == rising([math.nan]) == rising([None, math.inf]) == []
    assert rising([20, None, 24]) == [0, 2]


def test_points_without_a_psnr_are_left_out_of_bd_numbers():
    exact = [*curve(), (9.0, None), (0.01, math.nan)]
    assert bd_rate(exact, curve(0.8)) == bd_rate(curve(), curve(0.8))
    assert bd_psnr(curve(), exact) == bd_psnr(curve(), curve())


def test_no_bd_number_without_overlap_or_points():
    assert bd_rate(curve(), curve(low=4)) == (None, pytest.approx(0.2))
    assert bd_rate(curve(), curve(low=9)) == (None, 0)
    assert bd_rate(curve()[:4], curve())[0] is None
    assert bd_rate([], curve())[0] is None


def test_a_curve_that_falls_is_refused():
    with pytest.raises(ValueError, match="does not rise"):
        bd_rate(curve(), [*curve()[:5], (9.9, 30)])
