"""Label files of each format, as entries: place in the file, class name, box and importance.

`text_format` and `json_format` recognise a format by its contents. What each contains is in
roilib.datasets.boxes, which checks the boxes.
"""

import reprlib
from collections.abc import Iterator
from typing import Any

import numpy as np

TEXT_FORMATS = ("kitti", "yolo")
JSON_FORMATS = ("xyxy", "xywh", "coco", "labelme")
KITTI_FIELDS = (15, 16)  # without and with a score (readme of KITTI's object devkit)
TRACKING_FIELDS = (17, 18)  # the same behind the numbers of frame and track
YOLO_FIELDS = (5, 6)  # without and with a confidence
YOLO_SLACK = 0.01  # share of the picture by which rounded boxes may cross its border

Size = tuple[int, int]  # height and width of the picture
Lines = list[tuple[str, list[str]]]  # "line 3" and its words
Entry = tuple[str, str, list, float | None]  # place in the file, name, x0 y0 x1 y1, importance


# Text


def split_lines(text: str) -> Lines:
    """The words of each line that is not empty."""
    lines = [(f"line {n}", line.split()) for n, line in enumerate(text.splitlines(), 1)]
    return [(place, words) for place, words in lines if words]


def text_format(lines: Lines) -> str:
    """The format of a text file. Raises ValueError naming one that is not read."""
    if lines and lines[0][1][0].startswith("<"):
        raise ValueError("XML, as Pascal VOC's, is not read; KITTI, YOLO, COCO and LabelMe are")
    if lines and all("," in line[1][0] for line in lines):
        raise ValueError("values separated by commas, as in MOT's files, are not read")
    if is_tracking(lines):
        raise ValueError(
            f"KITTI tracking labels: {len(lines[0][1])} columns; such a file belongs to a whole "
            "sequence, a label file to one picture and has 15 or 16"
        )
    if not lines or any(_number(words[0]) is None for _, words in lines):
        return "kitti"
    values = np.array([abs(_number(word) or 0) for _, words in lines for word in words[1:]])
    shares = bool((values <= 1).all())
    if shares and all(len(words) in YOLO_FIELDS for _, words in lines):
        return "yolo"
    kind = ", as YOLO's polygons and key points" if shares else ""
    raise ValueError(
        f"{lines[0][0]} begins with a number{kind}; a KITTI label begins with a class name, "
        "and YOLO text has 5 or 6 fields: class x y width height (confidence)"
    )


def is_tracking(lines: Lines) -> bool:
    """Whether these are KITTI tracking labels."""
    return bool(lines) and all(
        len(words) in TRACKING_FIELDS and words[0].isdigit() and _number(words[2]) is None
        for _, words in lines
    )


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def kitti(lines: Lines) -> Iterator[Entry]:
    """The objects of KITTI labels, without DontCare."""
    for place, (name, *fields) in lines:
        if name == "DontCare":
            continue
        if len(fields) + 1 not in KITTI_FIELDS:
            raise ValueError(
                f"{place} has {len(fields) + 1} fields, a KITTI label has 15, or 16 with a score"
            )
        if _number(name) is not None:
            raise ValueError(f"{place}: a KITTI label begins with a class name, not {name}")
        values = [_number(word) for word in fields]
        if None in values:
            word = fields[values.index(None)]
            raise ValueError(
                f"{place}: {reprlib.repr(word)} is no number; a class name is one word"
            )
        yield place, name, values[3:7], None


def yolo(lines: Lines, size: Size | None) -> Iterator[Entry]:
    """The objects of YOLO text; their names are class numbers."""
    if size is None:
        raise ValueError("YOLO labels are shares of the picture, whose size is not known here")
    height, width = size
    for place, (name, *fields) in lines:
        values = [_number(word) for word in fields]
        if len(values) + 1 not in YOLO_FIELDS or None in values or not name.isdigit():
            raise ValueError(
                f"{place}: YOLO text is class x y width height, perhaps with a confidence"
            )
        x, y, w, h = values[:4]
        edges = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        if min(edges) < -YOLO_SLACK or max(edges) > 1 + YOLO_SLACK:
            raise ValueError(f"{place}: a YOLO box, {' '.join(fields)}, leaves the picture")
        yield place, name, [e * n for e, n in zip(edges, (width, height) * 2, strict=True)], None


# JSON


def json_format(content: Any) -> str:
    """The format of JSON. Raises ValueError naming one that is not read."""
    if isinstance(content, dict) and "shapes" in content:
        return "labelme"
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        raise ValueError("COCO annotations of a data set, not the boxes of one picture")
    is_objects = isinstance(content, list) and content and isinstance(content[0], dict)
    return "coco" if is_objects and "bbox" in content[0] else "xyxy"


def corners(rows: Any, are_sizes: bool = False) -> Iterator[Entry]:
    """Boxes as lists of numbers, with corners or with width and height."""
    if not isinstance(rows, list) or any(
        not isinstance(row, list) or len(row) not in (4, 5) for row in rows
    ):
        raise ValueError("not a list of [x0, y0, x1, y1] or [x0, y0, x1, y1, importance]")
    for i, row in enumerate(rows):
        values = _to_corners(row[:4]) if are_sizes else row[:4]
        yield f"box {i}", "object", values, _importance(row[4], f"box {i}") if row[4:] else None


def _to_corners(values: list) -> list:
    """x, y, width, height as x0, y0, x1, y1; texts stay, so that `checked_box` names them."""
    if any(not isinstance(v, int | float) for v in values):
        return values
    x, y, width, height = values
    return [x, y, x + width, y + height]


def _importance(value: Any, place: str) -> float:
    is_number = isinstance(value, int | float) and value is not True
    if not is_number or not (0 < value <= 1 and np.float32(value)):
        raise ValueError(f"{place}: importance is a number in (0, 1], not {reprlib.repr(value)}")
    return float(value)


def coco_results(rows: Any) -> Iterator[Entry]:
    """The detections of one picture; their names are category ids."""
    if not isinstance(rows, list) or any(
        not isinstance(row, dict) or not isinstance(row.get("bbox"), list) or len(row["bbox"]) != 4
        for row in rows
    ):
        raise ValueError('not COCO results: a list of {"bbox": [x, y, width, height], …}')
    pictures = {str(row.get("image_id")) for row in rows}
    if len(pictures) > 1:
        raise ValueError(f"COCO results of {len(pictures)} pictures, not the boxes of one")
    for i, row in enumerate(rows):
        yield f"box {i}", str(row.get("category_id", "object")), _to_corners(row["bbox"]), None


def confidences(box_format: str, content: Any) -> list[float]:
    """The confidences of detections in YOLO text or COCO results; KITTI's scores have no range."""
    if box_format == "yolo":
        found = [_number(words[5]) for _, words in content if len(words) == max(YOLO_FIELDS)]
    else:
        found = [row.get("score") for row in content] if box_format == "coco" else []
    return [value for value in found if isinstance(value, int | float)]


def labelme(content: Any, size: Size | None) -> Iterator[Entry]:
    """Rectangles, and polygons as the boxes around them."""
    try:
        stored = content.get("imageHeight"), content.get("imageWidth")
        if size and None not in stored and stored != tuple(size):
            raise ValueError(
                f"labels of a picture of {stored[1]}x{stored[0]} pixels, it has {size[1]}x{size[0]}"
            )
        for i, shape in enumerate(content["shapes"]):
            if (kind := shape.get("shape_type", "polygon")) not in ("rectangle", "polygon"):
                raise ValueError(f"shape {i} is a {kind}; rectangles and polygons are read")
            points = shape["points"]
            if not points or any(len(point) != 2 for point in points):
                raise ValueError(f"shape {i}: points are [[x, y], …]")
            xs, ys = zip(*points, strict=True)
            yield f"shape {i}", str(shape["label"]), [min(xs), min(ys), max(xs), max(ys)], None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not LabelMe's JSON ({type(error).__name__}: {error})") from None
