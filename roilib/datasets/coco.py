"""COCO's `instances_*.json` of strangers: pictures, categories and boxes, each checked, so that a mistake is one line that names file and entry."""

import reprlib
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from roilib.datasets.boxes import check_numbers
from roilib.datasets.images import Sample
from roilib.utils.files import read_json


def read_instances(path: Path) -> tuple[dict[int, str], dict[int, list[tuple]], tuple[str, ...]]:
    """Pictures' file names by id, sorted; their objects by id, as x0, y0, x1, y1 and class; and the names of the classes by sorted category id.

    Crowd regions and boxes without area are left out. Raises ValueError naming the file and what is wrong in it.
    """
    content = read_json(path)
    try:
        categories, images = (_by_id(content[name], name) for name in ("categories", "images"))
        files = {id: _file_name(image["file_name"]) for id, image in images.items()}
        names = tuple(_class_name(category["name"]) for category in categories.values())
        classes, objects = {id: i for i, id in enumerate(categories)}, {id: [] for id in files}
        for number, annotation in enumerate(content["annotations"]):
            found = _object(annotation, files, classes, f"annotation {number}")
            objects[annotation["image_id"]] += found
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a COCO instances file ({type(error).__name__}: {error})"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not files:
        raise ValueError(f"{path}: no pictures")
    return files, objects, names


def _by_id(entries: list[dict], name: str) -> dict[int, dict]:
    found: dict[int, dict] = {}
    for entry in entries:
        id = entry["id"]
        if type(id) is not int or id < 0:
            raise ValueError(f"{name}: an id is a whole number, not {reprlib.repr(id)}")
        if id in found:
            raise ValueError(f"{name}: two of the id {reprlib.repr(id)}")
        found[id] = entry
    return {id: found[id] for id in sorted(found)}


def _file_name(name: str) -> str:
    """A path below the pictures' folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"images: a file_name is a path, not {reprlib.repr(name)}")
    if any(
        kind(name).anchor or ".." in kind(name).parts for kind in (PurePosixPath, PureWindowsPath)
    ):
        raise ValueError(
            f"images: file_name {reprlib.repr(name)} leads out of the pictures' folder"
        )
    return name


def _class_name(name: str) -> str:
    if not isinstance(name, str):
        raise ValueError(f"categories: a name is a text, not {reprlib.repr(name)}")
    return name


def _object(annotation: dict, images: dict, classes: dict[int, int], where: str) -> list[tuple]:
    """One object, or none where it is a crowd or has no area, as a few of COCO's."""
    for key, known in (("image_id", images), ("category_id", classes)):
        if type(annotation[key]) is not int or annotation[key] not in known:
            raise ValueError(f"{where}: no such {key}: {reprlib.repr(annotation[key])}")
    crowd, box = annotation.get("iscrowd", 0), annotation["bbox"]
    if crowd not in (0, 1):
        raise ValueError(f"{where}: iscrowd is 0 or 1, not {reprlib.repr(crowd)}")
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"{where}: bbox is [x, y, width, height], not {reprlib.repr(box)}")
    check_numbers(box, where)
    x, y, width, height = box
    if width < 0 or height < 0:
        raise ValueError(f"{where}: a box of negative size: {reprlib.repr(box)}")
    x0, y0, x1, y1 = np.array([x, y, x + width, y + height], np.float32).tolist()
    return (
        []
        if crowd or x1 <= x0 or y1 <= y0
        else [(x0, y0, x1, y1, classes[annotation["category_id"]])]
    )


def coco_samples(root: Path, part: str) -> tuple[list[Sample], tuple[str, ...]]:
    """COCO's pictures of `part` (train2017, val2017), sorted by id, crowd regions left out, and the category names."""
    files, objects, classes = read_instances(Path(root) / "annotations" / f"instances_{part}.json")
    return [
        _coco_sample(id, Path(root) / part / name, objects[id]) for id, name in files.items()
    ], classes


def _coco_sample(id: int, path: Path, objects: list) -> Sample:
    if not path.is_file():
        raise ValueError(f"{path}: listed in the annotations, but no such file")
    rows = np.array(objects, np.float32).reshape(-1, 5)
    return Sample(f"{id:012d}", path, rows[:, :4], rows[:, 4].astype(np.int64))
