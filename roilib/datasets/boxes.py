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
coordinates that all lie in 0 … 1, and boxes outside the picture. Warnings name a box that is mostly
outside, and detections of low confidence.
"""

import re
import reprlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from roilib.datasets import formats
from roilib.datasets.formats import JSON_FORMATS, TEXT_FORMATS, Entry, Lines, Size
from roilib.utils.files import read_json, read_text

LEAST_WITHIN = 0.5  # share of a box in the picture; labels of a larger picture have less
UNSURE = 0.1  # confidence of a detection; files made to measure a detector go down to 0.001
MAX_COORDINATE = 1e6  # pixels; float32 still resolves sixteenths of a pixel there

Key = TypeVar("Key")
Labels = tuple[list[str], np.ndarray]  # class names and boxes (K, 4), or (K, 5) with importance


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
    if box_format is None:
        is_json = path.suffix.lower() == ".json" or text.lstrip()[:1] in ("[", "{")
    else:
        is_json = box_format in JSON_FORMATS
    content = read_json(path) if is_json else formats.split_lines(text)
    try:
        found = box_format or (formats.json_format if is_json else formats.text_format)(content)
        entries = {
            "kitti": formats.kitti,
            "yolo": lambda lines: formats.yolo(lines, size),
            "xyxy": formats.corners,
            "xywh": lambda rows: formats.corners(rows, are_sizes=True),
            "coco": formats.coco_results,
            "labelme": lambda shapes: formats.labelme(shapes, size),
        }[found](content)
        checked = _checked(path, entries, size, insisted=box_format is not None)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if unsure := [value for value in formats.confidences(found, content) if value < UNSURE]:
        warnings.warn(
            f"{path}: detections of a confidence below {UNSURE} ({len(unsure)} of them) count like "
            "the others",
            stacklevel=2,
        )
    return checked


def read_boxes(path: Path, size: Size | None = None, box_format: str | None = None) -> np.ndarray:
    """Read the boxes (K, 4), or (K, 5) with importance, of one picture, as `read_labels` does."""
    return read_labels(path, size, box_format)[1]


def box_file(folder: Path, picture: Path) -> Path:
    """Return a picture's box file in `folder`, .txt or .json. Raises ValueError if it has none."""
    for suffix in (".txt", ".json"):
        if (path := folder / f"{picture.stem}{suffix}").is_file():
            return path
    raise ValueError(f"{folder}: no {picture.stem}.txt or {picture.stem}.json for {picture}")


def read_kitti_label(path: Path, size: Size | None = None) -> Labels:
    """Read a KITTI label file without its DontCare regions; other formats are refused by name."""
    path, lines = Path(path), formats.split_lines(read_text(Path(path)))
    try:
        if formats.text_format(lines) == "yolo":
            raise ValueError("YOLO labels, where KITTI's are expected")
        return _checked(path, formats.kitti(lines), size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_tracking(path: Path, size: Size | None = None) -> dict[int, Labels]:
    """Read KITTI tracking labels: the class names and boxes of each frame of a sequence."""
    path, frames = Path(path), dict[int, Lines]()
    lines = formats.split_lines(read_text(path))
    try:
        if not formats.is_tracking(lines):
            raise ValueError(
                "not KITTI tracking labels: a line has 17 fields, or 18 with a score: frame, "
                "track, class name, …"
            )
        for place, words in lines:
            frames.setdefault(int(words[0]), []).append((place, words[2:]))
        return {f: _checked(path, formats.kitti(own), size) for f, own in frames.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def by_frame(labels: Path, names: Mapping[Key, str]) -> dict[int, Key]:
    """Return pictures by frame number, for a file of KITTI tracking labels.

    names: the pictures' names without suffixes; the number is at the end. Pictures without one are
    left out. Raises ValueError naming `labels` for two pictures of one number.
    """
    numbers = {key: re.search(r"\d+$", name) for key, name in names.items()}
    frames = {int(number[0]): key for key, number in numbers.items() if number}
    if len(frames) < sum(number is not None for number in numbers.values()):
        raise ValueError(f"{labels}: two pictures of one frame number")
    return frames


def is_tracking(path: Path) -> bool:
    """Whether a file holds KITTI tracking labels."""
    return formats.is_tracking(formats.split_lines(read_text(Path(path))))


def write_kitti_label(path: Path, names: list[str], boxes: np.ndarray) -> None:
    """Write KITTI label text, with KITTI's marks for unknown (-1, -10, -1000) in its 3D fields."""
    unknown = "-1 -1 -1 -1000 -1000 -1000 -10"
    lines = [
        f"{name} 0.00 0 -10 {' '.join(f'{v:.2f}' for v in box)} {unknown}\n"
        for name, box in zip(names, boxes, strict=True)
    ]
    Path(path).write_text("".join(lines), encoding="utf-8")


def checked_box(values: list, size: Size | None = None) -> list[float]:
    """x0, y0, x1, y1 as float32 stores them. Raises ValueError for an implausible box."""
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


def _checked(
    path: Path, entries: Iterable[Entry], size: Size | None, insisted: bool = False
) -> Labels:
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
    if size:
        height, width = size
        within = np.clip(found, 0, (width, height, width, height))
        areas = [np.prod(corners[:, 2:] - corners[:, :2], axis=1) for corners in (within, found)]
        if len(beyond := np.flatnonzero(areas[0] < LEAST_WITHIN * areas[1])):
            warnings.warn(
                f"{path}: of the box {found[beyond[0]].tolist()} less than half is in the picture "
                f"of {width}x{height} pixels; are these labels of another size?",
                stacklevel=2,
            )
    if any(value is not None for value in importances):
        column = np.array([[1.0 if v is None else v] for v in importances], np.float32)
        found = np.hstack([found, column])
    return names, found
