"""roilib.datasets.boxes: label files of every convention, read or refused by name."""

import json

import numpy as np
import pytest
from conftest import refusal, street, untrained_codec

from roilib.datasets.boxes import (
    read_boxes,
    read_kitti_label,
    read_labels,
    read_tracking,
    write_kitti_label,
)

SIZE = (96, 160)  # of street(0): height and width
REST = "0 0 0 0 0 0 0"
CAR = f"Car 0.00 0 -1.57 10 20 30 40 {REST}"
DIGITS = "1" + "0" * 400
TRACKED = f"0 -1 DontCare -1 -1 -10 0 0 150 20 {REST}\n0 2 Car 0 0 -1.5 60 40 120 90 {REST}\n"

READ = {  # kind of file, contents → what is read: names and boxes
    "KITTI": ("a.txt", CAR, [("Car", [10, 20, 30, 40])]),
    "KITTI with a score": ("a.txt", CAR + " 0.99", [("Car", [10, 20, 30, 40])]),
    "KITTI with DontCare": (
        "a.txt",
        f"\ufeff{CAR}\r\n\r\nDontCare -1 -1 -10 nan nan {REST}\r\n",
        [("Car", [10, 20, 30, 40])],
    ),
    "KITTI, own class": ("a.txt", CAR.replace("Car", "Tractor"), [("Tractor", [10, 20, 30, 40])]),
    "KITTI, a box over the border": (
        "a.txt",
        f"Car 0 0 0 -10 -10 900 900 {REST}",
        [("Car", [-10, -10, 900, 900])],
    ),
    "KITTI, a box of less than a pixel beside others": (
        "a.txt",
        f"{CAR}\nCar 0 0 0 0.1 0.1 0.9 0.9 {REST}",
        [("Car", [10, 20, 30, 40]), ("Car", [0.1, 0.1, 0.9, 0.9])],
    ),
    "empty text": ("a.txt", "\n\n", []),
    "YOLO": ("a.txt", "3 0.5 0.5 0.25 0.5\n", [("3", [60, 24, 100, 72])]),
    "YOLO with a confidence": ("a.txt", "0 0.1 0.2 0.2 0.4 0.87", [("0", [0, 0, 32, 38.4])]),
    "YOLO, rounded over the border": (
        "a.txt",
        "0 0.05 0.5 0.101 1",
        [("0", [-0.08, 0, 16.08, 96])],
    ),
    "JSON": ("a.json", "\ufeff[[0, 1, 2, 3]]\r\n", [("object", [0, 1, 2, 3])]),
    "JSON of another name": ("a.txt", "[[0, 1, 2, 3]]", [("object", [0, 1, 2, 3])]),
    "JSON with importance": (
        "a.JSON",
        "[[0, 1, 2, 3, 0.5], [4, 5, 6, 7]]",
        [("object", [0, 1, 2, 3, 0.5]), ("object", [4, 5, 6, 7, 1])],
    ),
    "empty JSON": ("a.json", "[]", []),
    "COCO results": (
        "a.json",
        '[{"image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 40], "score": 0.9}]',
        [("3", [10, 20, 40, 60])],
    ),
    "LabelMe": (
        "a.json",
        json.dumps(
            {
                "imageHeight": 96,
                "imageWidth": 160,
                "shapes": [
                    {"label": "car", "points": [[30, 40], [10, 20]], "shape_type": "rectangle"},
                    {"label": "dog", "points": [[1, 9], [5, 2], [8, 7]]},
                ],
            }
        ),
        [("car", [10, 20, 30, 40]), ("dog", [1, 2, 8, 9])],
    ),
}

REFUSED = {  # kind of file, contents → why it is refused
    # another convention
    "KITTI tracking": ("a.txt", TRACKED, "KITTI tracking labels: 17 columns"),
    "KITTI tracking results": (
        "a.txt",
        f"5 1 Van 0 0 0 10 20 30 40 {REST} 0.7",
        "KITTI tracking labels: 18 columns",
    ),
    "YOLO polygons": (
        "a.txt",
        "0 " + " ".join(["0.1 0.2"] * 8),
        "line 1 begins with a number, as YOLO's polygons",
    ),
    "YOLO key points": ("a.txt", "0 0.5 0.5 0.2 0.2 " + "0.4 0.4 2 " * 3, "line 1 begins with a"),
    "DOTA": ("a.txt", "10 20 30 20 30 40 10 40 plane 0", "line 1 begins with a number"),
    "MOT, with spaces": ("a.txt", "1 2 10 20 30 40 1 -1 -1 -1", "line 1 begins with a number"),
    "MOT": ("a.txt", "1,2,10,20,30,40,1,-1,-1,-1", "values separated by commas"),
    "four numbers": ("a.txt", "10 20 30 40", "line 1 begins with a number"),
    "COCO keypoints' numbers": ("a.txt", "17 10 20 30 40 50", "line 1 begins with a number"),
    "a number for the class": ("a.txt", CAR + "\n" + CAR.replace("Car", "2"), "line 2: a KITTI"),
    "a class name of two words": (
        "a.txt",
        f"traffic light 0 0 0 1 2 3 4 {REST}",
        "line 1: 'light'",
    ),
    "YOLO that is corners": ("a.txt", "0 0.1 0.1 0.6 0.6", "line 1: a YOLO box, 0.1 0.1 0.6 0.6"),
    "Pascal VOC": ("a.xml", "<annotation><object/></annotation>", "XML, as Pascal VOC's"),
    "COCO annotations": (
        "a.json",
        '{"images": [], "annotations": [], "categories": []}',
        "COCO annotations of a data set",
    ),
    "COCO results of two pictures": (
        "a.json",
        '[{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"image_id": 2, "bbox": [1, 2, 3, 4]}]',
        "COCO results of 2 pictures",
    ),
    "Ultralytics' JSON": ("a.json", '[{"name": "car", "box": {"x1": 3}}]', "not a list of"),
    "Label Studio": ("a.json", '[{"annotations": [{"result": []}]}]', "not a list of"),
    "GeoJSON": ("a.json", '{"type": "FeatureCollection", "features": []}', "not a list of"),
    "LabelMe, circle": (
        "a.json",
        '{"shapes": [{"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "circle"}]}',
        "shape 0 is a circle",
    ),
    "LabelMe of another size": (
        "a.json",
        '{"shapes": [], "imageHeight": 192, "imageWidth": 320}',
        "labels of a picture of 320x192 pixels, it has 160x96",
    ),
    "LabelMe without points": (
        "a.json",
        '{"shapes": [{"label": "a", "points": []}]}',
        "shape 0: points",
    ),
    "LabelMe in space": (
        "a.json",
        '{"shapes": [{"label": "a", "points": [[1, 2, 3]]}]}',
        "shape 0: points are",
    ),
    "LabelMe without labels": (
        "a.json",
        '{"shapes": [{"points": [[1, 2]]}]}',
        "not LabelMe's JSON",
    ),
    "OpenImages": ("a.csv", "ImageID,Source,XMin\n0a,x,0.1\n", "values separated by commas"),
    "VisDrone": ("a.txt", "684,8,73,16,0,0,0,0\n", "values separated by commas"),
    "WIDER FACE": ("a.txt", "a.png\n1\n10 20 30 40 0 0\n", "line 1 has 1 fields"),
    "class names": ("classes.txt", "car\nperson\n", "line 1 has 1 fields"),
    "YOLO, oriented": ("a.txt", "0 .1 .1 .4 .1 .4 .4 .1 .4", "line 1 begins with a number, as"),
    "YOLO in pixels": ("a.txt", "0 50 40 20 20", "line 1 begins with a number"),
    "YOLO with names": ("a.txt", "car 0.5 0.5 0.2 0.2", "line 1 has 5 fields"),
    "YOLO with track ids": ("a.txt", "0 0.5 0.5 0.2 0.2 0.9 3", "line 1 begins with a number"),
    "YOLO of negative width": ("a.txt", "0 0.5 0.5 -0.2 0.2", "line 1: an empty or inverted box"),
    "KITTI behind a file name": ("a.txt", f"a.png {CAR}", "line 1: 'Car' is no number"),
    "KITTI with decimal commas": ("a.txt", CAR.replace("10", "10,5"), "line 1: '10,5' is no"),
    "BDD100K": ("a.json", '[{"labels": [{"box2d": {"x1": 1}}]}]', "not a list of"),
    "VIA": ("a.json", '{"a.png1": {"regions": []}}', "not a list of"),
    "CreateML": ("a.json", '[{"image": "a", "annotations": []}]', "not a list of"),
    "JSON lines": ("a.json", "[1, 2, 3, 4]\n[2, 3, 4, 5]", "not JSON (Extra data"),
    # shares of a picture instead of pixels
    "JSON in 0 … 1": ("a.json", "[[0.1, 0.2, 0.5, 0.6]]", "all coordinates lie in 0 … 1"),
    "JSON in 0 … 1 with importance": ("a.json", "[[0, 0, 1, 1, 0.5]]", "all coordinates lie in"),
    "KITTI in 0 … 1": (
        "a.txt",
        f"Car 0 0 0 0.1 0.2 0.5 0.6 {REST}",
        "all coordinates lie in 0 … 1",
    ),
    "COCO results in 0 … 1": ("a.json", '[{"bbox": [0.1, 0.1, 0.5, 0.5]}]', "all coordinates lie"),
    "LabelMe in 0 … 1": (
        "a.json",
        '{"shapes": [{"label": "a", "points": [[0.1, 0.2], [0.3, 0.4]]}]}',
        "all coordinates lie",
    ),
    # out of reach of the picture
    "KITTI, outside": ("a.txt", f"Car 0 0 0 500 50 900 90 {REST}", "line 1: the box [500"),
    "JSON, outside": ("a.json", "[[0, 1, 2, 3], [0, 96, 9, 99]]", "box 1: the box [0"),
    "JSON, above the picture": ("a.json", "[[0, -9, 9, 0]]", "box 0: the box [0"),
    "COCO results, outside": ("a.json", '[{"bbox": [160, 0, 5, 5]}]', "box 0: the box [160"),
    "xywh taken for corners": ("a.json", "[[50, 60, 20, 30]]", "box 0: an empty or inverted box"),
    # no numbers, no boxes
    "KITTI, too short": ("a.txt", f"{CAR}\nCar 0 0 0 10 20 30 40", "line 2 has 8 fields"),
    "KITTI, NaN": ("a.txt", f"Car 0 0 0 10 20 nan 40 {REST}", "line 1: a box's numbers are finite"),
    "KITTI, far away": ("a.txt", f"Car 0 0 0 10 20 1e300 40 {REST}", "line 1: a box's numbers are"),
    "KITTI, inverted": ("a.txt", f"Car 0 0 0 30 20 10 40 {REST}", "line 1: an empty or inverted"),
    "KITTI, empty": ("a.txt", f"Car 0 0 0 10 20 10 40 {REST}", "line 1: an empty or inverted box"),
    "KITTI, words": ("a.txt", f"Car 0 0 0 ten 20 30 40 {REST}", "line 1: 'ten' is no number"),
    "no JSON": ("a.json", "[[0, 1, 2", "not JSON"),
    "empty file": ("a.json", "", "not JSON"),
    "nested JSON": ("a.json", "[" * 100000, "not JSON (nested too deep)"),
    "an endless number": ("a.json", f"[[0, 1, 2, {'9' * 5000}]]", "not JSON (Exceeds the limit"),
    "a huge number": ("a.json", f"[[0, 1, 2, {DIGITS}]]", "box 0: a box's numbers are finite"),
    "infinity": ("a.json", "[[0, 1, -Infinity, 3]]", "box 0: a box's numbers are finite"),
    "equal as float32": (
        "a.json",
        "[[100000, 1, 100000.000001, 3]]",
        "box 0: an empty or inverted",
    ),
    "texts": ("a.json", '[["0", "1", "2", "3"]]', "box 0: a box is four numbers"),
    "truth values": ("a.json", "[[false, false, true, true]]", "box 0: a box is four numbers"),
    "three numbers": ("a.json", "[[0, 1, 2, 3], [0, 1, 2]]", "not a list of"),
    "one list": ("a.json", "[0, 1, 2, 3]", "not a list of"),
    "null": ("a.json", "null", "not a list of"),
    "importance 0": ("a.json", "[[0, 1, 2, 3, 0]]", "box 0: importance is a number in (0, 1]"),
    "importance 1.5": ("a.json", "[[0, 1, 2, 3, 1.5]]", "box 0: importance is a number"),
    "importance true": ("a.json", "[[0, 1, 2, 3, true]]", "box 0: importance is a number"),
    "importance NaN": ("a.json", "[[0, 1, 2, 3, NaN]]", "box 0: importance is a number"),
    "UTF-16": ("a.txt", CAR.encode("utf-16"), "not UTF-8 text"),
    "UTF-16 without a mark": ("a.txt", CAR.encode("utf-16-le"), "not UTF-8 text"),
    "Latin-1": ("a.txt", "Fußgänger".encode("latin-1"), "not UTF-8 text"),
}


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(("name", "content", "objects"), READ.values(), ids=READ)
def test_label_files_are_read(tmp_path, name, content, objects):
    names, boxes = read_labels(written(tmp_path, name, content), SIZE)
    assert names == [name for name, _ in objects]
    wanted = np.array([box for _, box in objects], np.float32)
    np.testing.assert_allclose(boxes, wanted.reshape(len(objects), -1 if objects else 4), atol=1e-4)


@pytest.mark.parametrize(("name", "content", "why"), REFUSED.values(), ids=REFUSED)
def test_label_files_are_refused_in_one_line(tmp_path, name, content, why):
    path = written(tmp_path, name, content)
    assert refusal(read_labels, path, SIZE).startswith(f"{path}: {why}")


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([10, 20, 319, 60], True),  # of the picture of twice the size
        ([100, 50, 300, 180], True),
        ([-100, 10, 40, 50], True),
        ([140, 10, 179, 50], False),
        ([-10, -10, 60, 50], False),
    ],
)
def test_a_box_that_is_mostly_outside_is_said(tmp_path, recwarn, box, said):
    path = written(tmp_path, "a.json", json.dumps([[1, 2, 3, 4], box]))
    assert len(read_boxes(path, SIZE)) == 2
    assert [f"{path}: of the box {[float(v) for v in box]}" in str(w.message) for w in recwarn] == (
        [True] if said else []
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("0 0.5 0.5 0.2 0.2 0.9\n0 0.5 0.5 0.2 0.2 0.001", "(1 of them)"),
        (
            '[{"bbox": [1, 2, 9, 9], "score": 0.01}, {"bbox": [1, 2, 9, 9], "score": 0}]',
            "(2 of them)",
        ),
        ('[{"bbox": [1, 2, 9, 9], "score": 0.3}, {"bbox": [1, 2, 9, 9]}]', None),
        (f"{CAR} -3.5", None),  # a score, as KITTI's devkit takes it
    ],
)
def test_detections_of_low_confidence_are_said(tmp_path, recwarn, content, said):
    assert len(read_labels(written(tmp_path, "a.txt", content), SIZE)[1])
    messages = [str(warning.message) for warning in recwarn]
    assert len(messages) == (said is not None)
    assert all(said in message for message in messages)


def test_files_that_are_missing(tmp_path):
    for name in ("missing.txt", "missing.json"):
        assert refusal(read_boxes, tmp_path / name) == f"{tmp_path / name}: no such file"


@pytest.mark.parametrize(
    ("box_format", "content", "boxes"),
    [
        ("xyxy", "[[0, 0, 1, 1]]", [[0, 0, 1, 1]]),
        ("xywh", "[[50, 60, 20, 30]]", [[50, 60, 70, 90]]),
        ("xywh", "[[50, 60, 20, 30, 0.5]]", [[50, 60, 70, 90, 0.5]]),
        ("yolo", "0 0.5 0.5 0.5 0.5", [[40, 24, 120, 72]]),
        ("kitti", f"Car 0 0 0 0.1 0.1 0.9 0.9 {REST}", [[0.1, 0.1, 0.9, 0.9]]),
        ("coco", '[{"image_id": 1, "bbox": [0, 0, 1, 1]}]', [[0, 0, 1, 1]]),
    ],
)
def test_a_format_that_is_asked_for_is_believed(tmp_path, box_format, content, boxes):
    path = written(tmp_path, "a.txt", content)
    np.testing.assert_allclose(read_boxes(path, SIZE, box_format), boxes, rtol=1e-6)


def test_a_format_that_does_not_fit_is_refused(tmp_path):
    path = written(tmp_path, "a.txt", CAR)
    assert "YOLO text is class" in refusal(read_boxes, path, SIZE, "yolo")
    assert "not JSON" in refusal(read_boxes, path, SIZE, "xywh")
    assert "box_format is one of kitti, yolo" in refusal(read_boxes, path, SIZE, "voc")
    path = written(tmp_path, "b.txt", "0 0.5 0.5 0.5 0.5")
    assert "whose size is not known" in refusal(read_boxes, path)


def test_kittis_reader_reads_nothing_else(tmp_path):
    for content, why in (("0 0.5 0.5 0.2 0.2", "YOLO labels"), (TRACKED, "KITTI tracking labels")):
        path = written(tmp_path, "a.txt", content)
        assert refusal(read_kitti_label, path).startswith(f"{path}: {why}")


def test_tracking_labels_are_read_by_frame(tmp_path):
    more = f"12 2 Car 0 0 -1.5 62 41 122 91 {REST} 0.5\n12 3 Van 0 0 0 1 2 3 4 {REST}\n"
    frames = read_tracking(written(tmp_path, "0000.txt", TRACKED + more), SIZE)
    assert frames.keys() == {0, 12}
    assert frames[0][0] == ["Car"]
    assert frames[12][0] == ["Car", "Van"]
    np.testing.assert_array_equal(frames[12][1], [[62, 41, 122, 91], [1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (CAR, "not KITTI tracking labels"),
        ("", "not KITTI tracking labels"),
        (TRACKED.replace("120 90", "20 90"), "line 2: an empty or inverted box"),
        (TRACKED.replace("60 40 120 90", "600 40 620 90"), "line 2: the box [600"),
        (TRACKED + CAR, "not KITTI tracking labels"),
    ],
)
def test_tracking_labels_with_a_mistake(tmp_path, content, why):
    path = written(tmp_path, "0000.txt", content)
    assert refusal(read_tracking, path, SIZE).startswith(f"{path}: {why}")


def as_yolo(boxes):
    height, width = SIZE
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    rows = np.hstack([centres, sides]) / (width, height, width, height)
    return "".join(f"0 {' '.join(f'{v:.6f}' for v in row)}\n" for row in rows)


def as_results(boxes):
    rows = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).tolist()
    return json.dumps([{"image_id": 1, "category_id": 1, "bbox": row} for row in rows])


def as_labelme(boxes):
    shapes = [{"label": "a", "points": [[x1, y0], [x0, y1]]} for x0, y0, x1, y1 in boxes.tolist()]
    return json.dumps({"shapes": shapes, "imageHeight": SIZE[0], "imageWidth": SIZE[1]})


def as_tracking(boxes):
    return "".join(f"3 0 Car 0 0 0 {' '.join(map(str, box))} {REST}\n" for box in boxes)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_boxes_in_every_format(tmp_path, seed):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 1, (6, 2, 2)).round(3) * (SIZE[1], SIZE[0])
    boxes = np.hstack([corners.min(1), corners.max(1) + 0.5]).clip(0, (160, 96, 160, 96))
    write_kitti_label(tmp_path / "kitti.txt", ["Car"] * 6, boxes)
    written(tmp_path, "yolo.txt", as_yolo(boxes))
    written(tmp_path, "xyxy.json", json.dumps(boxes.tolist()))
    written(tmp_path, "coco.json", as_results(boxes))
    written(tmp_path, "labelme.json", as_labelme(boxes))
    for path in tmp_path.iterdir():
        np.testing.assert_allclose(read_boxes(path, SIZE), boxes, atol=0.01)
        read_again = read_boxes(path, SIZE, path.stem)
        np.testing.assert_array_equal(read_again, read_boxes(path, SIZE))
    tracked = read_tracking(written(tmp_path, "tracking.txt", as_tracking(boxes)), SIZE)
    np.testing.assert_allclose(tracked[3][1], boxes, rtol=1e-6)


def test_written_labels_read_back_and_have_kittis_fields(tmp_path):
    boxes = np.array([[0.5, 1.25, 30, 40], [7, 8, 9.75, 10]], np.float32)
    write_kitti_label(tmp_path / "a.txt", ["Car", "Cyclist"], boxes)
    names, again = read_kitti_label(tmp_path / "a.txt")
    assert names == ["Car", "Cyclist"]
    np.testing.assert_array_equal(again, boxes)
    assert {len(line.split()) for line in (tmp_path / "a.txt").read_text().splitlines()} == {15}


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
    refusal(untrained_codec(which="roi_vbr", N=4, M=20).encode, street(0), boxes)
