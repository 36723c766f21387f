"""The `roilib` command."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY, UNTRAINED, street, untrained_codec
from PIL import Image

from roilib.cli import main
from roilib.datasets.images import read_picture


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(street(0)).save(tmp_path / "street.png")
    return tmp_path / "street.png"


@pytest.fixture
def weights(vbr_run):
    return ["--weights", str(vbr_run.weights)]


def test_encode_info_decode(picture, weights, tmp_path, capsys):
    boxes, stream, out = tmp_path / "boxes.json", tmp_path / "a.roic", tmp_path / "a.png"
    boxes.write_text("[[10, 50, 58, 80], [120, 40, 132, 70, 0.5]]")
    assert (
        main(
            [
                "encode",
                str(picture),
                str(stream),
                "--boxes",
                str(boxes),
                "--lmbda",
                "0.03",
                "--alpha",
                "0.8",
                *weights,
            ]
        )
        == 0
    )
    assert main(["info", str(stream)]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["bytes"] == stream.stat().st_size
    assert info["boxes"] == [[10, 50, 58, 80, 1.0], [120, 40, 132, 70, 0.502]]
    assert info["alpha"] == pytest.approx(0.8, abs=1e-4)
    assert main(["decode", str(stream), str(out), *weights]) == 0
    error = np.asarray(Image.open(out)).astype(float) - street(0)
    assert -10 * np.log10((error**2).mean() / 255**2) > 20
    assert {path.name for path in tmp_path.iterdir()} == {
        "street.png",
        "boxes.json",
        "a.roic",
        "a.png",
    }


def test_kitti_labels_and_the_detector_give_boxes(picture, weights, tmp_path, tiny_kitti, capsys):
    label = tiny_kitti / "training" / "label_2" / "000000.txt"
    assert (
        main(["encode", str(picture), str(tmp_path / "a.roic"), "--boxes", str(label), *weights])
        == 0
    )
    assert main(["encode", str(picture), str(tmp_path / "b.roic"), "--detect", *weights]) == 0
    main(["info", str(tmp_path / "a.roic")])
    assert len(json.loads(capsys.readouterr().out)["boxes"]) == 2  # DontCare is none


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["info", "{tmp}/none.roic"], "none.roic"),
        (["info", "{picture}"], "street.png: not a .roic stream"),
        (["decode", "{picture}", "{tmp}/out.png", "{weights}"], "street.png: not a .roic stream"),
        (["encode", "{tmp}/none.png", "{tmp}/a.roic", "{weights}"], "none.png"),
        (["encode", "{picture}", "{tmp}/a.roic", "--max-bytes", "9", "{weights}"], "max_bytes"),
        (["encode", "{picture}", "{tmp}/a.roic", "--lmbda", "3", "{weights}"], "lmbda"),
        (
            ["encode", "{picture}", "{tmp}/no/folder/a.roic", "{weights}"],
            "a.roic: cannot be written",
        ),
        (
            ["encode", "{picture}", "{tmp}/a.roic", "--boxes", "{tmp}/none.txt", "{weights}"],
            "none.txt",
        ),
        (
            ["encode", "{picture}", "{tmp}/a.roic", "--weights", "{tmp}/none.safetensors"],
            "none.safetensors",
        ),
        (["encode", "{picture}", "{tmp}/a.roic", "--weights", "{tmp}"], "a folder"),
        (["encode", "{picture}", "{tmp}", "{weights}"], "cannot be written (Is a directory)"),
        (
            ["encode", "{picture}", "/dev/null", "{weights}"],
            "/dev/null: cannot be written (not a regular file)",
        ),
        (
            ["encode", "{picture}", "{tmp}/../{folder}/street.png", "{weights}"],
            "street.png: is what is to be read",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    picture, weights, tmp_path, capsys, arguments, named
):
    places = {"tmp": tmp_path, "picture": picture, "folder": tmp_path.name}
    words = [
        part
        for word in arguments
        for part in (weights if word == "{weights}" else [word.format(**places)])
    ]
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert named in shown
    assert len(shown.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["street.png"]


@pytest.mark.parametrize(
    "ending", [".png", ".bmp", ".tif", ".TIFF", ".ppm", ".webp", ".jpg", ".jpeg"]
)
def test_pictures_are_written_as_their_name_says(picture, weights, tmp_path, ending):
    assert main(["encode", str(picture), str(tmp_path / "a.roic"), *weights]) == 0
    for name in ("a.png", f"b{ending}"):
        assert main(["decode", str(tmp_path / "a.roic"), str(tmp_path / name), *weights]) == 0
    exact, written = (read_picture(tmp_path / name).int() for name in ("a.png", f"b{ending}"))
    assert (exact - written).abs().max() <= (24 if ending.startswith(".j") else 0)
    assert (exact - written).abs().float().mean() < 1


@pytest.mark.parametrize("name", ["a.psd", "a", "a.roic2"])
def test_other_names_are_no_pictures(picture, weights, tmp_path, name, capsys):
    assert main(["encode", str(picture), str(tmp_path / "a.roic"), *weights]) == 0
    assert main(["decode", str(tmp_path / "a.roic"), str(tmp_path / name), *weights]) == 2
    assert f"{name}: a picture's name ends in .png, " in capsys.readouterr().err
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "COMMAND"),
        (["recode"], "recode"),
        (["info"], "stream"),
        (["encode", "a", "b", "--lmbda", "x"], "--lmbda"),
        (["info", "a", "--fast"], "--fast"),
    ],
)
def test_wrong_words_are_one_line_too(words, named, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    shown = capsys.readouterr().err
    assert end.value.code == 2
    assert shown.startswith("roilib")
    assert named in shown
    assert len(shown.splitlines()) == 1


def test_a_full_disk_behind_info_is_one_line(tmp_path):
    (tmp_path / "a.roic").write_bytes(untrained_codec(**UNTRAINED[0]).encode(street(0)))
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "roilib", "info", str(tmp_path / "a.roic")]
        done = subprocess.run(
            command, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (
        2,
        "roilib: standard output: cannot be written (No space left on device)\n",
    )


def test_it_is_a_module_too(picture):
    done = subprocess.run(
        [sys.executable, "-m", "roilib", "info", str(picture)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("roilib: ")
