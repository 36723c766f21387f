"""roilib.drive: real codecs over a simulated link; a lost packet costs an intra codec one frame and an inter-coded stream all until its next keyframe."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from roilib import drive
from roilib.drive import Drive, Leg, Plan, send
from roilib.link import Bucket, constant
from roilib.senders import Intra, Live, peer

BOX = "Car 0 0 0 {x} 40 {y} 90 0 0 0 0 0 0 0\n"
COUNT = 8


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A folder of a textured block that moves over textured ground, and KITTI labels of where it is."""
    root, random = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    ground = np.kron(random.integers(60, 190, (16, 32, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    block = random.integers(0, 256, (50, 64, 3)).astype(np.uint8)
    (root / "training" / "image_2").mkdir(parents=True)
    (root / "training" / "label_2").mkdir()
    for i in range(COUNT):
        picture, x = ground.copy(), 20 + 6 * i
        picture[40:90, x : x + 64] = block
        Image.fromarray(picture).save(root / "training" / "image_2" / f"{i:03d}.png")
        (root / "training" / "label_2" / f"{i:03d}.txt").write_text(BOX.format(x=x, y=x + 64))
    return root


@pytest.fixture(scope="module")
def told(frames):
    """Its frames, whose boxes the encoders are told."""
    return list(Drive(frames, boxes=str(frames / "training" / "label_2")))


PLAN = Plan(mbit=0.5, loss=0.2, seed=3, keyint=4, peers=("x264 veryfast intra", "x264 veryfast live", "x265 ultrafast live"))


@pytest.fixture(scope="module")
def sent(told):
    return send(told, PLAN.legs())[0]


def test_every_codec_has_a_record_of_every_frame_on_both_networks(sent):
    assert set(sent["codec"]) == {"roi_vbr", *PLAN.peers}
    assert (sent.groupby(["codec", "network"]).size() == COUNT).all()


def test_who_sizes_frames_itself_never_exceeds_the_budget_and_is_never_late(sent):
    ours = sent[sent["codec"].isin(["roi_vbr", "x264 veryfast intra"])]
    assert (ours["bytes"] <= ours["budget"]).all()
    assert not ours["over"].any()
    assert not ours["late"].any()
    assert not ours["dropped"].any()
    assert (ours["bytes"] > 0.5 * ours["budget"]).all()


def test_a_lost_packet_freezes_an_intra_codec_for_a_frame(sent):
    lossy = sent[(sent["network"] == "lossy") & sent["codec"].isin(["roi_vbr", "x264 veryfast intra"])]
    assert lossy["lost"].any()
    assert (lossy["affected"] == lossy["lost"]).all()
    assert (lossy["frozen"] == lossy["lost"]).all()


def test_a_lost_packet_spoils_an_inter_coded_stream_until_its_next_keyframe(told):
    leg = Leg(Live(Bucket(constant(0.5), 10, 200), "x264", "veryfast", 0.0, keyint=4), Plan(loss=0.5))
    lost = 1
    leg.loss.arrives = lambda number, size: number != lost
    lossy = [next(r for r in leg.step(i, frame)[0] if r["network"] == "lossy") for i, frame in enumerate(told)]
    assert [r["affected"] for r in lossy] == [False, True, True, True, False, False, False, False]


def test_without_losses_there_is_one_receiver(told):
    records, times = send(told[:2], [Leg(peer("x264 veryfast intra", Bucket(constant(1), 10, 200), -0.2, 4), Plan(loss=0))])
    assert set(records["network"]) == {"whole"}
    assert (times["encode_ms"] > 0).all()


def roi_gain(sender_of, told):
    """dB by which the region is better, against the background, with ROI than without."""
    table = []
    for qoffset in (0.0, -0.4):
        records, _ = send(told[:5], [Leg(sender_of(qoffset), Plan(loss=0))])
        table.append((records["roi_psnr"] - records["bg_psnr"]).mean())
    return table[1] - table[0]


@pytest.mark.parametrize(("codec", "preset"), [("x264", "veryfast"), ("x264", "ultrafast"), ("x265", "veryfast"), ("x265", "ultrafast")])
def test_a_live_encoders_region_of_interest_is_one(codec, preset, told):
    assert roi_gain(lambda qoffset: Live(Bucket(constant(0.4), 10, 400), codec, preset, qoffset, 20), told) > 0.5


def test_an_intra_senders_region_of_interest_is_one(told):
    assert roi_gain(lambda qoffset: Intra(Bucket(constant(0.4), 10, 400), "x264", "veryfast", qoffset), told) > 1


def test_a_frame_that_does_not_fit_is_dropped_and_the_screen_stays(told):
    records, _ = send(told[:2], [Leg(peer("x264 veryfast intra", Bucket(constant(0.001), 10, 200), 0.0, 4), Plan(loss=0))])
    assert records["dropped"].all()
    assert records["frozen"].all()
    assert (records["bytes"] == 0).all()


def test_flicker_is_how_the_error_changes(told):
    screen = drive.Screen()
    a, b = told[:2]
    screen.show(a, a.image)
    values = screen.show(b, np.clip(b.image.astype(int) + 3, 0, 255).astype(np.uint8))
    assert values["flicker"] == pytest.approx(3, abs=0.05)
    assert screen.show(b, screen.picture)["flicker"] == 0


def test_the_command_writes_records_figures_and_a_page(frames, tmp_path, capsys):
    words = [
        str(frames),
        "--boxes",
        str(frames / "training" / "label_2"),
        "--count",
        "3",
        "--mbit",
        "0.5",
        "--loss",
        "0.2",
        "--peers",
        "x264 veryfast live",
    ]
    assert drive.main([*words, "--results", str(tmp_path / "r"), "--figures", str(tmp_path / "f")]) == 0
    assert "| roi_vbr |" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "r" / "drive_frames.csv")) == 3 * 2 * 2
    assert json.loads((tmp_path / "r" / "drive_provenance.json").read_text())["plan"]["mbit"] == 0.5
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert names == {"drive.html", *(f"drive_{n}.{kind}" for n in ("whole", "lossy") for kind in ("mp4", "pdf", "png"))}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mbit", "0"], "bandwidth"),
        (["--peers", "x266 slow live"], "x266 slow live: a peer is"),
        (["--trace", "nowhere.csv"], "nowhere.csv"),
        (["--boxes", "."], "no 000.txt"),
        (["--qoffset", "2"], "qoffset"),
    ],
)
def test_mistakes_are_one_line(words, message, frames, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert drive.main([str(frames), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_frames_must_be_of_one_size(tmp_path):
    for name, size in (("a.png", (64, 64)), ("b.png", (64, 48))):
        Image.new("RGB", size).save(tmp_path / name)
        (tmp_path / name).with_suffix(".json").write_text("[]")
    with pytest.raises(ValueError, match=r"b\.png: 64x48 pixels"):
        list(Drive(tmp_path, boxes=str(tmp_path)))
