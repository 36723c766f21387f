"""roilib.evaluation.bootstrap and comparisons: identities that comparisons must keep."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch

from roilib.evaluation.bd_rate import bd_psnr, bd_rate
from roilib.evaluation.bootstrap import YUV, curves, interval, resamples
from roilib.evaluation.comparisons.bd_tables import bd_table, published_table
from roilib.evaluation.comparisons.byte_ratios import byte_ratio_tables, hull
from roilib.evaluation.comparisons.families import (
    OUTSIDE,
    at_loss,
    families,
    psnr_difference,
    rate_difference,
)
from roilib.evaluation.comparisons.paper_costs import WITH_FEATURES, ZERO_HOOKS, cost_table
from roilib.evaluation.comparisons.roi_modes import (
    equal_background_table,
    nearest_strength,
    trade_table,
)
from roilib.evaluation.tables.headlines import measure_table
from roilib.losses import RoiRateDistortionLoss
from roilib.metrics import psnr_from_mse

PICTURES, POINTS = 8, 7


def codec(
    name, trained=False, strengths=(0.0,), rate=1.0, noise=0.0, points=POINTS, gain=12.0, seed=0
):
    """Records of a codec on pictures of different difficulty: 6 dB a doubling of the rate.

    A strength gives the ROI `gain` dB a unit and costs bits. noise: of the rate of each picture, so
    that resamples differ.
    """
    random = np.random.default_rng(seed)
    records = []
    for strength in strengths:
        for i in range(points):
            for k in range(PICTURES):
                bpp = (
                    rate
                    * 0.05
                    * 2**i
                    * (1 + k / 4)
                    * (1 + 0.4 * abs(strength))
                    * (1 + noise * random.normal())
                )
                roi, background = (
                    22 + 5 * i + gain * abs(strength) - k / 3,
                    23 + 5 * i - 2 * abs(strength) + k / 3,
                )
                knobs = (
                    {"lmbda": float(i + 1), "alpha": 0.5 + abs(strength)}
                    if trained
                    else {"quality": float(50 - i), "qoffset": strength}
                )
                record = {"image": f"{k:06d}", "codec": name, "setting": knobs, "bpp": bpp} | (
                    {"run": f"{name}-1"} if trained else {}
                )
                for part, dB, count in (("roi_", roi, 300 + 100 * k), ("bg_", background, 3000)):
                    record |= {
                        f"{part}sse": count * 255**2 / 10 ** (dB / 10),
                        f"{part}count": count,
                    }
                record |= {
                    name: record[f"roi_{name}"] + record[f"bg_{name}"] for name in ("sse", "count")
                }
                records.append(
                    record | {"psnr": psnr_from_mse(record["sse"] / record["count"], 255)}
                )
    return records


def test_row_0_is_all_pictures_and_resamples_are_of_the_same_size():
    weights = resamples(5, 30)
    assert weights.shape == (31, 5)
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == 5).all()
    assert np.array_equal(weights, resamples(5, 30))
    assert len(np.unique(weights[1:], axis=0)) > 20


def test_curves_are_pooled_over_pictures():
    records = codec("x265 medium")
    (curve,) = curves(records, 20)
    first = [r for r in records if r["setting"]["quality"] == 50]
    assert curve.bpp.shape == (21, POINTS)
    assert curve.bpp[0, 0] == pytest.approx(np.mean([r["bpp"] for r in first]))
    assert curve.quality["roi_"][0, 0] == pytest.approx(
        psnr_from_mse(sum(r["roi_sse"] for r in first) / sum(r["roi_count"] for r in first), 255)
    )
    weights = resamples(PICTURES, 20)[7]
    drawn = [r for r, w in zip(first, weights, strict=True) for _ in range(int(w))]
    assert curve.quality[""][7, 0] == pytest.approx(
        psnr_from_mse(sum(r["sse"] for r in drawn) / sum(r["count"] for r in drawn), 255)
    )


def test_a_point_that_lacks_a_picture_is_named():
    records = codec("x265 medium")
    with pytest.raises(ValueError, match="x265 medium at 50: no record of picture 000000"):
        curves(records[1:])


def test_an_interval_needs_nearly_all_resamples():
    rows = np.arange(101.0)
    assert interval(rows) == pytest.approx((3.475, 97.525))
    assert np.isnan(interval(np.where(rows % 10 == 1, np.nan, rows))).all()
    assert np.isnan(interval(np.where(rows == 0, np.nan, rows))).all()


def test_resampled_differences_are_bjontegaards():
    anchor, test = curves(codec("x264 medium") + codec("x265 medium", noise=0.1, rate=0.9), 15)
    rate, psnr = rate_difference(anchor, test, "roi_"), psnr_difference(anchor, test, "roi_")
    for row in range(16):
        pair = [list(zip(c.bpp[row], c.quality["roi_"][row], strict=True)) for c in (anchor, test)]
        assert rate.rows[row] == pytest.approx(bd_rate(*pair)[0], abs=1e-8)
        assert psnr.rows[row] == pytest.approx(bd_psnr(*pair)[0], abs=1e-8)
    assert np.ptp(rate.rows) > 0.5


def test_a_codec_against_itself_is_0_without_width():
    mine = codec("roi_vbr", trained=True, noise=0.1)
    other = [r | {"run": "roi_vbr-2"} for r in mine]
    table = bd_table(families(mine + other))
    assert len(table) == 3
    assert (
        np.abs(
            table[["bd_rate", "low", "high", "bd_psnr", "bd_psnr_low", "bd_psnr_high"]].to_numpy(
                float
            )
        ).max()
        < 1e-9
    )


def test_rates_that_are_scaled_by_1_1_are_10_per_cent_more():
    mine = codec("roi_vbr", trained=True, noise=0.1)
    theirs = [r | {"run": "a", "bpp": r["bpp"] / 1.1} for r in mine]
    table = bd_table(families(mine + theirs))
    assert table["anchor_run"].tolist() == ["a"] * 3
    assert table[["bd_rate", "low", "high"]].to_numpy(float) == pytest.approx(10, abs=1e-6)


def test_intervals_hold_the_value_and_are_the_same_again():
    records = codec("x265 medium", noise=0.2, seed=1) + codec(
        "roi_vbr", trained=True, noise=0.2, seed=2
    )
    table = bd_table(families(records))
    assert (table["low"] < table["bd_rate"]).all()
    assert (table["bd_rate"] < table["high"]).all()
    pd.testing.assert_frame_equal(table, bd_table(families(copy.deepcopy(records))))


def test_no_number_but_a_note_without_points_or_overlap():
    few = bd_table(families(codec("jpeg", points=5) + codec("roi_vbr", trained=True)))
    assert few["bd_rate"].isna().all()
    assert set(few["note"]) == {"fewer than 6 points"}
    far = codec("jpeg")
    for r in far:
        r |= {f"{part}sse": r[f"{part}sse"] / 1000 for part in ("", "roi_", "bg_")}
    table = bd_table(families(far + codec("roi_vbr", trained=True)))
    assert table["bd_rate"].isna().all()
    assert table["low"].isna().all()
    assert set(table["note"]) == {"curves share less than half of their range"}
    assert table["bd_psnr"].notna().all()
    assert (table["overlap"] < 0.5).all()


STRENGTHS = (0.0, -0.1, -0.2, -0.4)


def test_values_are_read_at_exactly_the_loss():
    records = codec("x265 medium", strengths=STRENGTHS, noise=0.02)
    (family,) = families(records)
    trade = trade_table([family])
    assert trade["strength"].tolist() == [-0.1, -0.2, -0.4]
    assert trade["bg_loss"].is_monotonic_increasing
    assert trade["roi_bd_rate"].is_monotonic_decreasing
    uniform, roi = (next(c for c in family.members if c.strength == s) for s in (0.0, -0.2))
    pair = [list(zip(c.bpp[0], c.quality["roi_"][0], strict=True)) for c in (uniform, roi)]
    assert trade["roi_bd_rate"][1] == pytest.approx(bd_rate(*pair)[0])
    measured, between = trade["bg_loss"][1], (trade["bg_loss"][0] + trade["bg_loss"][1]) / 2
    table = equal_background_table([family], (measured, between, trade["bg_loss"][2] + 0.01))
    assert table["bg_loss"].tolist()[:2] == [measured, between]
    assert table["strength"][0] == pytest.approx(-0.2)
    assert table["roi_bd_rate"][0] == pytest.approx(trade["roi_bd_rate"][1])
    assert trade["roi_bd_rate"][1] < table["roi_bd_rate"][1] < trade["roi_bd_rate"][0]
    assert (table["low"] < table["roi_bd_rate"])[:2].all()
    assert (table["roi_bd_rate"] < table["high"])[:2].all()
    assert np.isnan(table.loc[2, ["roi_bd_rate", "low", "high", "strength"]].astype(float)).all()
    assert table["note"].tolist() == ["", "", OUTSIDE]


def smooth(strengths):
    """Records of an x265 whose loss bends with the strength, and differs by picture."""
    records = []
    for strength in strengths:
        for r in codec("x265 medium", strengths=(strength,), noise=0.03, gain=30, seed=3):
            bend = 1.2 * (0.7 + 0.6 * int(r["image"]) / PICTURES) * strength**2
            sse = r["bg_sse"] * 10**bend
            bpp = r["bpp"] / (1 + 0.4 * abs(strength))
            records.append(r | {"bg_sse": sse, "sse": r["roi_sse"] + sse, "bpp": bpp})
    return records


GRID = (0.0, -0.1, -0.15, -0.2, -0.3, -0.4)  # that of params' conventional codecs
SHIFTED = (0.0, -0.07, -0.12, -0.18, -0.25, -0.35, -0.45)


def test_a_codec_on_a_shifted_grid_of_strengths_gives_the_same_number():
    first, second = (equal_background_table(families(smooth(grid))) for grid in (GRID, SHIFTED))
    assert first["roi_bd_rate"].notna().all()
    assert first["roi_bd_rate"].to_numpy() == pytest.approx(second["roi_bd_rate"], rel=0.01)


def test_a_denser_grid_moves_no_number_by_more_than_its_interval():
    coarse, dense = (
        equal_background_table(families(smooth(grid)))
        for grid in (GRID, sorted({*GRID, *SHIFTED}, reverse=True))
    )
    assert (coarse["low"] < dense["roi_bd_rate"]).all()
    assert (dense["roi_bd_rate"] < coarse["high"]).all()


def test_only_strengths_that_lose_more_than_milder_ones_are_interpolated():
    losses = np.array([[0.0], [0.2], [0.1], [0.4], [np.nan]])
    values = np.array([[0.0], [-2.0], [-9.0], [-4.0], [-5.0]])
    assert at_loss(losses, values, 0.3)[0] == pytest.approx(-3)
    assert np.isnan(at_loss(losses, values, 0.41)[0])
    assert np.isnan(at_loss(losses[:2], values[:2], 0.1)[0])  # two points make no cubic


def test_the_strength_to_draw_is_the_nearest():
    trade = pd.DataFrame({"codec": "a", "run": "", "strength": [0.7, 0.9], "bg_loss": [0.2, 1.3]})
    assert nearest_strength(trade, "a") == 0.9
    assert nearest_strength(trade, "a", 0.3) == 0.7
    assert nearest_strength(trade, "b") is None
    assert nearest_strength(pd.DataFrame(), "a") is None


def test_codecs_without_a_uniform_mode_or_without_strengths_have_no_trade():
    records = codec("jpeg") + [
        r
        for r in codec("roi_vbr", trained=True, strengths=(0.0, 0.4))
        if r["setting"]["alpha"] == 0.9
    ]
    assert equal_background_table(families(records)).empty
    assert trade_table(families(records)).empty


def test_codecs_are_compared_where_both_lose_as_much():
    ours = (0.0, 0.1, 0.2, 0.4)
    records = codec("x265 medium", strengths=STRENGTHS) + codec(
        "roi_vbr", trained=True, strengths=ours, rate=0.8
    )
    loss = trade_table(families(records))["bg_loss"].iloc[1]
    table = bd_table(families(records), (loss, 99.0))
    assert len(table) == 3 + 2 * 2
    same = table[(table["bg_loss"] == loss) & (table["metric"] == "roi_psnr")].iloc[0]
    assert same["anchor_strength"] == pytest.approx(-0.2)
    assert same["test_strength"] == pytest.approx(0.7)
    assert same["bd_rate"] == pytest.approx(-20, abs=1e-6)
    beyond = table[table["bg_loss"] == 99.0]
    assert beyond["bd_rate"].isna().all()
    assert set(beyond["note"]) == {OUTSIDE}


def test_trained_codecs_without_a_uniform_mode_meet_at_their_strength():
    paper = codec("hyperprior_with_obj_features", trained=True, strengths=(0.4,))
    table = bd_table(
        families(paper + codec("roi_vbr", trained=True, strengths=(0.0, 0.4), rate=1.2))
    )
    assert table["anchor_run"].tolist() == [""] * 3
    assert table["test_strength"].tolist() == [0.9] * 3
    assert table["bd_rate"].to_numpy(float) == pytest.approx(20, abs=1e-6)


def test_other_seeds_are_curves_of_their_own():
    records = codec("hyperprior", trained=True)
    for r in records:
        r["setting"] |= {"seed": 0}
    other = [r | {"setting": r["setting"] | {"seed": 3}} for r in records]
    assert [curve.run for curve in curves(records + other, 2)] == ["", "seed=3"]


def test_bytes_to_be_as_good_inside_and_outside_are_the_least_of_any_strength():
    theirs = codec("x265 medium", strengths=STRENGTHS, noise=0.05)
    ours = [
        r | {"bpp": 0.7 * r["bpp"]}
        for r in codec("roi_vbr", trained=True, strengths=(0.0, 0.1, 0.2, 0.4), noise=0.05)
    ]
    table, points = byte_ratio_tables(families(theirs + ours))
    (row,) = table.to_dict("records")
    assert row["hull"] == row["reached"] == len(points) > 5
    assert row["ratio"] == pytest.approx(np.exp(np.log(points["ratio"]).mean()))
    assert row["low"] < row["ratio"] <= 0.7 + 1e-9
    assert row["ratio"] <= row["high"]
    assert points["bpp"].between(0.1, 0.5).all()
    assert points["bpp_ours"].to_numpy() == pytest.approx(
        (points["ratio"] * points["bpp"]).to_numpy()
    )


def test_scaled_rates_scale_the_byte_ratio_and_what_is_beyond_reach_has_none():
    theirs = codec("x265 medium")
    ours = [r | {"bpp": 1.1 * r["bpp"]} for r in codec("roi_vbr", trained=True, points=4)]
    table, points = byte_ratio_tables(families(theirs + ours), (0.0, 99.0))
    assert table[["ratio", "low", "high"]].to_numpy(float) == pytest.approx(1.1)
    assert (table["reached"][0], table["hull"][0]) == (4, POINTS)
    assert points["ratio"].isna().tolist() == [False] * 4 + [True] * 3


def test_resamples_without_a_roi_say_nothing_of_the_byte_ratio():
    records = codec("x265 medium", noise=0.02) + codec(
        "roi_vbr", trained=True, noise=0.02, rate=1.1, seed=1
    )
    records = [
        r | ({"roi_sse": 0.0, "roi_count": 0} if r["image"] > "000001" else {}) for r in records
    ]  # a tenth of the resamples
    table, points = byte_ratio_tables(families(records))
    assert table["reached"][0] == table["hull"][0] > 1
    assert table[["low", "high"]].isna().all(axis=None)
    assert points["low"].isna().all()
    more = [
        r | ({"roi_sse": 0.0, "roi_count": 0} if r["image"] > "000005" else {})
        for r in codec("x265 medium") + codec("roi_vbr", trained=True, rate=1.1)
    ]
    assert byte_ratio_tables(families(more))[0]["low"][0] == pytest.approx(1.1)


def test_points_with_more_bytes_and_less_quality_are_not_on_the_hull():
    records = codec("x265 medium", strengths=(0.0, -0.1), gain=-1)  # a ROI that only costs
    (family,) = families(records)
    assert {i for i, _ in hull(family, (0.0, 99.0))} == {0}


def test_where_a_codecs_scale_has_ended_points_are_left_out():
    records = codec("roi_vbr", trained=True)
    end = [
        r | {"setting": r["setting"] | {"lmbda": 99.0}, "bpp": 1.01 * r["bpp"]}
        for r in records
        if r["setting"]["lmbda"] == POINTS
    ]
    (curve,) = curves(records + end, 5)
    assert curve.bpp.shape[1] == POINTS + 1
    assert curve.rising("roi_")[0].shape[1] == POINTS


def test_a_published_curve_is_compared_by_means_of_the_pictures(tmp_path):
    records = codec("roi_vbr", trained=True, noise=0.1) + codec("jpeg")
    (ours,) = (c for c in curves(records) if c.trained)
    path = tmp_path / "curve.json"
    path.write_text(
        json.dumps(
            {
                "codec": "theirs",
                "bpp": list(ours.bpp[0] / 1.1)[::-1],
                "psnr": list(ours.quality["mean"][0])[::-1],
            }
        )
    )
    (row,) = published_table(families(records), path).to_dict("records")
    assert (row["anchor"], row["anchor_run"], row["test"], row["metric"]) == (
        "theirs",
        "published",
        "roi_vbr",
        "psnr_mean",
    )
    assert row["bd_rate"] == pytest.approx(10)
    assert row["low"] < 10 < row["high"]
    assert len(published_table(families(records), tmp_path)) == 1  # of a folder, every curve
    cheap = [r for r in records if r["setting"].get("lmbda") == 1]
    assert ours.quality["mean"][0, 0] == pytest.approx(np.mean([r["psnr"] for r in cheap]))
    for content in ("[", '{"codec": "x", "bpp": [1]}', '{"codec": "x", "bpp": [1], "psnr": []}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"curve\.json: not a published curve"):
            published_table(families(records), path)
    with pytest.raises(ValueError, match=r"nowhere\.json: no such file"):
        published_table(families(records), tmp_path / "nowhere.json")


def test_a_point_without_error_is_left_out_and_the_others_compared_as_ever():
    records = (
        codec("x264 medium", noise=0.02)
        + codec("x265 medium", noise=0.02, seed=1)
        + codec("roi_vbr", trained=True, noise=0.02, rate=0.8)
    )
    exact = [
        r
        | {"setting": {"quality": 1.0, "qoffset": 0.0}, "bpp": 9.0, "bg_sse": 0.0, "bg_psnr": None}
        for r in records
        if r["codec"] == "x265 medium"
    ]
    before, after = (
        bd_table(families(chosen)).set_index(["anchor", "metric"])
        for chosen in (records, records + exact[-PICTURES:])
    )
    pd.testing.assert_frame_equal(before.loc[:, "bg_psnr", :], after.loc[:, "bg_psnr", :])
    assert set(after["note"]) == {""}
    nowhere = [r | {"bg_sse": 0.0, "bg_psnr": None} for r in codec("jpeg")] + codec(
        "roi_vbr", trained=True
    )
    row = bd_table(families(nowhere)).set_index("metric").loc["bg_psnr"]
    assert np.isnan([row["bd_rate"], row["bd_psnr"]]).all()
    assert (row["points"], row["note"]) == (0, "fewer than 6 points")


def with_measures(records, shift=0.0):
    """The records with qualities that follow their PSNR; shift: dB more."""
    for r in records:
        db, roi, background = (
            psnr_from_mse(r[f"{part}sse"] / r[f"{part}count"], 255) + shift
            for part in ("", "roi_", "bg_")
        )
        r |= {"yuv_psnr": db, "roi_yuv_psnr": roi, "bg_yuv_psnr": background}
        r |= {"ms_ssim": 1 - 10 ** (-db / 20)}
        r |= {"haarpsi": 1 - 10 ** (-db / 40), "roi_haarpsi": 1 - 10 ** (-roi / 40)}
    return records


def test_measures_beside_psnr_are_compared_in_their_own_dB():
    strengths = (0.0, 0.1, 0.2, 0.3)
    theirs = with_measures(codec("x265 medium", strengths=strengths, noise=0.02))
    ours = with_measures(
        codec("roi_vbr", trained=True, strengths=strengths, rate=0.8, noise=0.02, seed=1), shift=1
    )
    (anchor,) = [c for c in curves(theirs, 20) if c.uniform]
    cheapest = [r["ms_ssim"] for r in theirs if r["setting"] == {"quality": 50, "qoffset": 0}]
    assert anchor.quality["ms_ssim"][0, 0] == pytest.approx(-10 * np.log10(1 - np.mean(cheapest)))
    table = bd_table(families(theirs + ours, 50))
    uniform = table[table["bg_loss"].isna()].set_index("metric")["bd_rate"]
    # 5 dB double the rate, so that 1 dB more takes 13 % fewer bytes.
    assert uniform["psnr"] == pytest.approx(-20, abs=1.5)
    for name in ("yuv_psnr_mean", "ms_ssim", "haarpsi"):
        assert uniform[name] == pytest.approx(-100 * (1 - 0.8 / 2**0.2), abs=1.5)
    shown = measure_table(table)
    assert shown["`roi_vbr` against"].tolist() == ["x265 medium"]
    assert not shown.isin(["–"]).any().any()
    for r in theirs:
        del r["haarpsi"]
    fewer = bd_table(families(theirs + ours, 50))
    assert set(table["metric"]) - set(fewer["metric"]) == {"haarpsi"}
    assert measure_table(fewer)["HaarPSI"].tolist() == ["–"]


def test_a_codec_tuned_for_yuv_is_compared_by_measures_that_do_it_justice():
    theirs = with_measures(codec("x265 medium"))
    ours = with_measures(codec("roi_vbr", trained=True), shift=1)
    tuned = [r | {"codec": "roi_vbr (yuv)", "weights": "shipped_yuv"} for r in ours]
    table = bd_table(families(theirs + [r | {"weights": "shipped"} for r in ours] + tuned, 50))
    assert measure_table(table)["`roi_vbr` against"].tolist() == ["x265 medium"]
    shown = measure_table(table, "roi_vbr (yuv)")
    assert list(shown)[1:] == ["YUV-PSNR", "MS-SSIM", "HaarPSI"]
    assert set(shown["`roi_vbr (yuv)` against"]) == {"x265 medium", "roi_vbr"}


def test_bytes_at_equal_roi_and_background_are_compared_by_yuv_psnr_too():
    theirs = with_measures(codec("x265 medium"))
    ours = with_measures(codec("roi_vbr", trained=True), shift=5)
    both = families(theirs + ours, 50)
    table, points = byte_ratio_tables(both, measure=YUV)
    # 5 dB double the rate: with 5 dB more of all pictures, half of the bytes are as good.
    assert table["ratio"][0] == pytest.approx(0.5, abs=0.02)
    assert byte_ratio_tables(both)[0]["ratio"][0] == pytest.approx(1)
    assert {"roi_yuv_psnr", "bg_yuv_psnr"} < set(points)
    for r in theirs:
        del r["bg_yuv_psnr"]
    assert not len(byte_ratio_tables(families(theirs + ours, 50), measure=YUV)[0])


def test_a_picture_without_a_measure_is_left_out_of_its_mean():
    records = with_measures(codec("jpeg"))
    for r in records:
        r["roi_haarpsi"] = None if r["image"] == "000000" else r["roi_haarpsi"]
    (curve,) = curves(records, 20)
    known = [
        r["roi_haarpsi"] for r in records if r["setting"]["quality"] == 50 and r["roi_haarpsi"]
    ]
    assert len(known) == PICTURES - 1
    assert curve.quality["roi_haarpsi"][0, 0] == pytest.approx(-10 * np.log10(1 - np.mean(known)))


def test_a_point_without_error_has_no_finite_measure_and_warns_of_nothing(recwarn):
    records = with_measures(codec("jpeg"))
    for r in records[-PICTURES:]:
        r["ms_ssim"] = 1.0
    (curve,) = curves(records, 20)
    assert curve.known("ms_ssim")[0].shape[1] == POINTS - 1
    assert not recwarn.list


def test_pictures_without_a_roi_give_numbers_for_the_rest():
    both = codec("jpeg") + codec("roi_vbr", trained=True)
    records = [
        r | {"roi_sse": 0.0, "roi_count": 0, "sse": r["bg_sse"], "count": r["bg_count"]}
        for r in both
    ]
    table = bd_table(families(records)).set_index("metric")
    assert table["bd_rate"]["psnr"] == pytest.approx(0, abs=1e-6)
    assert np.isnan(table["bd_rate"]["roi_psnr"])
    assert byte_ratio_tables(families(records))[0]["reached"].tolist() == [0]


def model(variant, seed, bpp, roi_sse, alpha=0.9, lmbda=0.01):
    """Records of one of the paper's models on pictures of 100 values, 10 of them in the ROI."""
    setting = {"lmbda": lmbda, "alpha": alpha, "seed": seed}
    setting |= {"loss_form": "corrected", "metric": "mse"}
    errors = {"roi_sse": roi_sse, "roi_count": 10, "bg_sse": 900.0, "bg_count": 90, "count": 100}
    return [
        {"image": f"{k}", "codec": WITH_FEATURES + variant, "setting": setting}
        | {"bpp": bpp * (1 + k / 10), "run": f"{variant}{seed}{alpha}"}
        | errors
        for k in range(PICTURES)
    ]


def test_costs_are_the_loss_of_the_training_by_real_bytes():
    p = {"lmbda": 0.01, "alpha": 0.9}
    x, x_hat = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :3, :5] = 1
    errors = (255 * (x - x_hat)).double().square()
    records = model(" (zero_hooks)", 0, bpp=0.5, roi_sse=0)[:1]
    records[0] |= {"roi_sse": (errors * mask).sum().item(), "count": errors.numel()}
    records[0] |= {"bg_sse": (errors * (1 - mask)).sum().item()}
    loss = RoiRateDistortionLoss(**p)(
        {"x_hat": x_hat, "likelihoods": {"y": mask * 0 + 0.5}}, x, mask
    )
    loss = loss["loss"] - loss["bpp_loss"] + records[0]["bpp"]
    assert cost_table(records)["cost"][0] == pytest.approx(loss.item(), rel=1e-5)


def test_models_are_compared_with_the_one_that_sees_nothing_and_was_trained_alike():
    zeros = [r for seed in (0, 1) for r in model(" (zero_hooks)", seed, 0.2, 1000.0)]
    better = [r for seed in (0, 1) for r in model("", seed, 0.2 + seed / 100, 500.0)]
    plain = model("", 0, 0.3, 1000.0, alpha=0.5)
    other = [r | {"setting": r["setting"] | {"loss_form": "paper"}} for r in plain]
    table = cost_table([*zeros, *better, *plain, *other, *codec("x265 medium")]).set_index(
        ["alpha", "codec"]
    )
    assert list(table["seeds"]) == [1, 2, 2]
    row = table.loc[0.9, WITH_FEATURES]
    cost = [
        0.01 * 2 * (0.9 * sse + 0.1 * 900) / 100 + bpp * (1 + (PICTURES - 1) / 20)
        for sse, bpp in ((1000.0, 0.2), (500.0, 0.205))
    ]
    assert row["cost"] == pytest.approx(cost[1])
    assert row["difference"] == pytest.approx(100 * (cost[1] / cost[0] - 1))
    assert row["low"] < row["difference"] < row["high"] < 0
    assert table.loc[0.5]["difference"].isna().all()
    assert table.loc[0.9, ZERO_HOOKS][["difference", "low"]].isna().all()


def test_runs_of_the_same_seed_are_all_counted():
    longer = [r | {"run": "longer"} for r in model("", 0, 0.3, 500.0)]
    table = cost_table([*model("", 0, 0.2, 500.0), *longer, *model("", 1, 0.25, 500.0)])
    assert table["seeds"][0] == 3
    assert table["pictures"][0] == PICTURES
    one = cost_table(model("", 1, 0.25, 500.0))
    assert table["cost"][0] == pytest.approx(one["cost"][0])


def test_weights_files_have_costs_too():
    file = [
        {k: v for k, v in r.items() if k != "run"} | {"weights": "a.safetensors"}
        for r in model("", 0, 0.2, 500.0)
    ]
    assert cost_table(file)["seeds"].item() == 1


def test_one_seed_leaves_the_interval_of_the_pictures():
    pair = model(" (zero_hooks)", 0, 0.2, 1000.0) + model("", 0, 0.2, 1000.0)
    row = cost_table(pair).iloc[0]
    assert row["difference"] == row["low"] == row["high"] == 0
    assert row["cost_low"] < row["cost"] < row["cost_high"]
