"""COCO's instances: pictures, boxes and category names.

    root/
      annotations/instances_train2017.json    or instances_train.json, another year's
      annotations/instances_val2017.json
      train2017/000000000009.jpg              or images/train2017/, train/, images/train/, images/
      val2017/000000000139.jpg

Also Roboflow's export: `train/_annotations.coco.json` among its pictures, and `valid/`.
T.-Y. Lin et al., "Microsoft COCO: common objects in context", ECCV 2014.
"""

import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from roilib.datasets.boxes import checked_box
from roilib.datasets.images import Sample, is_turned, picture_size, swaps_sides
from roilib.utils.files import read_text

LEAST_CROSSING = 2  # boxes over the border that are believed in any data set


class _Picture(BaseModel):
    id: int
    file_name: str
    width: int | None = None
    height: int | None = None


class _Category(BaseModel):
    id: int
    name: str


class _Annotation(BaseModel):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height
    iscrowd: int = 0


class _Instances(BaseModel):
    images: list[_Picture]
    annotations: list[_Annotation]
    categories: list[_Category]


def coco_samples(
    root: Path, part: str, classes: tuple[str, ...] = ()
) -> tuple[list[Sample], tuple[str, ...]]:
    """Read the pictures of `part` ("train" or "val"), sorted by id, and the class names.

    Labels index `classes`, to which categories of other names are added by id: pass those of
    train to read val. Crowds and boxes without area are left out, pictures that are not there
    too, with a warning. Raises ValueError naming the file, and the annotation, that is wrong.
    """
    path = _annotations(Path(root), part)
    instances = _read(path)
    pictures = {p.id: p for p in sorted(instances.images, key=lambda picture: picture.id)}
    categories = {c.id: c.name for c in sorted(instances.categories, key=lambda c: c.id)}
    classes = tuple(dict.fromkeys((*classes, *categories.values())))
    labels = {id: classes.index(name) for id, name in categories.items()}
    folder = _picture_folder(path, part, pictures.values())
    files = {id: folder / p.file_name for id, p in pictures.items()}
    files = {id: file for id, file in files.items() if file.is_file()}
    if missing := pictures.keys() - files.keys():
        first = pictures[min(missing)].file_name
        warnings.warn(
            f"{path}: {len(missing)} of {len(pictures)} pictures are not in {folder}, "
            f"as {first}; they are left out",
            stacklevel=2,
        )
    sizes = {id: _checked_size(file, pictures[id], path) for id, file in files.items()}
    rows = _rows(path, instances, labels, sizes)
    try:
        _check_boxes(rows, sizes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _warn_of_turned(path, [(file, pictures[id]) for id, file in files.items() if rows[id]])
    return [_sample(id, file, rows[id]) for id, file in files.items()], classes


def _rows(
    path: Path, instances: _Instances, labels: dict[int, int], sizes: dict[int, tuple[int, int]]
) -> dict[int, list[tuple]]:
    """Return x0, y0, x1, y1 and label of the objects, by picture.

    labels: by category id; sizes: of the pictures that are there. Raises ValueError naming `path`
    and the annotation that is wrong.
    """
    rows: dict[int, list[tuple]] = {id: [] for id in sizes}
    pictures = {picture.id for picture in instances.images}
    for number, annotation in enumerate(instances.annotations):
        place = f"{path}: annotation {number}"
        if annotation.image_id not in pictures:
            raise ValueError(f"{place}: no such image_id: {annotation.image_id}")
        if annotation.category_id not in labels:
            raise ValueError(f"{place}: no such category_id: {annotation.category_id}")
        x, y, width, height = annotation.bbox
        if width < 0 or height < 0:
            raise ValueError(f"{place}: a box of negative size: {annotation.bbox}")
        if annotation.iscrowd or not (width and height) or annotation.image_id not in sizes:
            continue
        try:
            box = checked_box([x, y, x + width, y + height], sizes[annotation.image_id])
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        rows[annotation.image_id].append((*box, labels[annotation.category_id]))
    return rows


def _check_boxes(rows: dict[int, list[tuple]], sizes: dict[int, tuple[int, int]]) -> None:
    """Raise ValueError when the boxes of all pictures together are of another convention."""
    count = sum(map(len, rows.values()))
    if count and max(max(row[:4]) for own in rows.values() for row in own) <= 1:
        raise ValueError(
            "all coordinates lie in 0 … 1, as shares of a picture; boxes are in pixels"
        )
    crossing = sum(
        min(x0, y0) < -1 or x1 > sizes[id][1] + 1 or y1 > sizes[id][0] + 1
        for id, own in rows.items()
        for x0, y0, x1, y1, _ in own
    )
    if crossing > max(count / 2, LEAST_CROSSING):
        raise ValueError(
            f"{crossing} of {count} boxes reach over the border of their pictures; "
            "COCO's are x, y, width, height, not the corners"
        )


def _warn_of_turned(path: Path, labelled: Iterable[tuple[Path, _Picture]]) -> None:
    """Warn of pictures with objects that EXIF turns, unless their sizes tell how boxes are meant.

    labelled: files of pictures with objects, and what the annotations say of each.
    """
    turned = [
        file
        for file, picture in labelled
        if file.suffix.lower() != ".png"  # cameras write no PNG
        and is_turned(file)
        and not (swaps_sides(file) and picture.width != picture.height)
    ]
    if turned:
        warnings.warn(
            f"{path}: EXIF turns {len(turned)} of its pictures, as {turned[0]}, but boxes are "
            "taken to be in the stored pixels",
            stacklevel=3,
        )


def _sample(id: int, path: Path, rows: list[tuple]) -> Sample:
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Sample(f"{id:012d}", path, table[:, :4], table[:, 4].astype(np.int64))


def _annotations(root: Path, part: str) -> Path:
    """The file of annotations of a part. Raises ValueError when there is none, or more than one."""
    official = root / "annotations" / f"instances_{part}2017.json"
    if official.is_file():
        return official
    found = sorted(
        [
            *(root / "annotations").glob(f"instances_{part}*.json"),
            *(root / "annotations").glob(f"{part}*.json"),
            *root.glob(f"{part}*/_annotations.coco.json"),
        ]
    )
    if not found:
        raise ValueError(f"{official}: no such file, nor another instances_{part}*.json")
    if len(found) > 1:
        raise ValueError(f"{found[1]}: a second file of annotations beside {found[0]}")
    return found[0]


def _read(path: Path) -> _Instances:
    try:
        instances = _Instances.model_validate_json(read_text(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{path}: not COCO annotations ({where or 'JSON'}: {first['msg']})"
        ) from None
    if not instances.images:
        raise ValueError(f"{path}: no pictures")
    for what, values in (
        ("images of the id", [picture.id for picture in instances.images]),
        ("images of the file name", [picture.file_name for picture in instances.images]),
        ("categories of the id", [category.id for category in instances.categories]),
    ):
        if len(set(values)) < len(values):
            value, count = Counter(values).most_common(1)[0]
            raise ValueError(f"{path}: {count} {what} {value}")
    return instances


def _picture_folder(path: Path, part: str, pictures: Iterable[_Picture]) -> Path:
    """The folder that the pictures of a file of annotations are in."""
    root = path.parent.parent
    name = path.stem.removeprefix("instances_")
    candidates = (
        *([] if path.parent.name == "annotations" else [path.parent]),
        *(root / folder for folder in (name, f"images/{name}", part, f"images/{part}", "images")),
        root,
    )
    for folder in candidates:
        if any((folder / picture.file_name).is_file() for picture in pictures):
            return folder
    raise ValueError(f"{path}: none of its pictures are in {root / name}")


def _checked_size(file: Path, picture: _Picture, path: Path) -> tuple[int, int]:
    """The picture's height and width. Raises ValueError when annotations say others."""
    height, width = picture_size(file)
    stored = (picture.height, picture.width)
    if None in stored or stored == (height, width):
        return height, width
    hint = ""
    if stored == (width, height) and swaps_sides(file):
        hint = "; EXIF turns it: its boxes are those of the turned picture, so save it turned"
    raise ValueError(
        f"{file}: {width}x{height} pixels, but {path.name} says "
        f"{picture.width}x{picture.height}{hint}"
    )
