"""roilib.evaluation.results: what figures make of the tables."""

import pandas as pd
import pytest

from roilib.codecs.registry import LOOKS, codec_label, look, strength_label
from roilib.evaluation.results import (
    background_loss,
    curves,
    drawn,
    read_json,
    read_table,
    trades,
    within_budget,
)


def test_every_codec_has_a_look_of_its_own():
    looks = [look(codec) for codec in LOOKS if codec not in ("hyperprior", "bmshj2018-hyperprior")]
    assert len(set(looks)) == len(looks)
    assert len({marker for _, marker in looks}) == len(looks)
    assert look("x265 ultrafast") != look("x265 medium") != look("x264 ultrafast")


def test_ours_at_the_budget_is_the_strongest_that_fits():
    rates = pd.DataFrame(
        {
            "codec": "roi_vbr",
            "alpha": alpha,
            "lmbda": i,
            "bpp": 0.1 * 2**i,
            "roi_psnr": 25.0 + i,
            "bg_psnr": 25.0 + i - loss,
        }
        for alpha, loss in ((0.5, 0), (0.8, 0.4), (0.9, 0.9), (0.95, 1.4))
        for i in range(4)
    )
    ((codec, by_strength),) = curves(rates)
    assert list(by_strength) == [0.5, 0.8, 0.9, 0.95]
    assert background_loss(by_strength[0.5], by_strength[0.9]) == pytest.approx(0.9)
    assert within_budget(codec, by_strength) == 0.9
    assert within_budget(codec, by_strength, 0.1) is None


def test_what_a_strength_gains_and_costs_is_against_the_same_codec():
    rates = pd.DataFrame(
        {
            "codec": "x265 medium",
            "qoffset": offset,
            "quality": i,
            "bpp": 0.06 * 1.5**i,
            "roi_psnr": 25 + 3.0 * (i + gain),
            "bg_psnr": 24 + 3 * i - loss,
        }
        for offset, gain, loss in ((0.0, 0, 0), (-0.2, 1, 0.4))
        for i in range(7)
    )
    (row,) = trades(rates).to_dict("records")
    assert (row["codec"], row["strength"]) == ("x265 medium", -0.2)
    assert row["roi_bd_rate"] == pytest.approx(100 / 1.5 - 100, abs=0.1)
    assert row["bg_loss"] == pytest.approx(0.4, abs=1e-6)
    assert trades(rates[rates["qoffset"] < 0]).empty
    assert (
        codec_label("jpeg"),
        strength_label("x265 medium", -0.2),
        strength_label("roi_vbr", 0.9),
    ) == ("JPEG", "offset −0.2", "α 0.9")


def test_missing_tables_are_empty_and_damaged_ones_named(tmp_path):
    assert read_table(tmp_path, "rates").empty
    assert read_json(tmp_path, "speed") == {}
    (tmp_path / "rates.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "speed.json").write_text("{")
    with pytest.raises(ValueError, match=r"rates\.csv: not a table"):
        read_table(tmp_path, "rates")
    with pytest.raises(ValueError, match=r"speed\.json: not JSON"):
        read_json(tmp_path, "speed")


def test_of_a_video_encoder_one_preset_is_drawn():
    def shown(*codecs):
        return drawn(pd.DataFrame({"codec": codecs}))["codec"].tolist()

    assert shown(
        "x265 medium", "x265 slow", "x264 ultrafast+zerolatency", "x264 medium", "jpeg", "roi_vbr"
    ) == [
        "x265 slow",
        "x264 medium",
        "jpeg",
        "roi_vbr",
    ]
    assert shown("x264 ultrafast+zerolatency", "roi_vbr", "roi_vbr (fixed_rate)") == [
        "x264 ultrafast+zerolatency",
        "roi_vbr",
        "roi_vbr (fixed_rate)",
    ]
