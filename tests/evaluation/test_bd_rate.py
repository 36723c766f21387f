"""roilib.evaluation.bd_rate: many curves at once are what scipy makes of each alone."""

import numpy as np
import pytest
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

from roilib.evaluation.bd_rate import akima_slopes, evaluate, integrate, pchip_slopes

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
    assert evaluate(x, y, slopes(x, y), at[:, :-1]) == pytest.approx(
        np.array([f(a) for f, a in zip(one, at[:, :-1], strict=True)]), abs=1e-9
    )
    expected = np.array([f.integrate(a, b) for f, a, b in zip(one, low, high, strict=True)])
    assert integrate(x, y, slopes(x, y), low, high) == pytest.approx(expected, abs=1e-9)


def test_outside_and_on_rows_that_do_not_rise_there_is_nothing(curves):
    x, y = (v[:2].copy() for v in curves)
    x[1, 3] = x[1, 2]
    with np.errstate(all="ignore"):
        slopes = pchip_slopes(x, y)
        found = evaluate(x, y, slopes, np.stack([x[:, 0] - 0.1, x[:, 1], x[:, -1] + 0.1], 1))
        assert np.isnan(integrate(x, y, slopes, x[:, 0], x[:, -1])).tolist() == [False, True]
    assert np.isnan(found).tolist() == [[True, False, True], [True] * 3]
    assert found[0, 1] == pytest.approx(y[0, 1])
