"""Readers of KITTI, COCO, the sample set and folders of one's own: a list of samples, and how it is split.

A sample is a picture's path with its boxes and class ids. Nothing but label text is read.
Layouts: KITTI's `training/image_2` and `training/label_2` (or torchvision's `Kitti/raw/` above them); COCO's `train2017/`,
`val2017/` and `annotations/instances_*.json`.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torchvision

from roilib.datasets.boxes import read_boxes, read_kitti_label
from roilib.datasets.coco import read_instances
from roilib.utils.files import read_text

KITTI_CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled picture: boxes (K, 4) xyxy float32 in pixels, labels (K,) indices into the dataset's classes."""

    id: str
    path: Path
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def kitti_folder(root: Path) -> Path:
    """The folder that holds `training/`: `root` or torchvision's `root/Kitti/raw`. Raises ValueError for another layout."""
    for folder in (Path(root), Path(root) / "Kitti" / "raw"):
        if (folder / "training" / "image_2").is_dir():
            return folder
    raise ValueError(
        f"{root}: no KITTI here: expected training/image_2 and training/label_2, or Kitti/raw/ above them"
    )


def kitti_samples(root: Path, with_objects: bool = True, download: bool = False) -> list[Sample]:
    """KITTI 2D object's training frames, sorted by id. `download` fetches the official files with torchvision (12 GB).

    `with_objects=False` reads no labels (the plain baseline needs none). Raises ValueError naming the file that is wrong.
    """
    if download:
        _download_kitti(root)
    training = kitti_folder(root) / "training"
    images: dict[str, Path] = {}
    for path in sorted((training / "image_2").iterdir()):
        if path.suffix.lower() in PICTURES:
            if path.stem in images:
                raise ValueError(f"{path}: the same id as {images[path.stem].name}")
            images[path.stem] = path
    if not images:
        raise ValueError(f"{training / 'image_2'}: no pictures")
    if not with_objects:
        return [Sample(id, images[id]) for id in sorted(images)]
    labels = {path.stem: path for path in (training / "label_2").glob("*.txt")}
    for id in sorted(labels.keys() - images.keys()):
        raise ValueError(f"{labels[id]}: a label for no picture in {training / 'image_2'}")
    for id in sorted(images.keys() - labels.keys()):
        raise ValueError(f"{images[id]}: no label {training / 'label_2' / (id + '.txt')}")
    return [_kitti_sample(id, images[id], labels[id]) for id in sorted(images)]


def _download_kitti(root: Path) -> None:
    try:
        torchvision.datasets.Kitti(root, download=True)
    except OSError as error:
        raise ValueError(
            f"{root}: KITTI could not be downloaded ({error}); fetch it yourself and pass its folder as data_root"
        ) from None


def _kitti_sample(id: str, image: Path, label: Path) -> Sample:
    names, boxes = read_kitti_label(label)
    for name in names:
        if name not in KITTI_CLASSES:
            raise ValueError(
                f"{label}: unknown object type {name!r}; KITTI has {', '.join(KITTI_CLASSES)} and DontCare"
            )
    return Sample(
        id, image, boxes, np.array([KITTI_CLASSES.index(name) for name in names], np.int64)
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


def unlabelled_samples(folders: str) -> list[Sample]:
    """The pictures in and below these folders (separated by commas), as samples without objects. Raises ValueError naming an empty folder."""
    samples = []
    for name in folders.split(","):
        if not name.strip():
            raise ValueError(f"unlabelled={folders}: an empty name among the folders")
        folder = Path(name)
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
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
        if path.suffix.lower() in (*PICTURES, ".txt", ".json")
    )
    images: dict[str, Path] = {}
    named: dict[str, tuple[list[str], np.ndarray]] = {}
    for path in files:
        kind = images if path.suffix.lower() in PICTURES else named
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


def split(
    samples: list[Sample], train_size_p1: float | None, root: Path
) -> tuple[list[Sample], list[Sample]]:
    """Train and test part by sorted id. `None` takes the ids of `root/splits/{train,test}.txt` where they are, else 0.95."""
    folder = Path(root) / "splits"
    if train_size_p1 is None and folder.is_dir():
        by_id = {sample.id: sample for sample in samples}
        train, test = (_listed(by_id, folder / f"{part}.txt") for part in ("train", "test"))
        for sample in train:
            if sample in test:
                raise ValueError(f"{folder / 'test.txt'}: {sample.id} is in train.txt too")
        return train, test
    count = round((0.95 if train_size_p1 is None else train_size_p1) * len(samples))
    return samples[:count], samples[count:]


def _listed(by_id: dict[str, Sample], path: Path) -> list[Sample]:
    ids = sorted(set(read_text(path).split()))
    for id in ids:
        if id not in by_id:
            raise ValueError(f"{path}: {id} is not in the data set")
    return [by_id[id] for id in ids]


def coco_splits(
    root: Path, train_size_p1: float | None
) -> tuple[tuple[list[Sample], list[Sample]], tuple[str, ...]]:
    """COCO's train2017 and val2017, or with a `train_size_p1` that share of both together; and the category names."""
    (train, classes), (val, _) = coco_samples(root, "train2017"), coco_samples(root, "val2017")
    return (
        (train, val)
        if train_size_p1 is None
        else split(sorted(train + val, key=lambda s: s.id), train_size_p1, root)
    ), classes
