"""roilib.apps.drive.drive and senders: real codecs over the simulated link."""

import json
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import refusal
from PIL import Image

from roilib.apps.drive import drive, report, senders
from roilib.apps.drive.films import Film
from roilib.apps.drive.frames import Drive, Frame
from roilib.apps.drive.link import Bucket, constant
from roilib.apps.drive.plan import CODECS, CODECS_AT_420, Plan
from roilib.cli import main
from roilib.codecs.conventional import ConventionalCodec
from roilib.metrics import psnr_from_mse, regions, squared_errors, yuv_psnrs
from roilib.utils import notebooks
from roilib.utils.pretrained import PRETRAINED_BASELINE, PRETRAINED_CODECS, pretrained

NAME = "x264 ultrafast intra"
MBIT = 0.09  # 1,125 bytes a frame: 0.6 bpp of the small pictures


@pytest.fixture(scope="module")
def sent(tiny_kitti, tmp_path_factory):
    """Send the six small pictures with losses, their labels as boxes: folder, records, times."""
    folder = tmp_path_factory.mktemp("drive")
    labels = str(tiny_kitti / "training" / "label_2")
    plan = Plan(mbit=(MBIT,), latency_ms=200, keyint=3, loss=0.2, seeds=(1, 2))
    frames = Drive(tiny_kitti, boxes=labels)
    return folder, *drive.run(frames, plan, folder, folder)


def street_of(count):
    """`count` textured pictures (96, 160, 3) that move by two pixels a frame, and a box."""
    random = np.random.default_rng(0)
    coarse = random.uniform(40, 215, (12, 40, 3)).repeat(8, 0).repeat(8, 1)
    wide = (coarse + random.normal(0, 8, coarse.shape)).clip(0, 255).astype(np.uint8)
    return [np.ascontiguousarray(wide[:, 2 * i : 2 * i + 160]) for i in range(count)], np.array(
        [[48.0, 32, 112, 80]]
    )


def through(sender, pictures, boxes, lost=()):
    """What a receiver shows of each frame (None: nothing), and the sizes."""
    decode, shown, sizes = sender.decoder(), [], []
    for i, picture in enumerate(pictures):
        data = sender.encode(picture, boxes, i / sender.bucket.fps)
        sender.bucket.send(i / sender.bucket.fps, len(data))
        sizes.append(len(data))
        shown.append(None if i in lost else decode(data))
    return shown, sizes


def decibels(pictures, shown, box):
    x0, y0, x1, y1 = box.astype(int)
    mask = np.zeros(pictures[0].shape[:2], bool)
    mask[y0:y1, x0:x1] = True
    errors = [squared_errors(a, b, regions(mask)) for a, b in zip(pictures, shown, strict=True)]
    return [
        psnr_from_mse(sum(e[part][0] for e in errors) / sum(e[part][1] for e in errors), 255)
        for part in ("roi_", "bg_")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["x264 ultrafast live", "x264 veryfast live", "x265 ultrafast live", "x265 veryfast live"],
)
def test_regions_are_better_in_a_live_stream_too(name):
    pictures, boxes = street_of(8)
    plain, roi = (
        decibels(
            pictures,
            through(
                senders.conventional_sender(name, Bucket(constant(0.3), 10, 200), qoffset, 20),
                pictures,
                boxes,
            )[0],
            boxes[0],
        )
        for qoffset in (0.0, -0.3)
    )
    assert (
        roi[0] > plain[0] + 2
    )  # presets that switch adaptive quantisation off would ignore regions silently
    assert roi[1] < plain[1]


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_a_lost_frame_hurts_until_the_next_keyframe_or_itself_alone(codec):
    pictures, boxes = street_of(9)

    def different(kind):
        name = f"{codec} ultrafast {kind}"
        (whole, sizes), (lossy, again) = (
            through(
                senders.conventional_sender(name, Bucket(constant(0.3), 10, 200), -0.2, 6),
                pictures,
                boxes,
                lost,
            )
            for lost in ((), (2,))
        )
        assert sizes == again  # rate control gives the same bytes again
        return [
            i
            for i, (a, b) in enumerate(zip(whole, lossy, strict=True))
            if b is None or not np.array_equal(a, b)
        ]

    assert different("intra") == [2]
    assert different("live") == [2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["intra", "live"])
def test_frames_too_small_for_an_encoder_are_refused_in_a_line(kind):
    name = f"x265 ultrafast {kind}"
    sender = senders.conventional_sender(name, Bucket(constant(0.5), 10, 200), -0.2, 20)
    said = refusal(sender.encode, np.zeros((8, 40, 3), np.uint8), np.zeros((0, 4)), 0.0)
    assert said == "x265 codes pictures of at least 16x16 pixels, not of 40x8"


@pytest.mark.parametrize("codec", ["x264", "x265"])
@pytest.mark.parametrize("kind", ["intra", "live"])
def test_senders_at_420_show_pictures_of_odd_sides(codec, kind):
    pictures, boxes = street_of(3)
    odd = [np.ascontiguousarray(picture[:95, :157]) for picture in pictures]
    roi = np.zeros((95, 157), bool)
    roi[32:80, 48:112] = True
    measured = {}
    for format in ("", " 4:2:0"):
        sender = senders.conventional_sender(
            f"{codec} veryfast {kind}{format}", Bucket(constant(0.5), 10, 200), -0.2, 20
        )
        shown, sizes = through(sender, odd, boxes)
        assert [picture.shape for picture in shown] == [(95, 157, 3)] * 3
        values = [yuv_psnrs(a, b, roi)["yuv_psnr"] for a, b in zip(odd, shown, strict=True)]
        measured[format] = np.mean(values), sum(sizes)
    assert measured[" 4:2:0"] != measured[""]
    assert measured[" 4:2:0"][0] > 30


def test_weights_of_ones_own_that_are_tuned_for_yuv_meet_codecs_at_420(tmp_path):
    own = tmp_path / "own.safetensors"
    shutil.copy(pretrained(PRETRAINED_CODECS["yuv"]), own)
    sent = drive.transmissions(Plan(weights=str(own)))
    assert [each.sender.name for each in sent] == ["roi_vbr (yuv)", *CODECS_AT_420]


def test_a_drive_tuned_for_yuv_is_at_420_and_compared_by_yuv_psnr(tiny_kitti):
    labels = str(tiny_kitti / "training" / "label_2")
    plan = Plan(mbit=(MBIT,), tune="yuv", seeds=(1,))
    sent = drive.transmissions(plan)
    ours, *others = (each.sender.name for each in sent)
    assert ours == "roi_vbr (yuv)"
    assert others == [f"{name} 4:2:0" for name in CODECS]
    records, _ = drive.send(Drive(tiny_kitti, boxes=labels, count=2), [sent[0], sent[3]])
    table = report.summary(records)
    assert list(report.columns(table, "whole").items())[7:10] == [
        ("roi_yuv_psnr", "ROI YUV dB"),
        ("bg_yuv_psnr", "background YUV dB"),
        ("roi_yuv_floor", "ROI floor YUV dB"),
    ]
    gain = table["roi_yuv_psnr"][0] - table["roi_yuv_psnr"][2]
    assert f"ROI {gain:+.2f} dB".replace("-", "−") in report.verdicts(table)[0]
    whole = records[(records["network"] == "whole") & (records["codec"] == ours)]
    assert table["roi_yuv_psnr"][0] == whole["roi_yuv_psnr"].mean()
    assert report.said_of(table, "labels") == "ROI: the labels. Quality: YUV-PSNR"
    axes = report.over_time(records, plan.latency_ms).axes
    assert [ax.get_ylabel() for ax in axes][2:] == ["ROI YUV-PSNR (dB)", "background YUV-PSNR (dB)"]


@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_motion_compensation_is_at_work(codec):
    pictures, boxes = street_of(6)
    still = [pictures[0]] * 6
    (_, moving), (_, standing) = (
        through(
            senders.conventional_sender(
                f"{codec} veryfast live", Bucket(constant(3), 10, 200), 0.0, 20
            ),
            p,
            boxes,
        )
        for p in (pictures, still)
    )
    assert sum(standing[3:]) < 0.5 * standing[0]
    assert sum(moving[1:]) < 5 * moving[0]


def test_frames_sized_one_by_one_never_exceed_their_budget(sent):
    _, records, _ = sent
    intra = records[~records["codec"].str.endswith("live")]
    assert set(intra["codec"]) == {"roi_vbr", "x265 medium intra", "x264 medium intra"}
    assert (intra["bytes"] <= intra["budget"]).all()
    assert not (intra["over"] | intra["late"]).any()
    assert (intra["budget"] <= 1125).all()
    ours = intra[(intra["codec"] == "roi_vbr") & ~intra["dropped"]]
    assert (ours["bytes"] > 0.9 * ours["budget"]).all()


def test_lost_frames_show_the_last_picture(sent):
    _, records, _ = sent
    lossy = records[records["network"] == "lossy"]
    assert lossy["lost"].any()
    assert not records[records["network"] == "whole"]["lost"].any()
    assert lossy[lossy["lost"]]["frozen"].all()
    intra = lossy[~lossy["codec"].str.endswith("live")]
    assert not (intra["affected"] & ~intra["lost"]).any()


def test_the_first_frame_arrives_and_seeds_lose_others(sent):
    _, records, _ = sent
    assert not records[records["frame"] == 0]["lost"].any()
    lost = {seed: set(rows[rows["lost"]]["frame"]) for seed, rows in records.groupby("seed")}
    assert lost.keys() == {1, 2}
    assert lost[1] != lost[2]


def test_the_first_frame_that_is_sent_arrives_where_earlier_ones_are_dropped(tiny_kitti, tmp_path):
    trace = tmp_path / "tunnel.csv"
    trace.write_text("time_s,mbit_s\n0,0\n0.15,1\n")
    options = {"loss": 0.95, "seeds": (0, 1, 2), "codecs": ("x264 ultrafast live",)}
    plan = Plan(trace=str(trace), latency_ms=1, **options)
    labels = tiny_kitti / "training" / "label_2"
    records, _ = drive.send(Drive(tiny_kitti, boxes=labels, count=4), drive.transmissions(plan))
    lossy = records[records["network"] == "lossy"].set_index(["codec", "frame"]).sort_index()
    for codec, rows in lossy.groupby("codec"):
        first = rows[~rows["dropped"]].index[0][1]
        assert first > 0
        assert not rows.loc[(codec, first), "lost"].any()
        assert rows.loc[(codec, first + 1), "lost"].any()


def test_a_receiver_that_shows_the_same_measures_the_same(sent):
    _, records, _ = sent
    whole = records[records["network"] == "whole"].set_index(["codec", "frame"])
    measured = ["psnr", "roi_psnr", "bg_psnr", "roi_flicker", "bg_flicker"]
    for _, rows in records[records["network"] == "lossy"].groupby("seed"):
        rows = rows.set_index(["codec", "frame"])
        hurt = rows["affected"] | rows.groupby("codec")["affected"].shift(fill_value=False)
        same = rows[~hurt][measured]
        pd.testing.assert_frame_equal(same, whole.loc[same.index, measured])
        assert (rows[rows["affected"]]["psnr"] != whole["psnr"][rows["affected"]]).all()


def test_verdicts_say_who_is_ahead_at_each_rate_in_a_line(sent):
    _, records, _ = sent
    slow, fast = records.assign(link="1 Mbit/s"), records.assign(link="2 Mbit/s")
    table = report.summary(pd.concat([slow, fast]))
    lines = report.verdicts(table)
    assert len(lines) == 2 * 4
    ours, other = table.iloc[0], table.iloc[2]
    for gain, word in ((0.09, "level with"), (2, "ahead of"), (-0.2, "behind")):
        near = table.assign(bg_psnr=ours["bg_psnr"], roi_psnr=ours["roi_psnr"] - gain)
        near.loc[table["label"] == "roi_vbr", "roi_psnr"] = ours["roi_psnr"]
        assert report.verdicts(near)[0].startswith(f"1 Mbit/s, roi_vbr {word} {other['label']}")
    gain = ours["roi_psnr"] - other["roi_psnr"]
    assert f"ROI {gain:+.2f} dB".replace("-", "−") in lines[0]
    assert "packets lost" in lines[0]
    assert "dropped" not in lines[0]
    table["dropped"] = 2
    assert "(2 of 6 frames dropped)" in report.verdicts(table)[0]
    table["dropped"] = table["frames"]
    assert report.verdicts(table)[0] == f"1 Mbit/s, {other['label']}: no frame fits"
    assert report.text(records, records.assign(encode_ms=1, decode_ms=1), "labels").startswith(
        "ROI: the labels. Quality: RGB-PSNR\n"
    )


def test_the_enlarged_part_follows_the_largest_box(tmp_path):
    film = Film(tmp_path / "a.mp4", "whole", [], 10)
    picture, roi = np.zeros((90, 200, 3), np.uint8), np.zeros((90, 200), bool)
    boxes = np.array([[0.0, 0, 10, 10], [100, 30, 140, 60]])
    assert film._window(Frame("0", picture, boxes, roi, None)) == (100, 30, 140, 60)
    film.close(complete=False)
    (left, *_) = film._window(Frame("1", picture, boxes[:1], roi, None))
    assert 0 < left < 100  # on its way


def test_labels_beside_the_frames_are_what_is_measured(tmp_path):
    for i in range(2):
        Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / f"{i}.png")
    assert Drive(tmp_path).roi == "boxes that the encoders get"
    (tmp_path / "0.json").write_text("[[8, 8, 24, 24]]")
    with pytest.raises(ValueError, match=r"no 1\.txt or 1\.json"):
        Drive(tmp_path)
    (tmp_path / "1.json").write_text("[]")
    frames = Drive(tmp_path)
    assert frames.roi == "labelled boxes"
    assert [int(frame.roi.sum()) for frame in frames] == [256, 0]


def test_files_hold_what_was_measured(sent):
    folder, records, times = sent
    made = {path.name for path in folder.iterdir()}
    figures = {
        f"drive_{network}.{kind}"
        for network in ("whole", "lossy")
        for kind in ("pdf", "png", "mp4")
    }
    assert made == figures | {
        "drive.html",
        "drive.csv",
        "drive_frames.csv",
        "drive_times.csv",
        "drive_provenance.json",
    }
    assert len(records) == 3 * len(times) == 3 * 5 * 6  # without losses, and with two seeds'
    assert json.loads((folder / "drive_provenance.json").read_text())["parameters"]["mbit"] == [
        MBIT
    ]
    table = report.summary(records)
    rows = records[(records["codec"] == "roi_vbr") & (records["network"] == "whole")]
    assert "Mbit/s, roi_vbr" in (folder / "drive.html").read_text()
    assert table.loc[0, "roi_psnr"] == pytest.approx(
        psnr_from_mse(rows["roi_sse"].sum() / rows["roi_count"].sum(), 255)
    )
    assert table.loc[0, "roi_floor"] == rows["roi_psnr"].min()


def test_flicker_is_the_change_of_the_error():
    picture = np.full((4, 6, 3), 100, np.uint8)
    roi = np.zeros((4, 6), bool)
    roi[:2] = True
    frame = Frame("0", picture, np.zeros((0, 4)), roi, None)
    screen = drive.Receiver(senders.conventional_sender(NAME, Bucket(constant(1), 10, 200), 0, 1))
    assert screen.show(frame, picture + 3)["flicker"] is None  # nothing before it
    still = screen.show(frame, picture + 3)
    assert (still["flicker"], still["psnr"]) == (0, pytest.approx(psnr_from_mse(9, 255)))
    half = picture + 3
    half[:2] -= 5
    changed = screen.show(frame, half)
    assert (changed["roi_flicker"], changed["bg_flicker"]) == (5, 0)


def test_an_intra_codec_weakens_its_roi_before_it_drops_a_frame():
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    boxes = np.array([[8, 8, 88, 56]])
    codec = ConventionalCodec("x264 veryfast")
    smallest = {k: len(codec.encode(image, boxes, quality=51, qoffset=k)) for k in (-0.4, -0.2, 0)}
    assert smallest[0] < smallest[-0.2] < smallest[-0.4]
    for qoffset in (-0.2, 0):
        bucket = Bucket(constant(smallest[qoffset] * 8 * 10 / 1e6), 10, 200)
        sender = senders.conventional_sender("x264 veryfast intra", bucket, -0.4, 20)
        assert len(sender.encode(image, boxes, 0.0)) == smallest[qoffset]


def test_what_does_not_fit_is_dropped_and_counted(tiny_kitti):
    labels = str(tiny_kitti / "training" / "label_2")
    plan = Plan(mbit=(0.004,), loss=0.0, codecs=("x264 veryfast intra",))
    records, _ = drive.send(Drive(tiny_kitti, boxes=labels, count=2), drive.transmissions(plan))
    assert records["dropped"].all()
    assert records["frozen"].all()
    assert (records["bytes"] == 0).all()
    assert list(report.summary(records)["dropped"]) == [2, 2]


@pytest.mark.slow
def test_a_drive_without_regions_and_without_errors_is_reported(tmp_path):
    for i in range(2):
        Image.fromarray(np.full((96, 160, 3), 128, np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.json").write_text("[]")
    plan = Plan(mbit=(MBIT,), loss=0.0, codecs=("x264 ultrafast intra",))
    records, times = drive.run(
        Drive(tmp_path, boxes=str(tmp_path)), plan, tmp_path / "made", tmp_path / "made"
    )
    exact = records[records["codec"] == "x264 ultrafast intra"]
    assert (exact["bg_sse"] == 0).all()
    assert records["roi_psnr"].isna().all()
    assert exact["bg_psnr"].isna().all()
    table = report.summary(records)
    assert table.loc[1, ["roi_psnr", "bg_psnr", "bg_floor"]].isna().all()
    assert "not to be compared with x264 ultrafast intra" in report.verdicts(table)[0]
    table.loc[1, "bg_psnr"] = table.loc[0, "bg_psnr"] - 1
    assert "ahead of x264 ultrafast intra" in report.verdicts(table)[0]
    assert "| x264 ultrafast intra |" in report.text(records, times, "boxes")
    assert (
        "nan"
        not in report.text(records, times, "boxes")
        + (tmp_path / "made" / "drive.html").read_text().lower()
    )


@pytest.mark.slow
def test_one_frame_is_a_drive(tiny_kitti, tmp_path):
    frames = Drive(tiny_kitti, boxes=str(tiny_kitti / "training" / "label_2"), count=1)
    plan = Plan(mbit=(MBIT,), codecs=(), seeds=())
    records, _ = drive.run(frames, plan, tmp_path, tmp_path)
    assert records[["flicker", "roi_flicker", "bg_flicker"]].isna().all(axis=None)
    assert (tmp_path / "drive.html").exists()


def test_frames_that_do_not_go_together_are_named_before_any_is_coded(tmp_path):
    for name, side in (("a.png", 96), ("b.png", 96), ("c.png", 64)):
        Image.fromarray(np.zeros((64, side, 3), np.uint8)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".json").write_text("[]")
    with pytest.raises(ValueError, match=r"c\.png: 64x64 pixels, the frames before it have 96x64"):
        Drive(tmp_path, boxes=str(tmp_path))
    (tmp_path / "c.png").rename(tmp_path / "old")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ValueError, match=r"b\.json: not a list"):
        Drive(tmp_path, boxes=str(tmp_path))
    (tmp_path / "b.png").rename(tmp_path / "a.webp")
    with pytest.raises(ValueError, match=r"a\.webp: a second picture of the name a"):
        Drive(tmp_path, boxes=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mbit": [2.0], "trace": "TRACE"}, "mbit has no effect with trace"),
        ({"burst": 3.0, "loss": 0.0}, "burst has no effect with loss=0"),
        (
            {"alpha": 0.7, "weights": str(pretrained(PRETRAINED_BASELINE))},
            "alpha has no effect with weights of one rate",
        ),
    ],
)
def test_settings_of_a_drive_without_effect_are_said(tmp_path, options, said):
    (tmp_path / "up.csv").write_text("time_s,mbit_s\n0,1\n")
    options = {k: str(tmp_path / "up.csv") if v == "TRACE" else v for k, v in options.items()}
    with pytest.warns(UserWarning, match=said):
        drive.transmissions(Plan(codecs=(), **options))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "nowhere: no such folder or video"),
        (["x" * 300], "File name too long"),
        (["KITTI", "--codecs", "x266 fast live"], "x266 fast live: a codec of a drive is"),
        (["KITTI", "--mbit", "0"], "a bandwidth is"),
        (["KITTI", "--trace", "none.csv"], "none.csv: no such file"),
        (["KITTI", "--boxes", "KITTI"], "no 000000.txt or 000000.json"),
        (["KITTI", "--qoffset", "-3"], "qoffset is"),
        (["KITTI", "--count", "0"], "a drive has 1 frame or more, not 0"),
        (["KITTI", "--seeds", "-1"], "a seed is 0 or more"),
        (["KITTI", "--alpha", "7"], "alpha is a number from 0 to 1, not 7"),
        (["KITTI", "--fps", "0.0003"], "frames a second are"),
        (["KITTI", "--mbit", "1e9"], "a bandwidth is"),
        (["KITTI", "--trace", "."], ".: cannot be read"),
        (["KITTI", "--boxes", ""], "an empty word among the arguments"),
        (["KITTI", "--boxes"], "--boxes requires"),
        (["KITTI", "--codecs", "x264 fast live", "x264 fast live"], "is named twice"),
        (["KITTI", "--results", "/dev/null"], "/dev/null: cannot be written"),
    ],
)
def test_bad_options_are_one_line(tiny_kitti, capsys, options, message):
    options = [str(tiny_kitti) if option == "KITTI" else option for option in options]
    assert main(["drive", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]


@pytest.mark.slow
def test_a_drive_overwrites_neither_inputs_nor_files_of_others(tiny_kitti, tmp_path, capsys):
    trace = tmp_path / "drive.csv"
    trace.write_text("time_s,mbit_s\n0,1\n")
    words = ["drive", str(tiny_kitti), "--count", "1", "--codecs", "x264 ultrafast intra"]
    words += ["--boxes", str(tiny_kitti / "training" / "label_2"), "--loss", "0"]
    words += ["--results", str(tmp_path), "--figures", str(tmp_path / "figures")]
    assert main([*words, "--trace", str(trace), "--force"]) == 2
    assert "drive.csv: is an input of this command" in capsys.readouterr().err
    assert main(words) == 2
    assert "drive.csv: exists, and does not say that roilib made it" in capsys.readouterr().err
    assert trace.read_text() == "time_s,mbit_s\n0,1\n"
    trace.unlink()
    for _ in range(2):  # the second one finds what the first one made
        assert main(words) == 0


@pytest.mark.slow
def test_the_notebook_runs_headless(tiny_kitti, tmp_path):
    values = {"drive": str(tiny_kitti), "frames": 3, "mbit": [MBIT]}
    values["more"] = {"codecs": ["x264 ultrafast live"]}
    values |= {
        "logdir": str(tmp_path),
        "results": str(tmp_path / "results"),
        "figures": str(tmp_path / "figures"),
    }
    notebooks.execute(
        notebooks.ROOT / "notebooks" / "08_thin_link.ipynb", tmp_path / "08.ipynb", values
    )
    (ours, *_) = json.loads((tmp_path / "08_thin_link" / "metrics.json").read_text())["summary"]
    assert (ours["label"], ours["frames"], ours["over"]) == ("roi_vbr", 3, 0)
    cells = nbformat.read(tmp_path / "08.ipynb", 4).cells
    outputs = [o for c in cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 5
    assert not [o.text for o in outputs if o.get("name") == "stderr"]  # shown in red
