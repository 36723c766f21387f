"""roilib.engines.runs: what is written is JSON, and says where it comes from."""

import math

import numpy as np
from conftest import strictly

from roilib.utils.files import write_json


def test_numbers_that_json_lacks_become_null(tmp_path):
    content = {
        "a": [math.inf, 1.5, (math.nan, np.float64(-math.inf))],
        "b": {"c": math.nan, "d": "NaN"},
        "e": None,
    }
    write_json(tmp_path / "x.json", content)
    assert strictly(tmp_path / "x.json") == {
        "a": [None, 1.5, [None, None]],
        "b": {"c": None, "d": "NaN"},
        "e": None,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
