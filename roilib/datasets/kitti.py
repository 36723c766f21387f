"""KITTI 2D object."""

from pathlib import Path

import numpy as np
import torchvision

from roilib.datasets.boxes import read_kitti_label
from roilib.datasets.images import PICTURE_SUFFIXES, Sample

KITTI_CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")


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
        if path.suffix.lower() in PICTURE_SUFFIXES:
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
