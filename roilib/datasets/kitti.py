"""KITTI's 2D object detection data, and data of one's own that is laid out like it.

    root/                            or root/Kitti/raw/, where torchvision's Kitti downloads to
      training/image_2/000000.png    or another of PICTURE_SUFFIXES
      training/label_2/000000.txt    one object a line; DontCare is ignored
      classes.txt                    optional: class names in place of KITTI's, one a line
      splits/train.txt, test.txt     optional: ids, one a line

A. Geiger et al., "Are we ready for autonomous driving? The KITTI vision benchmark suite",
CVPR 2012.
"""

from pathlib import Path

import numpy as np

from roilib.datasets.boxes import read_kitti_label
from roilib.datasets.images import Sample, picture_size
from roilib.utils.files import picture_files, read_lines, visible_files

KITTI_CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")


def kitti_folder(root: Path) -> Path:
    """The folder that holds `training/`. Raises ValueError for another layout."""
    for folder in (Path(root), Path(root) / "Kitti" / "raw"):
        if (folder / "training" / "image_2").is_dir():
            return folder
    if (Path(root) / "training" / "image_02").is_dir():
        raise ValueError(
            f"{root}: KITTI tracking (training/image_02), not KITTI object (training/image_2); "
            "a sequence's folder is read as a folder of pictures"
        )
    raise ValueError(
        f"{root}: no KITTI here: expected training/image_2 and training/label_2, "
        "or Kitti/raw/ above them"
    )


def kitti_classes(root: Path) -> tuple[str, ...]:
    """The class names of `classes.txt`, or else KITTI's."""
    path = kitti_folder(root) / "classes.txt"
    if not path.is_file():
        return KITTI_CLASSES
    if not (names := tuple(read_lines(path))):
        raise ValueError(f"{path}: no class names")
    return names


def kitti_samples(root: Path, with_objects: bool = True, download: bool = False) -> list[Sample]:
    """Read the training frames, sorted by id; labels index `kitti_classes`.

    with_objects=False reads no labels, which the plain baseline does not need. download=True
    fetches the official files with torchvision (12 GB). Every picture's header is read.
    Raises ValueError naming the file that is wrong.
    """
    if download:
        _download(root)
    training = kitti_folder(root) / "training"
    images: dict[str, Path] = {}
    for path in picture_files(training / "image_2"):
        if path.stem in images:
            raise ValueError(f"{path}: the same id as {images[path.stem].name}")
        images[path.stem] = path
    if not images:
        raise ValueError(f"{training / 'image_2'}: no pictures")
    sizes = {id: picture_size(images[id]) for id in sorted(images)}
    if not with_objects:
        return [Sample(id, images[id]) for id in sizes]
    labels = {path.stem: path for path in visible_files(training / "label_2", (".txt",))}
    for id in sorted(labels.keys() - images.keys()):
        raise ValueError(f"{labels[id]}: a label for no picture in {training / 'image_2'}")
    for id in sorted(images.keys() - labels.keys()):
        raise ValueError(f"{images[id]}: no label {training / 'label_2' / (id + '.txt')}")
    classes = kitti_classes(root)
    return [_sample(id, images[id], labels[id], size, classes) for id, size in sizes.items()]


def _download(root: Path) -> None:
    from torchvision.datasets import Kitti

    try:
        Kitti(root, download=True)
    except OSError as error:
        raise ValueError(
            f"{root}: KITTI could not be downloaded ({error}); "
            "fetch it yourself and pass its folder as data_root"
        ) from None


def _sample(
    id: str, image: Path, label: Path, size: tuple[int, int], classes: tuple[str, ...]
) -> Sample:
    names, boxes = read_kitti_label(label, size)
    for name in names:
        if name not in classes:
            raise ValueError(
                f"{label}: unknown object type {name!r}, none of {', '.join(classes)}; "
                "classes.txt in the root names other classes"
            )
    return Sample(id, image, boxes, np.array([classes.index(name) for name in names], np.int64))
