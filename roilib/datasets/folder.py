"""Folders of one's own."""

from pathlib import Path

import numpy as np

from roilib.datasets.boxes import read_boxes, read_kitti_label
from roilib.datasets.images import PICTURE_SUFFIXES, Sample


def unlabelled_samples(folders: str) -> list[Sample]:
    """The pictures in and below these folders (separated by commas), as samples without objects. Raises ValueError naming an empty folder."""
    samples = []
    for name in folders.split(","):
        if not name.strip():
            raise ValueError(f"unlabelled={folders}: an empty name among the folders")
        folder = Path(name)
        found = sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES
        )
        if not found:
            raise ValueError(f"{folder}: no pictures here")
        samples += [Sample(path.relative_to(folder.parent).as_posix(), path) for path in found]
    return samples


def folder_samples(folder: str | Path) -> tuple[list[Sample], tuple[str, ...]]:
    """The pictures of a folder, sorted by name, with the boxes of the file beside each, and the names of the objects' classes.

    A box file has its picture's name: KITTI label text `.txt` (any type but DontCare) or `.json` as `roi.read_boxes` has it, whose boxes are of the
    class "object" and whose importance is not used. A picture without one has no boxes. Raises ValueError naming the file that is wrong.
    """
    files = sorted(
        path
        for path in Path(folder).glob("*")
        if path.suffix.lower() in (*PICTURE_SUFFIXES, ".txt", ".json")
    )
    images: dict[str, Path] = {}
    named: dict[str, tuple[list[str], np.ndarray]] = {}
    for path in files:
        kind = images if path.suffix.lower() in PICTURE_SUFFIXES else named
        if path.stem in kind:
            raise ValueError(
                f"{path}: the second {'picture' if kind is images else 'box file'} of the name {path.stem}"
            )
        kind[path.stem] = path if kind is images else _named_boxes(path)
    if not images:
        raise ValueError(f"{folder}: no pictures here")
    for path in files:
        if path.stem not in images:
            raise ValueError(f"{path}: boxes for no picture in {folder}")
    classes = tuple(sorted({name for names, _ in named.values() for name in names}))
    nothing = ([], np.zeros((0, 4), np.float32))
    found = [(id, images[id], *named.get(id, nothing)) for id in sorted(images)]
    return [
        Sample(id, path, boxes, np.array([classes.index(name) for name in names], np.int64))
        for id, path, names, boxes in found
    ], classes


def _named_boxes(path: Path) -> tuple[list[str], np.ndarray]:
    """Class names and boxes (K, 4) of a box file."""
    if path.suffix.lower() == ".txt":
        return read_kitti_label(path)
    boxes = read_boxes(path)[:, :4]
    return ["object"] * len(boxes), boxes
