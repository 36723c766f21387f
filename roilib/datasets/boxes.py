"""Label files in and out: the boxes of a picture's objects, and their class names.

A box is (x0, y0, x1, y1) in pixels: x to the right, y down, x1 and y1 exclusive.

    format    contents
    kitti     text: `Car 0.00 0 -1.57 x0 y0 x1 y1` and 7 fields of 3D, perhaps a score
    yolo      text: `class x y width height`, perhaps a confidence; shares of the picture
    xyxy      JSON: [[x0, y0, x1, y1], …], perhaps with an importance in (0, 1] each
    xywh      JSON: the same with width and height; read only when it is asked for
    coco      JSON: COCO results of one picture, [{"bbox": [x, y, width, height], …}, …]
    labelme   JSON: {"shapes": [{"label": "car", "points": [[x, y], …]}, …], …}
    tracking  text: KITTI tracking, frame and track before a KITTI label (`read_tracking`)

The format is recognised by the contents. A file that fits none of them is refused, and so are
coordinates that all lie in 0 … 1, and boxes outside the picture.
"""

import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from roilib.utils.files import read_json, read_text

KITTI_FIELDS = (15, 16)  # without and with a score (readme of KITTI's object devkit)
TRACKING_FIELDS = (17, 18)  # the same behind the numbers of frame and track
YOLO_FIELDS = (5, 6)  # without and with a confidence
TEXT_FORMATS = ("kitti", "yolo")
JSON_FORMATS = ("xyxy", "xywh", "coco", "labelme")
MAX_COORDINATE = 1e6  # pixels; float32 still resolves sixteenths of a pixel there
YOLO_SLACK = 0.01  # share of the picture by which rounded boxes may cross its border

Size = tuple[int, int]  # height and width of the picture
Labels = tuple[list[str], np.ndarray]  # class names and boxes (K, 4), or (K, 5) with importance
Lines = list[tuple[str, list[str]]]  # "line 3" and its words
Entry = tuple[str, str, list, float | None]  # place in the file, name, x0 y0 x1 y1, importance


def read_labels(path: Path, size: Size | None = None, box_format: str | None = None) -> Labels:
    """Read the class names and boxes of one picture. Objects without a name are called "object".

    size: the picture's, without which no YOLO file is read and no box is found to lie outside.
    box_format: one of TEXT_FORMATS and JSON_FORMATS, to insist; None recognises it.
    Raises ValueError naming the file and what is wrong in it.
    """
    path = Path(path)
    if box_format not in (None, *TEXT_FORMATS, *JSON_FORMATS):
        known = ", ".join((*TEXT_FORMATS, *JSON_FORMATS))
        raise ValueError(f"box_format is one of {known}, not {box_format}")
    text = read_text(path)
    is_json = path.suffix.lower() == ".json" or text.lstrip()[:1] in ("[", "{")
    content: Any = read_json(path) if box_format in JSON_FORMATS or is_json else _lines(text)
    try:
        if box_format is None:
            box_format = _json_format(content) if is_json else _text_format(content)
            insisted = False
        else:
            insisted = True
        entries = {
            "kitti": _kitti,
            "yolo": lambda lines: _yolo(lines, size),
            "xyxy": _corners,
            "xywh": lambda rows: _corners(rows, sizes=True),
            "coco": _coco_results,
            "labelme": lambda shapes: _labelme(shapes, size),
        }[box_format](content)
        return _checked(entries, size, insisted)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_boxes(path: Path, size: Size | None = None, box_format: str | None = None) -> np.ndarray:
    """Read the boxes (K, 4), or (K, 5) with importance, of one picture, as `read_labels` does."""
    return read_labels(path, size, box_format)[1]


def read_kitti_label(path: Path, size: Size | None = None) -> Labels:
    """Read a KITTI label file without its DontCare regions; other formats are refused by name."""
    path, lines = Path(path), _lines(read_text(Path(path)))
    try:
        if (found := _text_format(lines)) != "kitti":
            raise ValueError(f"{found} labels, where KITTI's are expected")
        return _checked(_kitti(lines), size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_tracking(path: Path, size: Size | None = None) -> dict[int, Labels]:
    """Read KITTI tracking labels: the class names and boxes of each frame of a sequence."""
    frames: dict[int, Lines] = {}
    lines = _lines(read_text(Path(path)))
    try:
        if not _is_tracking(lines):
            raise ValueError(
                "not KITTI tracking labels: a line has 17 fields, or 18 with a score: frame, "
                "track, class name, …"
            )
        for place, words in lines:
            frames.setdefault(int(words[0]), []).append((place, words[2:]))
        return {frame: _checked(_kitti(own), size) for frame, own in frames.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def is_tracking(path: Path) -> bool:
    """Whether a file holds KITTI tracking labels."""
    return _is_tracking(_lines(read_text(Path(path))))


def write_kitti_label(path: Path, names: list[str], boxes: np.ndarray) -> None:
    """Write KITTI label text, with KITTI's marks for unknown (-1, -10, -1000) in its 3D fields."""
    unknown = "-1 -1 -1 -1000 -1000 -1000 -10"
    lines = [
        f"{name} 0.00 0 -10 {' '.join(f'{v:.2f}' for v in box)} {unknown}\n"
        for name, box in zip(names, boxes, strict=True)
    ]
    Path(path).write_text("".join(lines))


def checked_box(values: list, size: Size | None = None) -> list[float]:
    """x0, y0, x1, y1 as float32 stores them. Raises ValueError for a box that cannot be meant."""
    shown = reprlib.repr(values)  # short, however long a number is
    if any(not isinstance(v, int | float) or isinstance(v, bool) for v in values):
        raise ValueError(f"a box is four numbers, not {shown}")
    if not all(abs(v) <= MAX_COORDINATE for v in values):  # NaN fails this test too
        raise ValueError(
            f"a box's numbers are finite and at most {MAX_COORDINATE:.0f} pixels, not {shown}"
        )
    x0, y0, x1, y1 = np.array(values, np.float32).tolist()
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"an empty or inverted box: {shown} (x0, y0, x1, y1)")
    if size and not (x0 < size[1] and y0 < size[0] and x1 > 0 and y1 > 0):
        raise ValueError(f"the box {shown} lies outside the picture of {size[1]}x{size[0]} pixels")
    return [x0, y0, x1, y1]


def _checked(entries: Iterable[Entry], size: Size | None, insisted: bool = False) -> Labels:
    names, boxes, importances = [], [], []
    for place, name, values, importance in entries:
        try:
            boxes.append(checked_box(values, size))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        names.append(name)
        importances.append(importance)
    found = np.array(boxes, np.float32).reshape(-1, 4)
    if len(found) and not insisted and (found >= 0).all() and (found <= 1).all():
        raise ValueError(
            "all coordinates lie in 0 … 1, as shares of a picture; boxes are in pixels"
        )
    if any(value is not None for value in importances):
        column = np.array([[1.0 if v is None else v] for v in importances], np.float32)
        found = np.hstack([found, column])
    return names, found


# Text


def _lines(text: str) -> Lines:
    lines = [(f"line {n}", line.split()) for n, line in enumerate(text.splitlines(), 1)]
    return [(place, words) for place, words in lines if words]


def _text_format(lines: Lines) -> str:
    """The format of a text file. Raises ValueError naming one that is not read."""
    if lines and lines[0][1][0].startswith("<"):
        raise ValueError("XML, as Pascal VOC's, is not read; KITTI, YOLO, COCO and LabelMe are")
    if _is_tracking(lines):
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


def _is_tracking(lines: Lines) -> bool:
    return bool(lines) and all(
        len(words) in TRACKING_FIELDS and words[0].isdigit() and _number(words[2]) is None
        for _, words in lines
    )


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _kitti(lines: Lines) -> Iterator[Entry]:
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


def _yolo(lines: Lines, size: Size | None) -> Iterator[Entry]:
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


def _json_format(content: Any) -> str:
    """The format of JSON. Raises ValueError naming one that is not read."""
    if isinstance(content, dict) and "shapes" in content:
        return "labelme"
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        raise ValueError("COCO annotations of a data set, not the boxes of one picture")
    is_objects = isinstance(content, list) and content and isinstance(content[0], dict)
    return "coco" if is_objects and "bbox" in content[0] else "xyxy"


def _corners(rows: Any, sizes: bool = False) -> Iterator[Entry]:
    if not isinstance(rows, list) or any(
        not isinstance(row, list) or len(row) not in (4, 5) for row in rows
    ):
        raise ValueError("not a list of [x0, y0, x1, y1] or [x0, y0, x1, y1, importance]")
    for i, row in enumerate(rows):
        values = _to_corners(row[:4]) if sizes else row[:4]
        yield f"box {i}", "object", values, _importance(row[4], f"box {i}") if row[4:] else None


def _to_corners(values: list) -> list:
    """x, y, width, height as x0, y0, x1, y1; what is not numbers stays, to be refused."""
    if any(not isinstance(v, int | float) for v in values):
        return values
    x, y, width, height = values
    return [x, y, x + width, y + height]


def _importance(value: Any, place: str) -> float:
    is_number = isinstance(value, int | float) and value is not True
    if not is_number or not (0 < value <= 1 and np.float32(value)):
        raise ValueError(f"{place}: importance is a number in (0, 1], not {reprlib.repr(value)}")
    return float(value)


def _coco_results(rows: Any) -> Iterator[Entry]:
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


def _labelme(content: Any, size: Size | None) -> Iterator[Entry]:
    try:
        stored = content.get("imageHeight"), content.get("imageWidth")
        if size and None not in stored and stored != tuple(size):
            raise ValueError(
                f"labels of a picture of {stored[1]}x{stored[0]} pixels, it has {size[1]}x{size[0]}"
            )
        for i, shape in enumerate(content["shapes"]):
            if (kind := shape.get("shape_type", "polygon")) not in ("rectangle", "polygon"):
                raise ValueError(f"shape {i} is a {kind}; rectangles and polygons are read")
            columns = list(zip(*shape["points"], strict=True))
            (left, right), (top, bottom) = ((min(c), max(c)) for c in columns)
            yield f"shape {i}", str(shape["label"]), [left, top, right, bottom], None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not LabelMe's JSON ({type(error).__name__}: {error})") from None
