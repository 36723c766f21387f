"""Regions of interest: box files in and out, and boxes drawn as masks.

A box is (x0, y0, x1, y1) in pixels, x to the right and y down, x1 and y1 exclusive. The ROI of a picture is the union of its boxes.
"""

import reprlib
from pathlib import Path

import numpy as np

from roilib.utils.files import read_json, read_text

KITTI_FIELDS = 15  # type, truncated, occluded, alpha, 4 of the box, 3 sizes, 3 of the place, rotation (KITTI's devkit readme)
FARTHEST = 1e6  # pixels; no picture is as large, and float32, in which boxes are kept, still tells sixteenths of a pixel there


def read_kitti_label(path: Path) -> tuple[list[str], np.ndarray]:
    """A KITTI label file's object types and boxes (K, 4), DontCare left out. Raises ValueError naming file and line."""
    path = Path(path)
    names, boxes = [], []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        fields = line.split()
        if not fields or fields[0] == "DontCare":
            continue
        if len(fields) < KITTI_FIELDS:
            raise ValueError(
                f"{path}: line {number} has {len(fields)} fields, a KITTI label has {KITTI_FIELDS}"
            )
        names.append(fields[0])
        boxes.append(_box([_parsed(word) for word in fields[4:8]], f"{path}: line {number}"))
    return names, np.array(boxes, np.float32).reshape(-1, 4)


def write_kitti_label(path: Path, names: list[str], boxes: np.ndarray) -> None:
    """Write boxes as KITTI label text; what only 3D labels hold gets KITTI's own marks for unknown (-1, -10, -1000)."""
    unknown = "-1 -1 -1 -1000 -1000 -1000 -10"
    lines = [
        f"{name} 0.00 0 -10 {' '.join(f'{v:.2f}' for v in box)} {unknown}\n"
        for name, box in zip(names, boxes, strict=True)
    ]
    Path(path).write_text("".join(lines))


def read_boxes(path: Path) -> np.ndarray:
    """Boxes (K, 4), or (K, 5) with importance, from KITTI label text or JSON `[[x0, y0, x1, y1(, importance)], …]`."""
    path = Path(path)
    if path.suffix.lower() != ".json":
        return read_kitti_label(path)[1]
    rows = read_json(path)
    if not isinstance(rows, list) or any(
        not isinstance(row, list) or len(row) not in (4, 5) for row in rows
    ):
        raise ValueError(f"{path}: not a list of [x0, y0, x1, y1] or [x0, y0, x1, y1, importance]")
    width = max((len(row) for row in rows), default=4)
    checked = [
        _box(row[:4], f"{path}: box {i}") + _importance(row[4:], width, f"{path}: box {i}")
        for i, row in enumerate(rows)
    ]
    return np.array(checked, np.float32).reshape(-1, width)


def _parsed(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def check_numbers(values: list, where: str) -> None:
    """Raise ValueError, beginning with `where`, unless all four numbers of a box are finite and of a possible size."""
    shown = reprlib.repr(values)  # never longer than a line
    if any(not isinstance(v, int | float) or isinstance(v, bool) for v in values):
        raise ValueError(f"{where}: a box is four numbers, not {shown}")
    if not all(abs(v) <= FARTHEST for v in values):  # NaN is not either
        raise ValueError(
            f"{where}: a box's numbers are finite and at most {FARTHEST:.0f} pixels, not {shown}"
        )


def _box(values: list, where: str) -> list[float]:
    """The box as float32 has it."""
    check_numbers(values, where)
    x0, y0, x1, y1 = np.array(values, np.float32).tolist()
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"{where}: an empty or inverted box: {reprlib.repr(values)}")
    return [x0, y0, x1, y1]


def _importance(values: list, width: int, where: str) -> list[float]:
    if width == 4:
        return []
    value = values[0] if values else 1.0
    if (
        not isinstance(value, int | float)
        or value is True
        or not (0 < value <= 1 and np.float32(value))
    ):
        raise ValueError(f"{where}: importance is a number in (0, 1], not {reprlib.repr(value)}")
    return [float(value)]
