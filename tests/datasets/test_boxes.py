"""roilib.datasets.boxes: label files in and out."""

import json

import numpy as np
import pytest

from roilib.datasets.boxes import read_boxes, read_kitti_label, write_kitti_label

OFFICIAL = """\
Truck 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 69.44 -1.56
Car 0.88 3 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53 2.39 58.49 1.57

DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10
"""


def written(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_kitti_labels_without_dontcare(tmp_path):
    names, boxes = read_kitti_label(written(tmp_path, "a.txt", OFFICIAL))
    assert names == ["Truck", "Car"]
    np.testing.assert_allclose(
        boxes, [[599.41, 156.40, 629.75, 189.25], [387.63, 181.54, 423.81, 203.12]], rtol=1e-6
    )


def test_written_labels_read_back_and_have_kittis_fields(tmp_path):
    boxes = np.array([[0.5, 1.25, 30, 40], [7, 8, 9.75, 10]], np.float32)
    write_kitti_label(tmp_path / "a.txt", ["Car", "Cyclist"], boxes)
    names, again = read_kitti_label(tmp_path / "a.txt")
    assert names == ["Car", "Cyclist"]
    np.testing.assert_array_equal(again, boxes)
    assert {len(line.split()) for line in (tmp_path / "a.txt").read_text().splitlines()} == {15}


@pytest.mark.parametrize("text", ["", "\n\n", OFFICIAL.splitlines()[-1]])
def test_no_objects_are_no_boxes(tmp_path, text):
    names, boxes = read_kitti_label(written(tmp_path, "a.txt", text))
    assert names == []
    assert boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "line",
    [
        "Car 0 0 0 10 10 20",
        "Car 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "Car 0 0 0 20 10 10 20 0 0 0 0 0 0 0",
        "Car 0 0 0 nan 1 2 3 0 0 0 0 0 0 0",
        "Car 0 0 0 a b c d 0 0 0 0 0 0 0",
    ],
)
def test_a_malformed_line_is_named(tmp_path, line):
    path = written(tmp_path, "a.txt", OFFICIAL.splitlines()[0] + "\n" + line)
    with pytest.raises(ValueError, match=r"^[^\n]*a\.txt: line 2[^\n]+$"):
        read_kitti_label(path)


def test_files_that_are_missing_or_not_text(tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    for name in ("binary.txt", "missing.txt", "missing.json"):
        with pytest.raises(ValueError, match=name):
            read_boxes(tmp_path / name)


def test_boxes_from_either_format(tmp_path):
    kitti = read_boxes(written(tmp_path, "a.txt", OFFICIAL))
    same = read_boxes(written(tmp_path, "a.JSON", json.dumps(kitti.tolist())))
    np.testing.assert_array_equal(same, kitti)
    np.testing.assert_allclose(
        read_boxes(written(tmp_path, "b.json", "[[0, 1, 2, 3, 0.5], [4, 5, 6, 7]]")),
        [[0, 1, 2, 3, 0.5], [4, 5, 6, 7, 1]],
    )
    assert read_boxes(written(tmp_path, "c.json", "[]")).shape == (0, 4)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[0, 1, 2", "not JSON"),
        ('{"boxes": []}', "not a list of"),
        ("[[0, 1, 2]]", "not a list of"),
        ("[[0, 1, 2, 3], [3, 1, 2, 3]]", "box 1"),
        ('[[0, 1, 2, "x"]]', "box 0"),
        ("[[0, 1, 2, null]]", "box 0"),
        ("[[0, 1, 2, Infinity]]", "box 0"),
        ("[[0, 1, 2, 3, 0]]", "box 0"),
        ("[[0, 1, 2, 3, 1.5]]", "box 0"),
        ("[[0, 1, 2, 3, true]]", "box 0"),
        ('[[0, 1, 2, 3, "1"]]', "box 0"),
    ],
)
def test_malformed_json_boxes_are_named(tmp_path, text, named):
    with pytest.raises(ValueError, match=rf"^[^\n]*b\.json: {named}[^\n]*$"):
        read_boxes(written(tmp_path, "b.json", text))
