"""Folders of one's own pictures, with or without labels.

    folder/
      a.png       one of PICTURE_SUFFIXES
      a.txt       optional: KITTI label or YOLO text, named like its picture
      b.jpg
      b.json      optional: boxes, COCO results or LabelMe (roilib.datasets.boxes)
      classes.txt optional: names of YOLO's classes, one a line
      0000.txt    or, for all pictures, KITTI tracking labels: frame 7 is the picture 000007
      splits/train.txt, test.txt    optional: ids, one a line, to train on the folder

A picture without a label file has no objects. Files that begin with a dot are ignored.
"""

import os
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from roilib.datasets.boxes import Labels, by_frame, is_tracking, read_labels, read_tracking
from roilib.datasets.images import Sample, is_turned, picture_size
from roilib.utils.files import PICTURE_SUFFIXES, picture_files, read_lines, visible_files

LABEL_SUFFIXES = (".txt", ".json")


def folder_samples(
    folder: str | Path,
    box_format: str | None = None,
    below: bool = False,
    with_objects: bool = True,
) -> tuple[list[Sample], tuple[str, ...]]:
    """Read the pictures of a folder in natural order, with their objects, and the class names.

    box_format: that of the label files, None recognises it; below: also in folders below.
    with_objects=False reads no label files, so that other .txt and .json files may lie there.
    Objects without a name are called "object"; importances are not kept. Every picture's header
    is read. Raises ValueError naming the file that is wrong.
    """
    folder = Path(os.path.expanduser(folder))
    if folder.is_file():
        raise ValueError(f"{folder}: a file; a folder of pictures is needed")
    images, labels = _files(folder, below, LABEL_SUFFIXES if with_objects else ())
    sizes = {id: picture_size(path) for id, path in images.items()}
    yolo_names = _class_names(labels.pop("classes")) if _has_class_names(labels, images) else ()
    strays = {id: path for id, path in labels.items() if id not in images}
    if len(strays) == 1 and len(labels) == 1 and is_tracking(path := next(iter(strays.values()))):
        found = _by_frame(path, images, sizes)
    elif strays:
        raise ValueError(f"{next(iter(strays.values()))}: boxes for no picture in {folder}")
    else:
        found = {id: read_labels(path, sizes[id], box_format) for id, path in labels.items()}
        for id, (names, _) in found.items() if yolo_names else ():
            _check_classes(labels[id], names, yolo_names)
    for id in found:
        if images[id].suffix.lower() != ".png" and is_turned(images[id]):  # cameras write no PNG
            warnings.warn(
                f"{images[id]}: EXIF turns it, but boxes are taken to be in the stored pixels",
                stacklevel=2,
            )
    return _samples(images, found, yolo_names)


def _files(
    folder: Path, below: bool, label_suffixes: tuple[str, ...]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the pictures and the label files by id. Raises ValueError naming the wrong one."""
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for path in visible_files(folder, (*PICTURE_SUFFIXES, *label_suffixes), below):
        if path.parent == folder / "splits" and path.suffix == ".txt":
            continue
        id = path.relative_to(folder).with_suffix("").as_posix()
        kind = images if path.suffix.lower() in PICTURE_SUFFIXES else labels
        if id in kind:
            what = "picture" if kind is images else "label file"
            raise ValueError(f"{path}: the second {what} of the name {id}")
        kind[id] = path
    if not images:
        raise ValueError(f"{folder}: no pictures here ({', '.join(PICTURE_SUFFIXES)})")
    return images, labels


def _has_class_names(labels: dict[str, Path], images: dict[str, Path]) -> bool:
    path = labels.get("classes")
    return path is not None and path.suffix == ".txt" and "classes" not in images


def _class_names(path: Path) -> tuple[str, ...]:
    return tuple(read_lines(path))


def _check_classes(path: Path, names: list[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name.isdigit() and int(name) >= len(known):
            raise ValueError(f"{path}: class {name}, but classes.txt has {len(known)}, from 0 on")


def _by_frame(path: Path, images: dict[str, Path], sizes: dict) -> dict[str, Labels]:
    """The objects of a sequence by picture."""
    frames = by_frame(path, {id: id for id in images})
    tracked = read_tracking(path, next(iter(sizes.values())))
    for frame in tracked:
        if frame not in frames:
            raise ValueError(f"{path}: no picture of frame {frame} in {images[min(images)].parent}")
    return {frames[frame]: labels for frame, labels in tracked.items()}


def _samples(
    images: dict[str, Path], found: dict[str, Labels], yolo_names: tuple[str, ...]
) -> tuple[list[Sample], tuple[str, ...]]:
    def named(name: str) -> str:
        is_index = name.isdigit() and int(name) < len(yolo_names)
        return yolo_names[int(name)] if is_index else name

    objects = {id: ([named(name) for name in names], boxes) for id, (names, boxes) in found.items()}
    classes = tuple(sorted({name for names, _ in objects.values() for name in names}))
    nothing = ([], np.zeros((0, 4), np.float32))
    return [
        Sample(id, path, boxes[:, :4], np.array([classes.index(n) for n in names], np.int64))
        for id, path in images.items()
        for names, boxes in [objects.get(id, nothing)]
    ], classes


def unlabelled_samples(folders: str) -> list[Sample]:
    """Read the pictures in and below folders, separated by commas, as samples without objects.

    Every picture's header is read. An id is the end of a picture's path: the folder's name and what
    lies below it, with as many parents as make all ids different. Raises ValueError naming a folder
    without pictures.
    """
    samples: list[Sample] = []
    for name in folders.split(","):
        if not name.strip():
            raise ValueError(f"unlabelled={folders}: an empty name among the folders")
        folder = Path(os.path.expanduser(name.strip()))
        if not (found := sorted(picture_files(folder, below=True))):
            raise ValueError(f"{folder}: no pictures here ({', '.join(PICTURE_SUFFIXES)})")
        if twice := {s.path.resolve() for s in samples} & {path.resolve() for path in found}:
            raise ValueError(f"{min(twice)}: in two of the folders unlabelled={folders}")
        for path in found:
            picture_size(path)
        samples += [Sample(path.relative_to(folder.parent).as_posix(), path) for path in found]
    return _with_own_ids(samples)


def _with_own_ids(samples: list[Sample]) -> list[Sample]:
    """Put parents before ids, for example `cam1/` before `images/0001.png`, until all differ."""
    while len({sample.id for sample in samples}) < len(samples):
        counts = Counter(sample.id for sample in samples)
        samples = [replace(s, id=_longer(s.id, s.path)) if counts[s.id] > 1 else s for s in samples]
    return samples


def _longer(id: str, path: Path) -> str:
    """Return the end of a path that has one part more than `id`."""
    return "/".join(path.absolute().parts[-id.count("/") - 2 :])
