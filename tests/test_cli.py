"""The `roilib` command."""

import io
import json
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import REPOSITORY, UNTRAINED, street, untrained_codec
from PIL import Image

from roilib.apps import transcode
from roilib.cli import main
from roilib.codecs.roic import load_codec
from roilib.datasets.images import read_picture
from roilib.models.weights import save_weights
from roilib.utils.pretrained import (
    PRETRAINED_BASELINE,
    PRETRAINED_CODECS,
    PRETRAINED_DETECTOR,
    pretrained,
)

WITH_FEATURES = {"which": "hyperprior_with_obj_features", "N": 4, "M": 6}


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(street(0)).save(tmp_path / "street.png")
    return tmp_path / "street.png"


@pytest.fixture
def pictures(tmp_path):
    """A folder of three pictures, with a hidden file and a box file of each picture beside it."""
    folder = tmp_path / "drive"
    folder.mkdir()
    for i, name in enumerate(("frame_2", "frame_10", "frame_1")):
        Image.fromarray(street(i)).save(folder / f"{name}.png")
        (folder / f"{name}.json").write_text("[[10, 50, 58, 80]]")
    (folder / "._frame_1.png").write_bytes(b"of macOS")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The pretrained weights, in a file that a command may destroy."""
    copy = tmp_path_factory.mktemp("weights") / "copy.safetensors"
    copy.write_bytes(pretrained(PRETRAINED_CODECS["rgb"]).read_bytes())
    return ["--weights", str(copy)]


@pytest.fixture
def stream(picture, weights, tmp_path):
    assert main(["encode", str(picture), str(tmp_path / "a.roic"), *weights]) == 0
    return tmp_path / "a.roic"


@pytest.fixture
def standard(monkeypatch):
    """`standard(data)` puts bytes on standard input; returns what standard output will hold."""

    def put(data=b""):
        out = io.TextIOWrapper(io.BytesIO(), write_through=True)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        monkeypatch.setattr(sys, "stdout", out)
        return out.buffer

    return put


def refused(capsys, words, *named, code=2):
    """Check that a command ends with one line on stderr that names these."""
    capsys.readouterr()
    assert main(list(map(str, words))) == code
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1, shown
    assert all(str(name) in shown for name in named), shown


def decibels(path):
    error = np.asarray(Image.open(path)).astype(float) - street(0)
    return -10 * np.log10((error**2).mean() / 255**2)


def test_encode_info_decode(picture, weights, tmp_path, capsys):
    boxes, stream, out = tmp_path / "boxes.json", tmp_path / "a.roic", tmp_path / "a.png"
    boxes.write_text("[[10, 50, 58, 80], [120, 40, 132, 70, 0.5]]")
    options = ["--boxes", str(boxes), "--lmbda", "0.03", "--alpha", "0.8", *weights]
    assert main(["encode", str(picture), str(stream), *options]) == 0
    size = stream.stat().st_size
    said = f"{stream}: {size:,} bytes, {8 * size / (96 * 160):.3f} bpp, 2 boxes\n"
    assert capsys.readouterr() == (said, "")
    assert main(["info", str(stream)]) == 0
    said = capsys.readouterr().out
    assert '\n  "boxes": [[10, 50, 58, 80, 1.0], [' in said  # a line a value
    info = json.loads(said)
    assert info["bytes"] == stream.stat().st_size
    assert info["boxes"] == [[10, 50, 58, 80, 1.0], [120, 40, 132, 70, 0.502]]
    assert info["alpha"] == pytest.approx(0.8, abs=1e-4)
    assert main(["decode", str(stream), str(out), *weights]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: decoded from {size:,} bytes, ")
    assert decibels(out) > 20
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"street.png", "boxes.json", "a.roic", "a.png"}


def test_kitti_labels_and_detectors_give_boxes(picture, weights, tmp_path, tiny_kitti, capsys):
    label = tiny_kitti / "training" / "label_2" / "000000.txt"
    out = tmp_path / "a.roic"
    assert main(["encode", str(picture), str(out), "--boxes", str(label), *weights]) == 0
    assert "2 boxes" in capsys.readouterr().out  # DontCare is none
    assert main(["encode", str(picture), str(tmp_path / "b.roic"), "--detect", *weights]) == 0
    detector = str(pretrained(PRETRAINED_DETECTOR))
    options = ["--detector", detector, "--confidence", "0.0001", *weights]
    assert main(["encode", str(picture), str(tmp_path / "c.roic"), *options]) == 0
    words = ["encode", str(picture), str(tmp_path / "d.roic"), *options, "--classes", "Pedestrian"]
    assert main(words) == 0
    assert main([*words[:-1], "Car, Tram"]) == 0
    found = [int(line.split()[-2]) for line in capsys.readouterr().out.splitlines()]
    assert found[0] < found[1] == found[2]  # with less confidence people are found
    assert found[3] == 0
    refused(capsys, [*words[:-1], "Horse"], "no class Horse; it has Car, ")
    refused(capsys, [*words, "--confidence", "7"], "--confidence")


def test_a_detector_that_weights_need_is_named_by_the_caller(picture, tmp_path, capsys):
    own, path = tmp_path / "own.pt", tmp_path / "w.safetensors"
    shutil.copy(pretrained(PRETRAINED_DETECTOR), own)
    codec = untrained_codec(**WITH_FEATURES, detector_weights=str(own))
    save_weights(path, codec.model, codec.parameters, 1)  # without the hash of its detector
    boxes = tmp_path / "boxes.json"
    boxes.write_text("[[10, 50, 58, 80]]")
    words = ["--boxes", str(boxes), "--weights", str(path)]
    coded = ["encode", str(picture), str(tmp_path / "a.roic"), *words]
    refused(capsys, coded, "name it (encode --detector")
    refused(capsys, ["compare", str(picture), *words], "name it (encode --detector")
    assert main([*coded, "--detector", str(own)]) == 0
    assert main(["compare", str(picture), *words, "--detector", str(own)]) == 0
    assert "no effect" not in capsys.readouterr().err


def test_folders_are_coded_and_decoded_in_the_order_of_numbers(pictures, weights, tmp_path, capsys):
    out, back = tmp_path / "out", tmp_path / "back"
    options = ["--boxes", str(pictures), *weights]
    assert main(["encode", str(pictures), str(out), "--json", *options]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = ["frame_1", "frame_2", "frame_10"]
    assert [r["source"] for r in records] == [str(pictures / f"{name}.png") for name in names]
    assert {path.stem for path in out.iterdir()} == set(names)
    assert all(len(r["boxes"]) == 1 and r["bytes"] > 20 for r in records)
    assert main(["decode", str(out), str(back), *weights]) == 0
    summary = capsys.readouterr().out
    total = sum(path.stat().st_size for path in out.iterdir())
    assert summary.startswith(f"{back}: 3 pictures, {total:,} bytes, ")
    assert {path.name for path in back.iterdir()} == {f"{name}.png" for name in names}
    assert main(["info", str(out)]) == 0
    described = json.loads(capsys.readouterr().out)
    assert [d["bytes"] for d in described] == [r["bytes"] for r in records]


def test_one_bad_picture_is_named_and_the_others_are_coded(pictures, weights, tmp_path, capsys):
    (pictures / "frame_2.png").write_bytes((pictures / "frame_2.png").read_bytes()[:900])
    assert main(["encode", str(pictures), str(tmp_path / "out"), *weights]) == 2
    shown = capsys.readouterr()
    bad, summary = shown.err.splitlines()
    assert bad.startswith(f"roilib encode: {pictures / 'frame_2.png'}: not a readable picture")
    assert summary == "roilib encode: 1 of 3 files failed"
    assert "2 pictures" in shown.out
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"frame_1", "frame_10"}


def test_info_names_a_damaged_stream_and_describes_the_others(stream, capsys):
    bad = stream.with_name("0.roic")
    bad.write_bytes(stream.read_bytes()[:9])
    capsys.readouterr()
    assert main(["info", str(stream.parent)]) == 2
    shown = capsys.readouterr()
    named, summary = shown.err.splitlines()
    assert named.startswith(f"roilib info: {bad}: ")
    assert summary == "roilib info: 1 of 2 files failed"
    assert [row["source"] for row in json.loads(shown.out)] == [str(stream)]


def test_standard_input_and_output(picture, weights, standard):
    out = standard(picture.read_bytes())
    assert main(["encode", "-", "-", *weights]) == 0
    stream = out.getvalue()
    assert stream == load_codec(weights[1]).encode(street(0))
    out = standard(stream)
    assert main(["decode", "-", "-", *weights]) == 0
    assert np.asarray(Image.open(io.BytesIO(out.getvalue()))).shape == (96, 160, 3)
    out = standard(stream)
    assert main(["info", "-"]) == 0
    assert json.loads(out.getvalue())["bytes"] == len(stream)


@pytest.mark.parametrize(
    ("words", "closed", "named"),
    [
        (["info", "-"], "stdin", "standard input: is closed"),
        (["info", "-", "-"], None, "-: standard input can be read only once"),
        (["encode", "-", "b.roic"], "stdin", "standard input: is closed"),
        (["decode", "{stream}", "-"], "stdout", "standard output: is closed"),
        (["info", "{stream}"], "stdout", "standard output: is closed"),
    ],
)
def test_closed_standard_streams_are_one_line(
    stream, standard, monkeypatch, capsys, words, closed, named
):
    standard(stream.read_bytes())
    if closed:
        monkeypatch.setattr(sys, closed, None)
    refused(capsys, [word.format(stream=stream) for word in words], f"roilib {words[0]}: {named}")


def test_a_full_disk_behind_a_decoded_picture_is_one_line(stream, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        said = "roilib decode: standard output: cannot be written (No space left on device)"
        refused(capsys, ["decode", stream, "-"], said)


def test_what_is_no_picture_on_standard_input(weights, standard, capsys):
    standard(b"none")
    refused(capsys, ["encode", "-", "-", *weights], "standard input: not a readable picture")
    standard(b"none")
    refused(capsys, ["decode", "-", "-", *weights], "standard input: not a .roic stream")


def test_a_stream_of_other_weights_is_named(stream, tmp_path, capsys):
    other = tmp_path / "other.roic"
    other.write_bytes(untrained_codec(**UNTRAINED[0]).encode(street(0)))
    assert main(["decode", str(stream), str(other), str(tmp_path / "out")]) == 2
    named, summary = capsys.readouterr().err.splitlines()
    assert named.startswith(f"roilib decode: {other}: a .roic stream of model ")
    assert summary == "roilib decode: 1 of 2 files failed"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_streams_of_both_tunes_decode_in_one_command(picture, tmp_path):
    for tune in ("rgb", "yuv"):
        out = tmp_path / "streams" / f"{tune}.roic"
        out.parent.mkdir(exist_ok=True)
        assert main(["encode", str(picture), str(out), "--tune", tune]) == 0
    assert main(["decode", str(tmp_path / "streams"), str(tmp_path / "decoded")]) == 0
    for tune in ("rgb", "yuv"):
        stream = (tmp_path / "streams" / f"{tune}.roic").read_bytes()
        with Image.open(tmp_path / "decoded" / f"{tune}.png") as decoded:
            assert np.array_equal(np.array(decoded), load_codec(tune=tune).decode(stream))


def test_tune_and_weights_exclude_each_other(picture, weights, tmp_path, capsys):
    out = tmp_path / "a.roic"
    assert main(["encode", str(picture), str(out), *weights, "--tune", "yuv"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "tune chooses among the pretrained weights" in told
    assert not out.exists()


def test_a_preview_is_what_decodes(picture, weights, tmp_path):
    names = [str(tmp_path / name) for name in ("a.roic", "preview.png", "a.png")]
    assert main(["encode", str(picture), names[0], "--preview", names[1], *weights]) == 0
    assert main(["decode", names[0], names[2], *weights]) == 0
    assert np.array_equal(Image.open(names[1]), Image.open(names[2]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["info", "{tmp}/none.roic"], "none.roic"),
        (["info"], "a stream is needed"),
        (["info", "{picture}"], "street.png: not a .roic stream"),
        (["decode", "{picture}", "{tmp}/out.png", "{weights}"], "street.png: not a .roic stream"),
        (["encode", "{tmp}/none.png", "{tmp}/a.roic", "{weights}"], "none.png"),
        (
            ["encode", "{tmp}", "{tmp}/none", "--boxes", "{tmp}/no", "{weights}"],
            "no: no such file or",
        ),
        (["encode", "{tmp}", "{tmp}/n", "--boxes", "{tmp}", "{weights}"], "no street.txt or"),
        (["encode", "{picture}"], "an input and an output are needed"),
        (["encode", "{picture}", "{tmp}/a.roic", "--max-bytes", "9", "{weights}"], "max_bytes"),
        (["encode", "{picture}", "{tmp}/a.roic", "--lmbda", "3", "{weights}"], "lmbda"),
        (["encode", "{picture}", "{tmp}/no/a.roic", "{weights}"], "a.roic: cannot be written"),
        (["encode", "{picture}", "{tmp}/a.roic", "--boxes", "{tmp}/no.txt", "{weights}"], "no.txt"),
        (["encode", "{picture}", "{tmp}/a.roic", "--weights", "{tmp}/no.safetensors"], "no.safe"),
        (["encode", "{picture}", "{tmp}/a.roic", "--weights", "{tmp}"], "a folder"),
        (["encode", "{picture}", "/dev/null", "{weights}"], "/dev/null: cannot be written (not a"),
        (["encode", "{picture}", "{tmp}/a.roic", "--device", "tpu", "{weights}"], "tpu"),
        (["encode", "-", "{picture}", "{tmp}/out", "{weights}"], "-: only one input"),
        (["encode", "{picture}", "-", "--json", "{weights}"], "both be standard output"),
        (["encode", "{tmp}", "{tmp}", "--preview", "p.png", "{weights}", "{picture}"], "p"),
        (["encode", "{picture}", "{tmp}/a.roic", "--detect", "--boxes", "b.txt"], "exclude each"),
        (["encode", "{picture}", "{tmp}/a.roic", "--preview", "{tmp}/p.gif"], "p.gif: a picture's"),
        (["encode", "{picture}", "{tmp}/a", "--preview", "{tmp}/a"], "a: a picture's name ends"),
        (["encode", "{picture}", "{tmp}/a", "--lmda", "1"], "--lmda; did you mean --lmbda?"),
        (["encode", "{picture}", "{tmp}/a", "--crf", "1"], "--crf; did you mean --lmbda?"),
        (["encode", "{picture}", "{tmp}/a", "--roi", "1"], "--roi; did you mean --boxes?"),
        (["decode", "-s.roic", "{tmp}/a.png"], "unknown option -s.roic; did you mean ./-s.roic"),
        (["encode", "{picture}", "{tmp}/a", "--detect", "--classes", ",", "{weights}"], "no class"),
        (["encode", "{picture}", "{tmp}/a", "--depth", "12", "{weights}"], "depth=12 is for grey"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    picture, weights, tmp_path, capsys, arguments, named
):
    places = {"tmp": tmp_path, "picture": picture}
    words = [
        part
        for word in arguments
        for part in (weights if word == "{weights}" else [word.format(**places)])
    ]
    refused(capsys, words, f"roilib {words[0]}: ", named)
    assert [path.name for path in tmp_path.iterdir()] == ["street.png"]


def test_no_command_overwrites_what_it_did_not_make(picture, stream, weights, tmp_path, capsys):
    mine = {
        "street2.png": picture.read_bytes(),
        "notes.txt": b"notes",
        "boxes.json": b"[]",
        "other.jpg": b"mine",
    }
    for name, content in mine.items():
        (tmp_path / name).write_bytes(content)
    at = {name: tmp_path / name for name in mine}
    refused(capsys, ["encode", picture, at["street2.png"], *weights], "street2.png: is a picture's")
    refused(capsys, ["encode", picture, at["notes.txt"], *weights], "notes.txt: exists", "--force")
    refused(capsys, ["decode", stream, at["street2.png"], *weights], "street2.png: exists")
    refused(capsys, ["decode", stream, at["other.jpg"], *weights], "other.jpg: exists")
    boxes = ["--boxes", at["boxes.json"], "--force"]
    refused(capsys, ["encode", picture, at["boxes.json"], *boxes, *weights], "is an input")
    model = weights[1]
    refused(capsys, ["encode", picture, model, "--force", *weights], "is an input of this command")
    refused(capsys, ["encode", picture, picture, "--force", *weights], "street.png: is ")
    refused(capsys, ["encode", picture, tmp_path / "x.roic", "--preview", picture], "is an input")
    assert {name: path.read_bytes() for name, path in at.items()} == mine
    assert main(["encode", str(picture), str(at["notes.txt"]), "--force", *weights]) == 0
    assert at["notes.txt"].read_bytes() == stream.read_bytes()


@pytest.mark.parametrize(
    "way", ["hard link", "symlink", "other spelling", "dots", "link to folder"]
)
def test_an_input_by_another_name_is_no_output(picture, weights, tmp_path, capsys, way):
    before, out = picture.read_bytes(), tmp_path / "out"
    if way == "hard link":
        out.hardlink_to(picture)
    elif way == "symlink":
        out.symlink_to(picture)
    elif way == "link to folder":
        out.symlink_to(tmp_path)
        out = out / picture.name
    else:
        out = tmp_path / ("../" + tmp_path.name if way == "dots" else ".") / picture.name
    for words in (["compare", picture, "--out", out], ["encode", picture, out]):
        if out.suffix != ".png" and words[0] == "compare":
            continue
        refused(capsys, [*words, "--force", *weights], "is ")
    assert picture.read_bytes() == before


def test_a_stream_without_regions_says_how_to_get_them(picture, weights, tmp_path, capsys):
    assert main(["encode", str(picture), str(tmp_path / "a.roic"), *weights]) == 0
    assert "--detect or --boxes mark regions of interest" in capsys.readouterr().err


def test_what_it_made_is_written_again(picture, stream, weights, tmp_path):
    first = stream.read_bytes()
    assert main(["encode", str(picture), str(stream), "--lmbda", "0.05", *weights]) == 0
    assert stream.read_bytes() != first
    out = str(tmp_path / "out.png")
    for _ in range(2):
        assert main(["decode", str(stream), out, *weights]) == 0


def test_a_second_picture_where_the_output_stands_is_refused(
    pictures, weights, capsys, monkeypatch
):
    """`roilib encode *.png` in a folder of pictures destroyed the last one."""
    monkeypatch.chdir(pictures)
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}
    refused(capsys, ["encode", "frame_1.png", "frame_2.png", *weights], "frame_2.png: is a")
    words = ["encode", "frame_1.png", "frame_10.png", "frame_2.png", "--force", *weights]
    refused(capsys, words, "frame_2.png: is a file, but several outputs need a folder")
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before


def test_an_output_that_ends_in_a_slash_is_a_folder(picture, weights, tmp_path, capsys):
    assert main(["encode", str(picture), f"{tmp_path}/new.d/", *weights]) == 0
    stream = tmp_path / "new.d" / "street.roic"
    assert main(["decode", str(stream), f"{tmp_path}/back/", *weights]) == 0
    assert decibels(tmp_path / "back" / "street.png") > 20
    words = ["encode", picture, f"{stream}/", *weights]
    refused(capsys, words, "street.roic: is a file, but a / at the end means a folder")
    (tmp_path / "notes").write_text("mine")
    words = ["encode", picture, picture, tmp_path / "notes", *weights]
    refused(capsys, words, "notes: is a file, but several outputs need a folder")


def test_two_inputs_never_share_an_output(pictures, weights, tmp_path, capsys):
    Image.fromarray(street(3)).save(pictures / "frame_1.jpg")
    words = ["encode", pictures, tmp_path / "out", *weights]
    refused(capsys, words, "frame_1.", "has the same output as")
    assert not (tmp_path / "out").exists()


def test_a_comparison_is_a_table_and_a_picture(picture, weights, tmp_path, capsys):
    (tmp_path / "boxes.json").write_text("[[10, 50, 58, 80], [120, 40, 132, 70, 0.5]]")
    words = ["compare", str(picture), "--boxes", str(tmp_path / "boxes.json"), *weights]
    assert main([*words, "--lmbda", "0.05", "--out", str(tmp_path / "compared.png")]) == 0
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert heading == "| codec | setting | bytes | bpp | ROI dB | background dB |"
    names = [row.split(" | ")[0].strip("| ") for row in rows]
    assert names == ["roi_vbr", "JPEG", "AVIF", "x264 + ROI", "x265 + ROI"]
    height, width, _ = np.asarray(Image.open(tmp_path / "compared.png")).shape
    assert height == 6 * (96 + 22)
    assert width > 160  # the box is enlarged beside each picture
    assert main([*words, "--json", "--max-bytes", "1500"]) == 0
    ours, *others = map(json.loads, capsys.readouterr().out.splitlines())
    assert ours["bytes"] <= 1500
    assert len(others) == 4
    assert ours["roi_psnr"] > ours["bg_psnr"]


def test_label_files_of_other_kinds_are_read_or_named(picture, weights, tmp_path, capsys):
    out = tmp_path / "a.roic"
    (tmp_path / "yolo.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (tmp_path / "sizes.json").write_text("[[40, 24, 80, 48]]")
    options = ["--boxes", str(tmp_path / "yolo.txt"), "--json", *weights]
    assert main(["encode", str(picture), str(out), *options]) == 0
    assert json.loads(capsys.readouterr().out)["boxes"] == [[60, 24, 100, 72, 1.0]]
    options = ["--boxes", str(tmp_path / "sizes.json"), "--box-format", "xywh", "--json", *weights]
    assert main(["encode", str(picture), str(out), *options]) == 0
    assert json.loads(capsys.readouterr().out)["boxes"] == [[40, 24, 120, 72, 1.0]]
    (tmp_path / "small.json").write_text("[[0.1, 0.1, 0.4, 0.4]]")
    words = ["encode", picture, tmp_path / "b.roic", "--boxes", tmp_path / "small.json", *weights]
    refused(capsys, words, "small.json: ")


def test_tracking_labels_of_a_sequence(pictures, weights, tmp_path, capsys):
    row = "{} 0 Car 0 0 -10 {} 50 58 80 -1 -1 -1 -1000 -1000 -1000 -10\n"
    (tmp_path / "0000.txt").write_text(row.format(1, 10) + row.format(10, 20))
    options = ["--boxes", str(tmp_path / "0000.txt"), "--json", *weights]
    assert main(["encode", str(pictures), str(tmp_path / "out"), *options]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [r["boxes"] for r in records]  # of frames 1, 2 and 10
    assert found == [[[10, 50, 58, 80, 1.0]], [], [[20, 50, 58, 80, 1.0]]]
    last, out = str(pictures / "frame_10.png"), str(tmp_path / "last.roic")
    assert main(["encode", last, out, *options]) == 0  # a single picture
    assert json.loads(capsys.readouterr().out)["boxes"] == [[20, 50, 58, 80, 1.0]]
    (tmp_path / "one.json").write_text("[]")
    words = ["encode", pictures, tmp_path / "b", "--boxes", tmp_path / "one.json", *weights]
    refused(capsys, words, "one.json: boxes of one picture, but there are 3")
    (tmp_path / "0000.txt").write_text(row.format(0, 10) + row.format(11, 20))
    words = ["encode", pictures, tmp_path / "b", "--boxes", tmp_path / "0000.txt", *weights]
    refused(capsys, words, "0000.txt: no frame of", "is in these labels")


def test_pictures_of_two_cameras_do_not_share_tracking_labels(pictures, weights, tmp_path, capsys):
    (tmp_path / "0000.txt").write_text(f"1 0 Car 0 0 -10 10 50 58 80{' 0' * 7}\n")
    (pictures / "frame_2.png").rename(pictures / "right_1.png")
    words = ["encode", pictures, tmp_path / "b", "--boxes", tmp_path / "0000.txt", *weights]
    refused(capsys, words, "0000.txt: two pictures of one frame number")


def test_tracking_labels_are_read_once(pictures, tmp_path, monkeypatch):
    (tmp_path / "0000.txt").write_text(f"1 0 Car 0 0 -10 10 50 58 80{' 0' * 7}\n")
    sizes = []
    read = transcode.read_tracking
    monkeypatch.setattr(
        transcode, "read_tracking", lambda path, size=None: sizes.append(size) or read(path, size)
    )
    files = sorted(pictures.glob("frame_*.png"))
    find = transcode.boxes_of(files, tmp_path / "0000.txt")
    assert [len(find(path, (96, 160))) for path in files] == [1, 0, 0]
    assert sizes == [None, (96, 160)]


def test_evaluate_measures_a_folder(pictures, weights, tmp_path, capsys):
    (tmp_path / "codecs.yaml").write_text("jpeg: {quality: [30, 80]}\n")
    out = tmp_path / "out"
    words = ["evaluate", str(pictures), "--codecs", str(tmp_path / "codecs.yaml")]
    words += [*weights, "--lmbda", "0.003", "0.03", "--alpha", "0.5", "--detectors", "shipped"]
    words += ["--out", str(out), "--device", "cpu", "--workers", "1"]
    assert main(words) == 0
    rates, detection, where = capsys.readouterr().out.split("\n\n")
    assert where == f"Records and tables: {out}\n"
    assert len(rates.splitlines()) == 2 + 2 + 2
    assert len(detection.splitlines()) == 2 + 1 + 2 + 2  # uncompressed too
    records = json.loads((out / "records.json").read_text())
    assert len(records) == 3 * 4
    assert {r["codec"] for r in records} == {"roi_vbr", "jpeg"}
    roi = [r["roi_count"] for r in records]
    assert set(roi) == {3 * 48 * 30}
    assert main(words) == 0  # its own files are written again
    assert f"replaces the earlier results in {out}" in capsys.readouterr().err
    (out / "provenance.json").unlink()
    refused(capsys, words, "records.json: exists, and does not say that roilib made it")
    refused(capsys, ["evaluate", tmp_path / "none", *words[2:], "--force"], "none: ")
    refused(capsys, [*words, "--force", "--boxes", tmp_path / "no"], "no: no ")
    (tmp_path / "codecs.yaml").write_text("264: {quality: [30]}\n")
    refused(capsys, [*words, "--force"], "codecs.yaml: not codecs with their qualities")


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"cells": null}'])
def test_json_that_is_no_notebook_is_named(tmp_path, capsys, content):
    (tmp_path / "a.ipynb").write_text(content)
    words = ["notebook", tmp_path / "a.ipynb", tmp_path / "b.ipynb"]
    refused(capsys, words, "a.ipynb: not a notebook")


def test_a_notebook_is_never_overwritten(tmp_path, capsys):
    mine, other = tmp_path / "mine.ipynb", tmp_path / "other.ipynb"
    for path in (mine, other):
        path.write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    refused(capsys, ["notebook", mine, mine, "--force"], "mine.ipynb: is an input")
    refused(
        capsys,
        ["notebook", mine, other],
        "other.ipynb: exists, and does not say that roilib made it",
    )


def test_a_report_overwrites_only_reports(tmp_path, capsys):
    (tmp_path / "thesis.pdf").write_bytes(b"%PDF-1.7 mine")
    results = REPOSITORY / "report" / "results" / "reference" / "drive"
    words = ["report", results, "--out", tmp_path / "thesis.pdf"]
    refused(capsys, words, "thesis.pdf: exists, and does not say that roilib made it")


def test_a_report_of_nothing_leaves_the_figures_of_the_same_name(tmp_path, capsys):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "rate_psnr.png").write_bytes(b"drawn before")
    words = ["report", tmp_path / "none", "--figures", tmp_path / "figures"]
    refused(capsys, words, "none/records.json: no such file")
    assert (tmp_path / "figures" / "rate_psnr.png").exists()


def test_the_home_folder_is_found_behind_an_equals_sign(picture, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "boxes.json").write_text("[[10, 50, 58, 80]]")
    words = ["encode", "~/street.png", "~/a.roic", "--boxes=~/boxes.json", *weights]
    assert main(words) == 0
    assert (tmp_path / "a.roic").exists()


def test_a_person_who_looks_on_sees_progress(pictures, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["encode", str(pictures), str(tmp_path / "out"), *weights]) == 0
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("orientation", [3, 6])  # upside down, turned by a quarter
def test_a_turned_photograph_is_said(tmp_path, weights, capsys, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(street(0)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.json").write_text("[[10, 50, 58, 80]]")
    words = ["encode", str(tmp_path / "a.jpg"), str(tmp_path / "a.roic"), *weights]
    assert main([*words, "--boxes", str(tmp_path / "a.json")]) == 0
    assert "a.jpg: EXIF's rotation is not applied, nor to its boxes" in capsys.readouterr().err
    assert main(words) == 0
    assert "a.jpg: EXIF's rotation is not applied\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--alpha", "0.95"], "--alpha has no effect without --boxes or --detect"),
        (["--alpha", "0.95", "--boxes", "{tmp}/none.json"], "street.png: no boxes, so --alpha"),
        (["--lmbda", "0.02", "--max-bytes", "4000"], "--lmbda has no effect with --max-bytes"),
        (["--confidence", "0.5"], "--confidence has no effect without --detect"),
        (["--box-format", "kitti"], "--box-format has no effect without --boxes"),
    ],
)
def test_settings_without_effect_are_said(picture, weights, tmp_path, capsys, options, said):
    (tmp_path / "none.json").write_text("[]")
    options = [option.format(tmp=tmp_path) for option in options]
    assert main(["encode", str(picture), str(tmp_path / "a.roic"), *options, *weights]) == 0
    assert said in capsys.readouterr().err


def test_settings_without_effect_on_weights_of_one_rate_are_said(picture, tmp_path, capsys):
    (tmp_path / "boxes.json").write_text("[[10, 50, 58, 80]]")
    weights = ["--weights", str(pretrained(PRETRAINED_BASELINE))]
    options = ["--boxes", str(tmp_path / "boxes.json"), *weights]
    for words in (["encode", str(picture), str(tmp_path / "a.roic")], ["compare", str(picture)]):
        assert main([*words, *options, "--lmbda", "0.05", "--alpha", "0.7"]) == 0
        said = capsys.readouterr().err
        for name in ("lmbda", "alpha"):
            assert f"roilib {words[0]}: --{name} has no effect with weights of one rate" in said
        assert main([*words, *options]) == 0
        assert capsys.readouterr().err == ""


def test_compare_names_the_picture_that_does_not_fit(picture, weights, tmp_path, capsys):
    (tmp_path / "boxes.json").write_text("[]")
    words = ["compare", str(picture), "--boxes", str(tmp_path / "boxes.json"), *weights]
    assert main([*words, "--max-bytes", "5"]) == 2
    assert f"roilib compare: {picture}: max_bytes=5" in capsys.readouterr().err


def test_compare_leaves_out_a_codec_for_which_the_picture_is_too_small(weights, tmp_path, capsys):
    picture = tmp_path / "small.png"
    Image.fromarray(street(0)[:8, :40]).save(picture)
    (tmp_path / "boxes.json").write_text("[]")
    words = ["compare", str(picture), "--boxes", str(tmp_path / "boxes.json"), *weights]
    why = r"x265 \+ ROI is left out: x265 codes pictures of at least 16x16 pixels, not of 40x8"
    with pytest.warns(UserWarning, match=why):
        assert main([*words, "--json", "--out", str(tmp_path / "compared.png")]) == 0
    names = [json.loads(line)["codec"] for line in capsys.readouterr().out.splitlines()]
    assert names == ["roi_vbr", "JPEG", "AVIF", "x264 + ROI"]


def test_weights_tuned_for_yuv_are_compared_at_420(picture, tmp_path, capsys):
    (tmp_path / "boxes.json").write_text("[[10, 10, 60, 50]]")
    words = ["compare", str(picture), "--boxes", str(tmp_path / "boxes.json"), "--tune", "yuv"]
    assert main([*words, "--json", "--out", str(tmp_path / "compared.png")]) == 0
    ours, *others = map(json.loads, capsys.readouterr().out.splitlines())
    assert ours["codec"] == "roi_vbr (yuv)"
    assert all("4:2:0" in other["codec"] for other in others)
    assert all(row["roi_yuv_psnr"] > row["roi_psnr"] for row in (ours, *others))
    assert main(words) == 0
    assert "| ROI YUV dB | background YUV dB |" in capsys.readouterr().out


def test_compare_says_too_what_has_no_effect(picture, weights, tmp_path, capsys):
    (tmp_path / "boxes.json").write_text("[[10, 50, 58, 80]]")
    words = ["compare", str(picture), "--boxes", str(tmp_path / "boxes.json"), *weights]
    options = ["--confidence", "0.5", "--classes", "Car", "--lmbda", "0.02", "--max-bytes", "1500"]
    assert main([*words, *options]) == 0
    said = capsys.readouterr().err
    for name, when in (("confidence", "boxes"), ("classes", "boxes"), ("lmbda", "max-bytes")):
        assert f"roilib compare: --{name} has no effect with --{when}\n" in said
    assert "--box-format" not in said


@pytest.mark.parametrize(
    "ending", [".png", ".bmp", ".tif", ".TIFF", ".ppm", ".webp", ".jpg", ".jpeg"]
)
def test_pictures_are_written_as_their_name_says(stream, weights, tmp_path, ending):
    for name in ("a.png", f"b{ending}"):
        assert main(["decode", str(stream), str(tmp_path / name), *weights]) == 0
    exact, written = (read_picture(tmp_path / name).int() for name in ("a.png", f"b{ending}"))
    assert (exact - written).abs().max() <= (24 if ending.startswith(".j") else 0)
    assert (exact - written).abs().float().mean() < 1


@pytest.mark.parametrize("name", ["a.psd", "a", "a.roic2"])
def test_other_names_are_no_pictures(stream, weights, tmp_path, name, capsys):
    words = ["decode", stream, tmp_path / name, *weights]
    refused(capsys, words, f"{name}: a picture's name ends in .png, ")
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["recode"], "decode"),
        (["--fast"], "--fast"),
        (["encode", "a", "b", "--lmbda", "x"], "--lmbda"),
        (["info", "a", "--fast"], "--fast"),
        (["encode", "a", "--fast", "b"], "--fast"),
        (["encode", "a", "b", "--precision", "8"], "--precision"),
        (["drive"], "FRAMES"),
        (["notebook", "README.md", "b.ipynb"], "README.md: not JSON"),
        (["encode", "a", ""], "an empty word among the arguments"),
        (["report", "none"], "none/records.json: no such file"),
        (["drive", "a", "--mbit", "fast"], "--mbit"),
        (["train", "--which=hyperprior", "--lr=1"], "lr"),
        (["notebook", "a.ipynb", "b.ipynb", "--parameters", "{N: 3}"], "--parameters: not JSON"),
        (["notebook", "none.ipynb", "b.ipynb"], "none.ipynb: no such file"),
        (["evaluate", "docs", "--out", "./docs"], "docs: holds the pictures"),
        (["evaluate", "docs", "--workers", "0"], "workers is 1 or more, not 0"),
    ],
)
def test_wrong_words_are_one_line_too(words, named, capsys):
    refused(capsys, words, "roilib", named)


@pytest.mark.parametrize(
    "command",
    ["encode", "decode", "info", "compare", "train", "evaluate", "drive", "report", "notebook"],
)
def test_every_command_has_help_with_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"roilib {command} " in capsys.readouterr().out


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    assert re.search(r"encode +Code pictures as \.roic streams\.", capsys.readouterr().out)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out[0].isdigit()


def run(*words, **streams):
    command = [sys.executable, "-m", "roilib", *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, **streams)


def test_a_full_disk_behind_info_is_one_line(tmp_path):
    (tmp_path / "a.roic").write_bytes(untrained_codec(**UNTRAINED[0]).encode(street(0)))
    with open("/dev/full", "w") as full:
        done = run("info", tmp_path / "a.roic", stdout=full)
    said = "roilib info: standard output: cannot be written (No space left on device)\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    (tmp_path / "a.roic").write_bytes(untrained_codec(**UNTRAINED[0]).encode(street(0)))
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = run("info", tmp_path / "a.roic", stdout=reader.stdin)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_warning_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("warnings.formatwarning", None)
    main(["info", "none"])
    assert warnings.formatwarning("a.json: odd", UserWarning, "x.py", 3) == (
        "roilib info: a.json: odd\n"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["info", "a.roic"], ""),
        (["encode", "a.png", "b.roic", "--boxse", "b.txt"], "unknown option --boxse"),
        (["encode", "pictures", "out.png"], "out.png"),
        (["encode", "a.png", "b.txt"], "b.txt"),
        (["decode", "a.png", "b.png"], "a.png"),
        (["compare", "a.png", "--out", "a.png"], "a.png"),
    ],
)
def test_mistakes_are_found_before_anything_heavy_is_loaded(tmp_path, words, line):
    (tmp_path / "a.roic").write_bytes(untrained_codec(**UNTRAINED[0]).encode(street(0)))
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.txt", "pictures/a.png"):
        (tmp_path / name).write_bytes(b"something else")
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from roilib.cli import main; "
        f"main({words}); print({{'torch', 'PIL', 'pandas', 'av'}} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.endswith("set()\n")
    assert line in done.stderr


def test_it_is_a_module_too(picture):
    done = run("info", picture)
    assert done.returncode == 2
    assert done.stderr.startswith("roilib info: ")
