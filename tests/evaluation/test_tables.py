"""roilib.evaluation.tables: tables read back, and what figures make of them."""

import pandas as pd
import pytest

from roilib.codecs.registry import (
    LOOKS,
    codec_label,
    codec_name,
    look,
    strength_label,
    uniform_strength,
)
from roilib.evaluation.tables.files import by_strength, drawn, read_table, write_tables
from roilib.evaluation.tables.headlines import (
    full_chroma,
    half_chroma,
    headline_table,
    measure_table,
)
from roilib.evaluation.tables.layout import RATE_COLUMNS, SPEED_COLUMNS, markdown, ranked
from roilib.evaluation.tables.rate_tables import rate_table, speed_in_short, speed_table, table_of


def test_every_codec_has_a_look_of_its_own():
    looks = [look(codec) for codec in LOOKS if codec not in ("hyperprior", "bmshj2018-hyperprior")]
    assert len(set(looks)) == len(looks)
    assert len({marker for _, marker in looks}) == len(looks)
    assert look("x265 ultrafast") != look("x265 medium") != look("x264 ultrafast")
    assert codec_label("jpeg") == "JPEG"
    assert strength_label("x265 medium", -0.2) == "offset −0.2"
    assert strength_label("roi_vbr", 0.9) == "α 0.9"


def test_features_of_a_crop_have_a_name_of_their_own(tiny_parameters):
    model = {"which": "hyperprior_with_obj_features", "obj_det_img_size": 320}
    of_crops = codec_name(tiny_parameters(crop="native", **model))
    assert of_crops == "hyperprior_with_obj_features (native 320)"
    assert codec_label(of_crops) == "features of crops at 320 pixels"
    other = codec_name(tiny_parameters(crop="native", **model | {"obj_det_img_size": 416}))
    assert codec_label(other) == "object features (native 416)"
    assert uniform_strength(other) == 0.5
    for same in ({"crop": "grid"}, {"crop": "native", "zero_hooks": True}):
        assert "320" not in codec_name(tiny_parameters(**same, **model))


def test_ranked_tables_are_best_first_with_intervals_in_the_cell_and_ours_bold():
    rows = [
        {"codec": "x265 slow", "label": "x265 slow", "gain": -1.0, "low": -2.0, "high": 0.5},
        {"codec": "roi_vbr", "label": "roi_vbr", "gain": -3.0, "low": None, "high": None},
        {"codec": "jpeg", "label": "JPEG", "gain": None, "low": None, "high": None},
    ]
    text = ranked(table_of(rows), {"label": "codec", "gain": "gain %"}, "gain", "+.1f", "")
    assert text.splitlines()[2:] == ["| **roi_vbr** | −3.0 |", "| x265 slow | −1.0 [−2.0, +0.5] |"]
    assert ranked(pd.DataFrame(), {}, "gain", "", "") == "*Not measured here.*"


def test_the_headline_has_the_strongest_first_and_dashes_for_what_is_missing():
    common = {"test": "roi_vbr", "metric": "psnr", "low": None, "high": None, "bg_loss": None}
    rates = table_of(
        [
            common | {"anchor": name, "anchor_label": name.upper(), "bd_rate": rate}
            for name, rate in (("jpeg", -60.0), ("x265 slow", 2.0), ("avif", None))
        ]
    )
    table = headline_table(pd.DataFrame(), rates)
    assert table.to_numpy().tolist() == [
        ["X265 SLOW", "–", "no ROI", "+2.0 %"],
        ["JPEG", "–", "no ROI", "−60.0 %"],
    ]
    assert headline_table(pd.DataFrame(), rates, {"avif": "AVIF"}).iloc[0, 3] == "–"
    assert headline_table(pd.DataFrame(), pd.DataFrame()).empty


def test_codecs_at_420_are_compared_by_yuv_psnr_alone():
    common = {"test": "roi_vbr", "low": None, "high": None, "bg_loss": None}
    rates = table_of(
        [
            common | {"anchor": name, "anchor_label": name, "metric": metric, "bd_rate": rate}
            for name, metric, rate in (
                ("jpeg", "psnr", -60.0),
                ("x265 slow", "psnr", 2.0),
                ("x265 slow", "yuv_psnr_mean", 3.0),
                ("svtav1 6 4:2:0", "psnr", -40.0),
                ("svtav1 6 4:2:0", "yuv_psnr_mean", 5.0),
            )
        ]
    )
    assert headline_table(pd.DataFrame(), rates).iloc[:, 0].tolist() == ["x265 slow", "jpeg"]
    table = measure_table(rates)
    assert table.iloc[:, :3].to_numpy().tolist() == [
        ["svtav1 6 4:2:0", "–", "+5.0"],
        ["x265 slow", "+2.0", "+3.0"],
        ["jpeg", "−60.0", "–"],
    ]
    assert measure_table(pd.DataFrame()).empty


def test_curves_come_mildest_first_and_by_rate():
    rates = pd.DataFrame(
        {"codec": codec, knob: strength, setting: i, "bpp": 0.1 * 2**-i}
        for codec, knob, setting in (
            ("x265 slow", "qoffset", "quality"),
            ("roi_vbr", "alpha", "lmbda"),
        )
        for strength in ((0.0, -0.2, -0.1) if codec == "x265 slow" else (0.9, 0.5, 0.8))
        for i in range(3)
    )
    found = by_strength(rates)
    assert {codec: list(curves) for codec, curves in found.items()} == {
        "roi_vbr": [0.5, 0.8, 0.9],
        "x265 slow": [0.0, -0.1, -0.2],
    }
    assert all(
        c["bpp"].is_monotonic_increasing for curves in found.values() for c in curves.values()
    )
    assert by_strength(pd.DataFrame()) == {}


def point(**measures):
    parts = {f"{part}{name}": v for part in ("", "roi_", "bg_") for name, v in PSNR.items()}
    setting = {"quality": 30, "qoffset": 0.0}
    return (
        {"codec": "x265 medium", "setting": setting, "bpp": 0.2, "ms_ssim": 0.9} | parts | measures
    )


PSNR = {"psnr": 30.0, "sse": 100.0, "count": 3}
LATER = {"yuv_psnr": 31.0, "roi_yuv_psnr": 33.0, "bg_yuv_psnr": 30.5, "haarpsi": 0.8}
LATER |= {"roi_haarpsi": 0.9}


def test_measures_that_earlier_records_lack_are_means_or_left_out():
    new = point(**LATER), point(**LATER | {"yuv_psnr": 32.0, "roi_haarpsi": None})
    (row,) = rate_table(list(new)).to_dict("records")
    assert (row["yuv_psnr_mean"], row["roi_yuv_psnr_mean"]) == (31.5, 33)
    assert (row["haarpsi"], row["roi_haarpsi"]) == (0.8, 0.9)
    assert "| 31.50 | 0.9000 | 0.8000 | 0.9000 |" in markdown(rate_table(list(new)), RATE_COLUMNS)
    old = rate_table([point(), point()])
    assert not {"yuv_psnr_mean", "haarpsi", "roi_haarpsi"} & set(old)
    assert markdown(old, RATE_COLUMNS).splitlines()[0].endswith("| MS-SSIM |")
    other = {"codec": "jpeg"}
    both = rate_table([*new, point() | other]).set_index("codec")
    assert both["haarpsi"].isna().to_dict() == {"jpeg": True, "x265 medium": False}
    assert markdown(both.reset_index(), RATE_COLUMNS).splitlines()[2].endswith("| – | – |")


def test_a_codec_without_error_has_no_mean_yuv_psnr():
    table = rate_table([point(**LATER), point(**LATER | {"yuv_psnr": None})])
    assert table["yuv_psnr_mean"].isna().all()
    without_roi = LATER | {"roi_yuv_psnr": None, "roi_count": 0, "roi_psnr": None, "roi_sse": 0.0}
    table = rate_table([point(**LATER), point(**without_roi)])
    assert table["roi_yuv_psnr_mean"].tolist() == [33]


def speed_rows(**condition):
    names = ("codec", "operation", "median")
    values = [("a", "encode", 0.1), ("a", "decode", 0.2), ("b", "encode", 0.3)]
    more = {"device": "cpu", "stage": "total", "p95": 0.4} | condition
    return [dict(zip(names, row, strict=True)) | more for row in values]


def test_speeds_of_an_earlier_version_have_no_sizes_and_threads():
    speed = {"rows": speed_rows()}
    assert speed_in_short(speed) == speed
    assert markdown(speed_table(speed), SPEED_COLUMNS).splitlines() == [
        "| codec | encode ms | p95 | decode ms | p95  |",
        "| --- | --- | --- | --- | --- |",
        "| b | 300 | 400 | – | – |",
        "| a | 100 | 400 | 200 | 400 |",
    ]


def test_speeds_are_by_size_and_threads_and_in_short_of_the_first_size():
    conditions = [(frame, n) for frame in ([375, 1242], [96, 100]) for n in (1, 2)]
    rows = [row for f, n in conditions for row in speed_rows(frame=f, threads=n)]
    table = speed_table({"rows": rows})
    assert table["frame"].unique().tolist() == ["1242×375", "100×96"]
    assert table["threads"].tolist() == [1, 1, 2, 2] * 2
    assert table["codec"].tolist() == ["b", "a"] * 4
    lines = markdown(table, SPEED_COLUMNS).splitlines()
    assert lines[0] == "| frame | threads | codec | encode ms | p95 | decode ms | p95  |"
    assert lines[3] == "| 1242×375 | 1 | a | 100 | 400 | 200 | 400 |"
    short = speed_table(speed_in_short({"rows": rows}))
    assert short.equals(speed_table({"rows": speed_rows()}))


def test_missing_tables_are_empty_and_damaged_ones_named(tmp_path):
    assert read_table(tmp_path, "rates").empty
    (tmp_path / "rates.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"rates\.csv: not a table"):
        read_table(tmp_path, "rates")


def test_empty_tables_leave_no_file_of_an_earlier_evaluation(tmp_path):
    table = pd.DataFrame({"a": [1, 2]})
    write_tables(tmp_path, {"one": table, "two": table})
    write_tables(tmp_path, {"one": table[:1], "two": table[:0]})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one.csv": "a\n1\n"}


def test_the_codec_tuned_for_yuv_has_a_headline_by_yuv_psnr():
    row = {"test": "roi_vbr (yuv)", "anchor": "x265 slow 4:2:0", "anchor_label": "x265 slow 4:2:0"}
    row |= {"low": -6.0, "high": -4.0, "bg_loss": None}
    rates = table_of(
        [
            row | {"metric": "psnr", "bd_rate": 40.0},
            row | {"metric": "yuv_psnr_mean", "bd_rate": -5.0},
        ]
    )
    ratios = table_of(
        [
            {"theirs": "x265 slow 4:2:0", "ours": ours, "ratio": ratio, "reached": 3, "hull": 4}
            | {"low": 0.9, "high": 1.1}
            for ours, ratio in (("roi_vbr", 1.3), ("roi_vbr (yuv)", 1.0))
        ]
    )
    (cells,) = headline_table(ratios, rates, ours="roi_vbr (yuv)").to_dict("records")
    assert cells["`roi_vbr (yuv)` against"] == "x265 slow 4:2:0"
    assert cells["BD-rate, all pixels alike"] == "−5.0 [−6.0, −4.0] %"
    assert cells["bytes at equal ROI and background"].startswith("**1.00 [0.90, 1.10]**")


def test_tables_by_yuv_psnr_show_encoders_at_420_where_they_were_measured_so():
    codecs = ["x265 slow", "x265 medium 4:2:0", "x264 slow", "avif", "avif 4:2:0", "roi_vbr (yuv)"]
    table = pd.DataFrame({"codec": codecs})
    assert half_chroma(table)["codec"].tolist() == [
        "x265 medium 4:2:0",
        "avif 4:2:0",
        "roi_vbr (yuv)",
    ]
    assert half_chroma(table.iloc[[0, 2]])["codec"].tolist() == ["x265 slow", "x264 slow"]
    assert full_chroma(table)["codec"].tolist() == ["x265 slow", "x264 slow", "avif"]


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
    assert shown("svtav1 10 4:2:0", "svtav1 6 4:2:0", "x265 medium 4:2:0", "x265 medium") == [
        "svtav1 6 4:2:0",
        "x265 medium",
    ]
    assert shown("x264 ultrafast+zerolatency", "roi_vbr", "roi_vbr (fixed_rate)") == [
        "x264 ultrafast+zerolatency",
        "roi_vbr",
        "roi_vbr (fixed_rate)",
    ]
