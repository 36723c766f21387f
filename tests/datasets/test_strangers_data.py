"""Boxes, labels, annotations and pictures of strangers: what each input does, in tables. Mistakes are one line that names the file."""

import json
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import street, untrained_codec, write_tiny_kitti
from PIL import Image

from roilib.cli import main
from roilib.codecs.container import MAX_SIDE
from roilib.datasets.boxes import read_boxes, read_kitti_label
from roilib.datasets.coco import coco_samples
from roilib.datasets.dataset import Crops, RoiDataset
from roilib.datasets.images import picture_size, read_picture
from roilib.datasets.kitti import kitti_samples
from roilib.roi import roi_mask

CODEC = untrained_codec(which="roi_vbr", N=4, M=20)


def refusal(read, *arguments):
    """The one line with which something is refused."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        read(*arguments)
    assert len(str(caught.value)) < 500
    return str(caught.value)


# Box files

DIGITS = "1" + "0" * 400
BOXES = {
    "[[0, 1, 2, 3]]": [[0, 1, 2, 3]],
    "\ufeff[[0, 1, 2, 3]]\r\n": [[0, 1, 2, 3]],
    "[]": [],
    "[[-5, -5, 900000, 900000]]": [[-5, -5, 900000, 900000]],  # the mask is cut to the picture
    "": "not JSON",
    "[" * 100000: "not JSON (nested too deep)",
    "[[0, 1, 2, " + "9" * 5000 + "]]": "not JSON (Exceeds the limit (4300 digits)",
    f"[[0, 1, 2, {DIGITS}]]": "box 0: a box's numbers are finite and at most 1000000 pixels",
    f"[[-{DIGITS}, 1, 2, 3]]": "box 0: a box's numbers are finite and at most 1000000 pixels",
    "[[0, 1, 2, 1e300]]": "box 0: a box's numbers are finite and at most 1000000 pixels",
    "[[0, 1, 2, 1e999]]": "box 0: a box's numbers are finite and at most 1000000 pixels",
    "[[NaN, 1, 2, 3]]": "box 0: a box's numbers are finite and at most 1000000 pixels",
    "[[0, 1, -Infinity, 3]]": "box 0: a box's numbers are finite and at most 1000000 pixels",
    "[[100000, 1, 100000.000001, 3]]": "box 0: an empty or inverted box",  # of equal numbers, as float32
    '[["0", "1", "2", "3"]]': "box 0: a box is four numbers",
    "[[false, false, true, true]]": "box 0: a box is four numbers",
    "[[[0], 1, 2, 3]]": "box 0: a box is four numbers",
    "[[0, 1, 2, " + "[" * 500 + "]" * 500 + "]]": "box 0: a box is four numbers",
    "[0, 1, 2, 3]": "not a list of",
    "[[0, 1, 2, 3, 1, 1]]": "not a list of",
    "[[0, 1, 2, 3], [0, 1, 2]]": "not a list of",
    "null": "not a list of",
    f"[[0, 1, 2, 3, {DIGITS}]]": "box 0: importance is a number in (0, 1]",
    "[[0, 1, 2, 3, NaN]]": "box 0: importance is a number in (0, 1]",
}


@pytest.mark.parametrize(("text", "outcome"), BOXES.items(), ids=lambda v: str(v)[:40])
def test_box_files(tmp_path, text, outcome):
    path = tmp_path / "b.json"
    path.write_text(text, encoding="utf-8", newline="")
    if isinstance(outcome, str):
        assert refusal(read_boxes, path).startswith(f"{path}: {outcome}")
    else:
        np.testing.assert_array_equal(
            read_boxes(path), np.array(outcome, np.float32).reshape(-1, 4)
        )


@pytest.mark.parametrize(
    "boxes",
    [
        [[0, 1, 2, 10**400]],
        [[0, 1, 2, float("nan")]],
        [[0, 1, 2]],
        [["a", "b", "c", "d"]],
        [3, 2, 0, 0],
        {},
    ],
)
def test_boxes_of_a_python_caller(boxes):
    refusal(CODEC.encode, street(0), boxes)


# KITTI labels

REST = "0 0 0 0 0 0 0"
CAR = f"Car 0 0 0 10 20 30 40 {REST}"
LABELS = {
    CAR: [[10, 20, 30, 40]],
    CAR + " 0.99": [[10, 20, 30, 40]],  # a result's score
    f"{CAR}\r\n\r\n{CAR}\r\n": [[10, 20, 30, 40]] * 2,
    "\ufeff" + CAR: [[10, 20, 30, 40]],
    f"DontCare -1 -1 -10 nan nan {REST}": [],
    f"Car 0 0 0 -10 -10 900 900 {REST}": [
        [-10, -10, 900, 900]
    ],  # reaches over the border: cut to the picture
    f"Car 0 0 0 500 500 900 900 {REST}": [[500, 500, 900, 900]],  # wholly outside: no ROI
    "Car 0 0 0 10 20 30 40": "line 1 has 8 fields",
    f"{CAR}\nCar 0 0 0 10 20 nan 40 {REST}": "line 2: a box's numbers are finite",
    f"Car 0 0 0 10 20 1e300 40 {REST}": "line 1: a box's numbers are finite",
    f"Car 0 0 0 30 20 10 40 {REST}": "line 1: an empty or inverted box",
    f"Car 0 0 0 10 20 10 40 {REST}": "line 1: an empty or inverted box",
    f"Car 0 0 0 ten 20 30 40 {REST}": "line 1: a box is four numbers",
    f"Tractor 0 0 0 10 20 30 40 {REST}": "unknown object type 'Tractor'",
    CAR.encode("utf-16"): "not UTF-8 text",
    CAR.encode("utf-16-le"): "not UTF-8 text",
    "Fußgänger".encode("latin-1"): "not UTF-8 text",
}


@pytest.mark.parametrize(("text", "outcome"), LABELS.items(), ids=lambda v: repr(v)[:40])
def test_kitti_labels(tmp_path, text, outcome):
    root = write_tiny_kitti(tmp_path, pictures=1)
    path = root / "training" / "label_2" / "000000.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if isinstance(outcome, str):
        assert refusal(kitti_samples, root).startswith(f"{path}: {outcome}")
    else:
        (sample,) = kitti_samples(root)
        np.testing.assert_array_equal(sample.boxes, np.array(outcome, np.float32).reshape(-1, 4))
        item = Crops(RoiDataset([sample]), 64)[0, 0]
        assert bool(item["roi_mask"].any()) == bool(
            outcome and roi_mask(sample.boxes, 96, 160).any()
        )
        assert CODEC.encode(street(0), sample.boxes)


def test_other_classes_are_labels_of_box_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(CAR.replace("Car", "Tractor"))
    assert read_kitti_label(path)[0] == ["Tractor"]


# COCO


def change(part, i, **values):
    """An entry of the annotations, changed; a value of None is left out."""

    def apply(content):
        content[part][i] = {k: v for k, v in (content[part][i] | values).items() if v is not None}

    return apply


def add(part, **values):
    return lambda content: content[part].append(content[part][0] | values)


def boxed(*numbers):
    return change("annotations", 0, bbox=list(numbers))


BOX = [10, 20, 40, 60]
COCO = {  # what is done to one picture with one object → its boxes, or why it is refused
    "as it is": (lambda content: None, [BOX]),
    "no objects": (lambda content: content["annotations"].clear(), []),
    "a crowd": (change("annotations", 0, iscrowd=1), []),
    "no iscrowd": (change("annotations", 0, iscrowd=None), [BOX]),
    "iscrowd is a word": (change("annotations", 0, iscrowd="0"), "annotation 0: iscrowd is 0 or 1"),
    "a box without width": (boxed(10, 20, 0, 40), []),
    "a box without height as float32": (boxed(10, 90000, 30, 1e-9), []),
    "a box over the border": (boxed(-10, 20, 999, 40), [[-10, 20, 989, 60]]),
    "a box of negative size": (boxed(10, 20, -30, 40), "annotation 0: a box of negative size"),
    "a NaN box": (boxed(10, float("nan"), 30, 40), "annotation 0: a box's numbers are finite"),
    "a NaN width": (boxed(10, 20, float("nan"), 40), "annotation 0: a box's numbers are finite"),
    "a huge box": (boxed(10, 20, 10**400, 40), "annotation 0: a box's numbers are finite"),
    "a box of words": (boxed("10", "20", "30", "40"), "annotation 0: a box is four numbers"),
    "a box of three": (boxed(10, 20, 30), "annotation 0: bbox is [x, y, width, height]"),
    "a box that is a word": (
        change("annotations", 0, bbox="1234"),
        "annotation 0: bbox is [x, y, width, height]",
    ),
    "no box": (change("annotations", 0, bbox=None), "not a COCO instances file (KeyError: 'bbox')"),
    "an unknown picture": (
        change("annotations", 0, image_id=8),
        "annotation 0: no such image_id: 8",
    ),
    "a picture of another type": (
        change("annotations", 0, image_id="7"),
        "annotation 0: no such image_id: '7'",
    ),
    "a picture that is a list": (
        change("annotations", 0, image_id=[7]),
        "annotation 0: no such image_id: [7]",
    ),
    "an unknown category": (
        change("annotations", 0, category_id=99),
        "annotation 0: no such category_id: 99",
    ),
    "two pictures of one id": (add("images", file_name="b.jpg"), "images: two of the id 7"),
    "two categories of one id": (add("categories", name="b"), "categories: two of the id 1"),
    "mixed ids": (add("images", id="8"), "images: an id is a whole number, not '8'"),
    "an id that is true": (add("images", id=True), "images: an id is a whole number, not True"),
    "a negative id": (change("images", 0, id=-7), "images: an id is a whole number, not -7"),
    "a missing picture": (
        change("images", 0, file_name="b.jpg"),
        "listed in the annotations, but no such file",
    ),
    "a file_name above the folder": (
        change("images", 0, file_name="../a.jpg"),
        "images: file_name '../a.jpg' leads out",
    ),
    "a file_name from the root": (
        change("images", 0, file_name="/etc/passwd"),
        "images: file_name '/etc/passwd' leads out",
    ),
    "a file_name of Windows": (
        change("images", 0, file_name="c:\\a.jpg"),
        "images: file_name 'c:\\\\a.jpg' leads out",
    ),
    "a file_name that is none": (change("images", 0, file_name=3), "images: a file_name is a path"),
    "a category's name that is none": (
        change("categories", 0, name=3),
        "categories: a name is a text, not 3",
    ),
    "pictures that are words": (
        lambda content: content.update(images=["a.jpg"]),
        "not a COCO instances file (TypeError",
    ),
    "annotations that are a number": (
        lambda content: content.update(annotations=3),
        "not a COCO instances file (TypeError",
    ),
    "no categories": (
        lambda content: content.pop("categories"),
        "not a COCO instances file (KeyError: 'categories')",
    ),
    "no pictures": (lambda content: content.update(images=[], annotations=[]), "no pictures"),
}


def tiny_coco(root, edit):
    (root / "val2017").mkdir()
    (root / "annotations").mkdir()
    Image.fromarray(street(0)).save(root / "val2017" / "a.jpg")
    annotation = {"image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40], "iscrowd": 0}
    content = {
        "images": [{"id": 7, "file_name": "a.jpg"}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "car"}],
    }
    edit(content)
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(("edit", "outcome"), COCO.values(), ids=COCO)
def test_coco_annotations(tmp_path, edit, outcome):
    root = tiny_coco(tmp_path, edit)
    if isinstance(outcome, str):
        named = (
            "val2017/b.jpg" if "no such file" in outcome else "annotations/instances_val2017.json"
        )
        assert refusal(coco_samples, root, "val2017").startswith(f"{root / named}: {outcome}")
    else:
        (sample,), names = coco_samples(root, "val2017")
        assert names == ("car",)
        np.testing.assert_allclose(
            sample.boxes, np.array(outcome, np.float32).reshape(-1, 4), rtol=1e-6
        )
        assert Crops(RoiDataset([sample], names), 64)[0, 0]["x"].shape == (3, 64, 64)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "[" * 100000, "9" * 5000, '{"images": 3}'], ids=lambda v: v[:12]
)
def test_files_that_are_no_annotations(tmp_path, text):
    root = tiny_coco(tmp_path, lambda content: None)
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(text)
    assert refusal(coco_samples, root, "val2017").startswith(f"{path}: not ")


# Pictures

GREY = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint16) * 400  # to 63200


def saved(picture, name, **options):
    def write(folder):
        Image.fromarray(picture).save(folder / name, **options) if isinstance(
            picture, np.ndarray
        ) else picture.save(folder / name, **options)
        return folder / name

    return write


def rotated(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    return saved(street(0), "a.png", exif=exif)(folder)


def pgm16(folder):
    path = folder / "a.pgm"
    path.write_bytes(b"P5 %d %d 65535\n" % GREY.shape[::-1] + GREY.astype(">u2").tobytes())
    return path


RGB = Image.fromarray(street(0))
PICTURES = {  # what is written → the pixels that are read; None: those of a lossy or converted file, only their size is known
    "PNG": (saved(street(0), "a.png"), street(0)),
    "BMP": (saved(street(0), "a.bmp"), street(0)),
    "TIFF": (saved(street(0), "a.tiff"), street(0)),
    "PPM": (saved(street(0), "a.ppm"), street(0)),
    "WebP": (saved(street(0), "a.webp", lossless=True), street(0)),
    "AVIF": (saved(street(0), "a.avif"), None),
    "a PNG that is called JPEG": (saved(street(0), "a.jpg", format="PNG"), street(0)),
    "grey": (saved(street(0)[..., 0], "a.png"), street(0)[..., :1].repeat(3, 2)),
    "grey of 16 bits": (saved(GREY, "a.png"), (GREY[..., None] >> 8).astype(np.uint8).repeat(3, 2)),
    "grey of 16 bits, big-endian": (
        saved(GREY.astype(">u2"), "a.tiff"),
        (GREY[..., None] >> 8).astype(np.uint8).repeat(3, 2),
    ),
    "grey of 16 bits, PGM": (pgm16, (GREY >> 8)[..., None].astype(np.uint8).repeat(3, 2)),
    "black and white": (
        saved(RGB.convert("1"), "a.png"),
        np.array(RGB.convert("1").convert("RGB")),
    ),
    "palette": (saved(RGB.quantize(16), "a.png"), np.array(RGB.quantize(16).convert("RGB"))),
    "palette with transparency": (
        saved(RGB.quantize(16), "a.png", transparency=bytes(range(16))),
        np.array(RGB.quantize(16).convert("RGB")),
    ),
    "alpha": (saved(np.dstack([street(0), street(1)[..., 0]]), "a.png"), street(0)),
    "CMYK": (saved(RGB.convert("CMYK"), "a.tiff"), street(0)),
    "CMYK JPEG": (saved(RGB.convert("CMYK"), "a.jpg"), None),
    "EXIF says turn": (rotated, street(0)),
    "1x1": (saved(street(0)[:1, :1], "a.png"), street(0)[:1, :1]),
    "10000x10": (
        saved(np.full((10, 10000, 3), 90, np.uint8), "a.png"),
        np.full((10, 10000, 3), 90, np.uint8),
    ),
}


@pytest.mark.parametrize(("write", "pixels"), PICTURES.values(), ids=PICTURES)
@pytest.mark.filterwarnings("error")
def test_pictures_are_read(tmp_path, write, pixels):
    path = write(tmp_path)
    image = read_picture(path)
    assert picture_size(path) == tuple(image.shape[1:])
    assert image.dtype == torch.uint8
    read = image.permute(1, 2, 0).numpy()
    if pixels is None:
        assert np.abs(read.astype(int) - street(0)).mean() < 12
    else:
        np.testing.assert_array_equal(read, pixels)
    if max(read.shape) > MAX_SIDE:
        assert refusal(CODEC.encode, read) == "an image of 10000x10 pixels; sides are 1 to 8192"
    else:
        assert CODEC.decode(CODEC.encode(read)).shape == read.shape


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    """A small PNG that says it has many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(99999)))
        + chunk(b"IEND", b"")
    )


TEXT_BOMB = (
    bomb(8, 8)[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9)) + bomb(8, 8)[33:]
)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(touched) (w) file\nshowpage\n%%EOF\n"
REFUSED = {
    "0 bytes": (b"", "cannot identify image file"),
    "text": (b"<html>a picture</html>", "cannot identify image file"),
    "EPS": (EPS, "cannot identify image file"),
    "PDF": (b"%PDF-1.4\n", "cannot identify image file"),
    "cut off": (bomb(8, 8)[:50], "image file is truncated"),
    "more pixels than Pillow warns of": (
        bomb(10000, 10000),
        "Image size (100000000 pixels) exceeds limit",
    ),
    "more pixels than Pillow opens": (
        bomb(60000, 60000),
        "Image size (3600000000 pixels) exceeds limit",
    ),
    "fewer pixels than it says": (bomb(9000, 9000), "image file is truncated"),
    "a text bomb": (TEXT_BOMB, "Decompressed data too large"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("error")
def test_files_that_are_no_pictures(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    assert refusal(read_picture, tmp_path / "a.png").startswith(
        f"{tmp_path / 'a.png'}: not a readable picture ({reason}"
    )


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pictures_of_32_bits(tmp_path, mode):
    RGB.convert(mode).save(tmp_path / "a.tiff")
    assert re.search(
        r"a\.tiff: not a readable picture \(32 bits", refusal(read_picture, tmp_path / "a.tiff")
    )


def test_a_folder_is_no_picture(tmp_path):
    assert "Is a directory" in refusal(read_picture, tmp_path)


@pytest.mark.filterwarnings("error")
def test_the_command_line_says_one_line(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(bomb(10000, 10000))
    (tmp_path / "b.json").write_text(f"[[0, 1, 2, {DIGITS}]]")
    Image.fromarray(street(0)).save(tmp_path / "c.png")
    for words, name in (
        (["a.png"], "a.png"),
        (["c.png", "--boxes", str(tmp_path / "b.json")], "b.json"),
    ):
        assert (
            main(["encode", str(tmp_path / words[0]), *words[1:], str(tmp_path / "out.roic")]) == 2
        )
        shown = capsys.readouterr().err
        assert re.fullmatch(rf"roilib: {re.escape(str(tmp_path / name))}: [^\n]+\n", shown), shown
