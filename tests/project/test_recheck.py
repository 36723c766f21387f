"""recheck: committed points measured again."""

import re

import pytest
import recheck
from recheck import differences, draw, task

from roilib.datasets.dataset import RoiDataset
from roilib.datasets.kitti import kitti_samples
from roilib.evaluation.cache import measure, tasks
from roilib.evaluation.evaluate import write_records

CODECS = {
    "x264 ultrafast": {"quality": [30, 40], "qoffset": [0.0, -0.2]},
    "webp": {"quality": [50]},
}


@pytest.fixture(scope="module")
def data(tiny_kitti):
    return RoiDataset(kitti_samples(tiny_kitti)[4:])


@pytest.fixture(scope="module")
def records(vbr_run, data, tmp_path_factory):
    points = tasks(
        [vbr_run], data, [0.002, 0.02], [0.5, 0.9], CODECS, weights=[str(vbr_run.weights)]
    )
    return [record for record, _ in measure(points, tmp_path_factory.mktemp("points"), 1)]


def test_points_come_out_as_they_were(records, vbr_run, data):
    assert {("run" in r, "weights" in r) for r in records} == {
        (True, False),
        (False, True),
        (False, False),
    }
    assert all(differences(record, task(record, [vbr_run], data)) == {} for record in records)


def test_any_other_byte_or_number_is_seen(records, vbr_run, data):
    record = records[0] | {"bytes": records[0]["bytes"] + 1, "sha256": "0" * 16}
    found = differences(record, task(record, [vbr_run], data))
    assert found == {
        "bytes": (record["bytes"], records[0]["bytes"]),
        "sha256": ("0" * 16, records[0]["sha256"]),
    }
    for factor, seen in ((1 + 1e-8, set()), (1 + 1e-4, {"bpp_estimated"})):
        summed = records[0] | {"bpp_estimated": records[0]["bpp_estimated"] * factor}
        assert differences(summed, task(summed, [vbr_run], data)).keys() == seen
    other = records[0] | {"setting": records[0]["setting"] | {"lmbda": 0.003}}
    assert {"bytes", "psnr", "sha256"} <= differences(other, task(other, [vbr_run], data)).keys()


def test_the_draw_depends_on_the_seed_alone(records):
    assert draw(records, 5, 1) == draw(records, 5, 1) != draw(records, 5, 2)
    assert len({id(record) for record in draw(records, 5, 1)}) == 5
    assert draw(records, 99, 1) == records


def test_missing_pictures_and_runs_are_named(records, data):
    with pytest.raises(ValueError, match="picture 000004 is not among the 1"):
        task(records[0], [], RoiDataset(data.samples[1:]))
    with pytest.raises(ValueError, match=r"run roi_vbr-.* is not among"):
        task(records[0], [], data)


def test_the_command_line_says_how_many_agree(records, tiny_kitti, tmp_path, monkeypatch, capsys):
    theirs = [r for r in records if "run" not in r and "weights" not in r]
    folder = tiny_kitti / "training" / "image_2"
    own = tmp_path / "own"
    own.mkdir()
    for name in ("000004", "000005"):
        (own / f"{name}.png").symlink_to(folder / f"{name}.png")
        (own / f"{name}.txt").symlink_to(tiny_kitti / "training" / "label_2" / f"{name}.txt")
    spoilt = [theirs[0] | {"bytes": 1}, *theirs[1:]]
    for content, code, text in (
        (theirs, 0, f"{len(theirs)} of {len(theirs)} points are the same"),
        (spoilt, 1, "'bytes': (1, "),
    ):
        write_records(tmp_path, "records", content)
        arguments = ["recheck", str(tmp_path), "--count", "99", "--pictures"]
        monkeypatch.setattr("sys.argv", [*arguments, str(own)])
        assert recheck.main() == code
        assert text in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*arguments, str(tmp_path / "nowhere")])
    assert recheck.main() == 2
    said = f"recheck: {tmp_path / 'nowhere'}: no pictures here ("
    assert capsys.readouterr().err.startswith(said)
    for path, count, records in (
        (tmp_path, "0", theirs),
        (tmp_path, "9", []),
        (tmp_path / "records.json", "9", theirs),
        (tmp_path, "9", {}),
    ):
        write_records(tmp_path, "records", records)
        monkeypatch.setattr(
            "sys.argv", ["recheck", str(path), "--count", count, "--pictures", str(own)]
        )
        assert recheck.main() == 2
        assert re.fullmatch(
            r"recheck: .*(nothing to measure again|no such file|no records).*\n",
            capsys.readouterr().err,
        )
    arguments = [
        "recheck",
        str(tmp_path),
        "--count",
        "99",
        "--data-root",
        str(tiny_kitti),
        "--train-size-p1",
    ]
    write_records(tmp_path, "records", theirs)
    for share, code in (
        ("0.5", 0),
        ("0.95", 2),
        ("many", 2),
    ):  # of six pictures 000003 to 000005 are tested, or none
        monkeypatch.setattr("sys.argv", [*arguments, share])
        if share == "many":
            with pytest.raises(SystemExit):
                recheck.main()
        else:
            assert recheck.main() == code
    assert capsys.readouterr().err.startswith("recheck: picture 000004 is not among the 0")
    monkeypatch.setattr("sys.argv", [*arguments, "0.5", "--dataset", "nope"])
    assert recheck.main() == 2
    assert re.fullmatch(r"recheck: .*dataset.*\n", capsys.readouterr().err)
