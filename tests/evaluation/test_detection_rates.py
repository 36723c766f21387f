"""roilib.evaluation.detection_rates: losses against uncompressed pictures, from one file."""

import gzip

import numpy as np
import pandas as pd
import pytest

from roilib.evaluation.comparisons.families import families
from roilib.evaluation.detection_rates import (
    detection_at_losses,
    detection_at_rates,
    detection_table,
    points,
    read_detections,
    split_detections,
    write_detections,
)

PICTURES = 8


def record(image, name, rows, setting=None, **more):
    return {
        "image": f"{image:06d}",
        "codec": name,
        "setting": setting or {},
        "detections": {"a": rows},
    } | more


@pytest.fixture(scope="module")
def records():
    """Eight pictures of a car and a person; each setting of a codec misses the first cars."""
    both, person, alarm = (
        [[90_000, 0, 1023, 1023], [80_000, 1, 1, 1]],
        [[80_000, 1, 1, 1]],
        [[95_000, 0, 0, 0]],
    )
    found = [record(i, "uncompressed", both, objects=[2, 1, 1, 0]) for i in range(PICTURES)]
    for quality, bpp, missed in ((40, 0.1, 4), (30, 0.2, 2), (20, 0.4, 0)):
        for qoffset in (0.0, -0.2):
            setting = {"quality": quality, "qoffset": qoffset}
            lost = missed if qoffset == 0 else 0
            found += [
                record(i, "x265 medium", person if i < lost else both, setting, bpp=bpp, psnr=30.0)
                for i in range(PICTURES)
            ]
    found += [
        record(
            i, "jpeg", both + alarm * (i == 0), {"quality": 5, "qoffset": 0.0}, bpp=0.3, psnr=30.0
        )
        for i in range(PICTURES)
    ]
    return found


@pytest.fixture(scope="module")
def seen(records):
    return points(split_detections(records)[1], 200)


def test_records_and_detections_are_told_apart(records):
    plain, found = split_detections(records)
    assert len(plain) == 7 * PICTURES
    assert not any("detections" in r for r in plain)
    assert all("psnr" in r for r in plain)
    assert len(found) == 8 * PICTURES
    assert split_detections(plain) == (plain, [])


def test_the_file_is_the_same_each_time_and_damage_is_named(records, tmp_path):
    found = split_detections(records)[1]
    path = write_detections(tmp_path, found)
    first = path.read_bytes()
    assert read_detections(tmp_path) == found
    write_detections(tmp_path, found)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["detections.json.gz"]
    flipped = first[:60] + bytes([first[60] ^ 255]) + first[61:]
    for content in (first[:40], flipped, b"[]", gzip.compress(b"[{"), gzip.compress(b"\xff")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"detections\.json\.gz: not detections"):
            read_detections(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"detections\.json\.gz: no such file"):
        read_detections(tmp_path)


def test_what_is_not_lost_loses_0_without_width(seen):
    table = detection_table(seen).set_index(["codec", "quality", "qoffset"])
    for where in (("x265 medium", 40, -0.2), ("x265 medium", 20, 0.0)):
        assert table.loc[where].filter(like="loss").tolist() == [0.0] * 9
    (original,) = detection_table(seen).query("codec == 'uncompressed'").to_dict("records")
    assert np.isnan(original["bpp"])
    assert original["agnostic_ap50"] == pytest.approx(0.995)
    assert (original["pictures"], original["objects"]) == (PICTURES, 2 * PICTURES)


def test_losses_are_shares_of_the_uncompressed_with_an_interval(seen):
    table = detection_table(seen).set_index(["codec", "quality", "qoffset"])
    row = table.loc["x265 medium", 40, 0.0]
    assert row["car_ap50"] == pytest.approx(0.5, abs=0.01)
    assert row["pedestrian_ap50"] == pytest.approx(0.995)
    assert row["map50"] == pytest.approx((row["car_ap50"] + row["pedestrian_ap50"]) / 2)
    assert row["agnostic_ap50_loss"] == pytest.approx(100 * (1 - row["agnostic_ap50"] / 0.995))
    assert (
        row["agnostic_ap50_loss_low"] < row["agnostic_ap50_loss"] < row["agnostic_ap50_loss_high"]
    )
    alarmed = table.loc["jpeg", 5, 0.0]
    assert alarmed["car_ap50"] == pytest.approx(
        8 / 9 * 0.995, abs=0.01
    )  # one false alarm before everything else
    assert "cyclist_ap50" not in table


def test_the_same_pictures_are_drawn_for_both(records):
    """A codec that misses what the detector misses anyway loses nothing, whatever is drawn."""
    found = [
        r | {"detections": {"a": [] if r["image"] < "000004" else r["detections"]["a"]}}
        for r in split_detections(records)[1]
    ]
    row = (
        detection_table(points(found, 200))
        .set_index(["codec", "quality", "qoffset"])
        .loc["x265 medium", 40, 0.0]
    )
    assert (
        row[["agnostic_ap50_loss", "agnostic_ap50_loss_low", "agnostic_ap50_loss_high"]].tolist()
        == [0.0] * 3
    )


def test_where_the_detector_finds_nothing_nothing_can_be_lost(records):
    found = [
        r | {"detections": {"a": [] if r["codec"] == "uncompressed" else r["detections"]["a"]}}
        for r in split_detections(records)[1]
    ]
    seen = points(found, 20)
    assert detection_table(seen).filter(like="loss").isna().all(axis=None)
    assert detection_at_rates(seen, (0.2,)).filter(like="loss").isna().all(axis=None)


def test_tables_are_deterministic(records):
    first, second = (detection_table(points(split_detections(records)[1], 50)) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


def test_at_a_rate_between_points_it_is_linear_in_log_bpp(seen):
    table = detection_at_rates(seen, (0.1, 0.1 * 2**0.5, 0.2, 0.05))
    rows = {(r["codec"], r["strength"], round(r["at_bpp"], 4)): r for r in table.to_dict("records")}
    assert {rate for _, _, rate in rows} == {0.1, 0.1414, 0.2}
    low, middle, high = (
        rows["x265 medium", 0.0, rate]["agnostic_ap50"] for rate in (0.1, 0.1414, 0.2)
    )
    assert middle == pytest.approx((low + high) / 2)
    assert low < high
    half = rows["x265 medium", 0.0, 0.1414]
    assert half["agnostic_ap50_loss"] == pytest.approx(100 * (1 - middle / 0.995))
    assert (
        half["agnostic_ap50_loss_low"]
        < half["agnostic_ap50_loss"]
        < half["agnostic_ap50_loss_high"]
    )
    assert rows["x265 medium", -0.2, 0.1414]["agnostic_ap50_loss"] == 0


def test_without_a_detector_there_is_nothing():
    assert points([]) == []
    assert detection_table([]).empty
    assert detection_at_rates([]).empty


def test_at_equal_background_loss_it_is_between_the_strengths_around():
    """A codec whose strengths lose 0.2 and 0.8 dB, and ever fewer cars of the first pictures."""
    both, person = [[90_000, 0, 1023, 1023], [80_000, 1, 1, 1]], [[80_000, 1, 1, 1]]
    found = [record(i, "uncompressed", both, objects=[2, 1, 1, 0]) for i in range(PICTURES)]
    records = []
    for qoffset, missed, lost in ((0.0, 4, 0.0), (-0.1, 2, 0.2), (-0.2, 1, 0.8)):
        for step in range(7):
            setting = {"quality": 40 - step, "qoffset": qoffset}
            for i in range(PICTURES):
                rows = person if i < missed else both
                bpp = 0.05 * 2**step
                found.append(record(i, "x265 slow", rows, setting, bpp=bpp))
                quality = {"roi_": 20 + 5 * step - 20 * qoffset, "bg_": 20 + 5 * step - lost}
                errors = {f"{part}sse": 255**2 / 10 ** (dB / 10) for part, dB in quality.items()}
                counts = {"roi_count": 1, "bg_count": 1, "count": 2, "psnr": 30.0}
                about = {"image": f"{i:06d}", "codec": "x265 slow", "setting": setting, "bpp": bpp}
                records.append(about | errors | counts | {"sse": sum(errors.values())})
    seen, codecs = points(found, 200), families(records, 200)
    table = detection_at_losses(seen, codecs, (0.1, 99.0), (0.2, 0.5, 0.9)).set_index("at_bpp")
    at = detection_at_rates(seen, (0.1,)).set_index("strength")["agnostic_ap50_loss"]
    measured, between, beyond = table.loc[0.1, "agnostic_ap50_loss"]
    assert measured == pytest.approx(at[-0.1])
    assert at[-0.2] < between < at[-0.1]
    assert np.isnan(beyond)
    assert table.loc[99.0, "agnostic_ap50_loss"].isna().all()
    assert table.loc[0.1, "strength"].iloc[0] == pytest.approx(-0.1)
    row = table.loc[0.1].iloc[1]
    assert row["agnostic_ap50_loss_low"] < between < row["agnostic_ap50_loss_high"]
