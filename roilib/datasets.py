"""Pictures with regions of interest: KITTI, COCO and the sample set, all as one `RoiDataset`.

    kitti_samples │ coco_samples │ sample_set ──► [Sample] ──► split ──► RoiDataset ──► Crops ──► batches

A sample is a picture's path with its boxes and class ids. Nothing but label text is read until a picture is asked for.
Layouts: KITTI's `training/image_2` and `training/label_2` (or torchvision's `Kitti/raw/` above them); COCO's `train2017/`,
`val2017/` and `annotations/instances_*.json`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from roilib.checkpoints import leave_signals_to_parent
from roilib.coco import read_instances
from roilib.parameters import Parameters
from roilib.pictures import picture_size, read_picture
from roilib.roi import read_boxes, read_kitti_label, read_text, roi_mask
from roilib.sample_set import make_sample_set

KITTI_CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
PICTURES = (".png", ".jpg", ".jpeg")


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
    raise ValueError(f"{root}: no KITTI here: expected training/image_2 and training/label_2, or Kitti/raw/ above them")


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
        raise ValueError(f"{root}: KITTI could not be downloaded ({error}); fetch it yourself and pass its folder as data_root") from None


def _kitti_sample(id: str, image: Path, label: Path) -> Sample:
    names, boxes = read_kitti_label(label)
    for name in names:
        if name not in KITTI_CLASSES:
            raise ValueError(f"{label}: unknown object type {name!r}; KITTI has {', '.join(KITTI_CLASSES)} and DontCare")
    return Sample(id, image, boxes, np.array([KITTI_CLASSES.index(name) for name in names], np.int64))


def coco_samples(root: Path, part: str) -> tuple[list[Sample], tuple[str, ...]]:
    """COCO's pictures of `part` (train2017, val2017), sorted by id, crowd regions left out, and the category names."""
    files, objects, classes = read_instances(Path(root) / "annotations" / f"instances_{part}.json")
    return [_coco_sample(id, Path(root) / part / name, objects[id]) for id, name in files.items()], classes


def _coco_sample(id: int, path: Path, objects: list) -> Sample:
    if not path.is_file():
        raise ValueError(f"{path}: listed in the annotations, but no such file")
    rows = np.array(objects, np.float32).reshape(-1, 5)
    return Sample(f"{id:012d}", path, rows[:, :4], rows[:, 4].astype(np.int64))


def unlabelled_samples(folders: str) -> list[Sample]:
    """The pictures in and below these folders (separated by commas), as samples without objects. Raises ValueError naming an empty folder."""
    samples = []
    for folder in map(Path, folders.split(",")):
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
    files = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in (*PICTURES, ".txt", ".json"))
    images: dict[str, Path] = {}
    named: dict[str, tuple[list[str], np.ndarray]] = {}
    for path in files:
        kind = images if path.suffix.lower() in PICTURES else named
        if path.stem in kind:
            raise ValueError(f"{path}: the second {'picture' if kind is images else 'box file'} of the name {path.stem}")
        kind[path.stem] = path if kind is images else _named_boxes(path)
    if not images:
        raise ValueError(f"{folder}: no pictures here")
    for path in files:
        if path.stem not in images:
            raise ValueError(f"{path}: boxes for no picture in {folder}")
    classes = tuple(sorted({name for names, _ in named.values() for name in names}))
    nothing = ([], np.zeros((0, 4), np.float32))
    found = [(id, images[id], *named.get(id, nothing)) for id in sorted(images)]
    return [Sample(id, path, boxes, np.array([classes.index(name) for name in names], np.int64)) for id, path, names, boxes in found], classes


def _named_boxes(path: Path) -> tuple[list[str], np.ndarray]:
    """Class names and boxes (K, 4) of a box file."""
    if path.suffix.lower() == ".txt":
        return read_kitti_label(path)
    boxes = read_boxes(path)[:, :4]
    return ["object"] * len(boxes), boxes


def split(samples: list[Sample], train_size_p1: float | None, root: Path) -> tuple[list[Sample], list[Sample]]:
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


class RoiDataset(Dataset):
    """Whole pictures: `dataset[i]` is (image uint8 (3, H, W), BoundingBoxes (K, 4) xyxy, labels (K,) int64).

    Decoded pictures are kept until they fill `cache_bytes`, of all loader processes together; what comes later is read anew each time.
    """

    def __init__(self, samples: list[Sample], classes: tuple[str, ...] = KITTI_CLASSES, cache_bytes: int = 2**30):
        self.samples, self.classes, self.cache_bytes = samples, classes, cache_bytes
        self._cache: dict[int, tv_tensors.Image] = {}
        self._cached = 0  # bytes

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def ids(self) -> list[str]:
        """The pictures' ids, in order."""
        return [sample.id for sample in self.samples]

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of picture i, from its file's header."""
        return picture_size(self.samples[i].path)

    def __getitem__(self, i: int) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes, Tensor]:
        sample = self.samples[i]
        image = self._picture(i)
        boxes = tv_tensors.BoundingBoxes(sample.boxes, format="XYXY", canvas_size=image.shape[-2:])
        return image, boxes, torch.from_numpy(sample.labels)

    def _picture(self, i: int) -> tv_tensors.Image:
        if i in self._cache:
            return self._cache[i]
        image = read_picture(self.samples[i].path)
        worker = torch.utils.data.get_worker_info()
        if self._cached + image.nbytes <= self.cache_bytes // (worker.num_workers if worker else 1):
            self._cache[i], self._cached = image, self._cached + image.nbytes
        return image


class Crops(Dataset):
    """Square crops at a random place, resized (antialiased) to the codec's and the detector's input.

    Their side is min(H, W), or with `native` the codec's input size where the picture has that many pixels. With `flip` half of them are mirrored.

    `crops[epoch, i]` is a dict: `x` uint8 (3, S, S) with S = compr_img_size, `boxes` (K, 4) in its pixels, `roi_mask` float (1, S, S) and, with
    an `obj_det_img_size`, `detector_x` uint8 of that side. The place depends on (seed, epoch, i) alone, so that no number of
    processes changes it; test crops stay at epoch 0 and never move. Any visible part of an object stays ROI.
    """

    def __init__(
        self, data: RoiDataset, compr_img_size: int, obj_det_img_size: int | None = None, seed: int = 0, native: bool = False, flip: bool = False
    ):
        self.data, self.compr_img_size, self.obj_det_img_size = data, compr_img_size, obj_det_img_size
        self.seed, self.native, self.flip = seed, native, flip

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        epoch, i = place
        image, boxes, _ = self.data[i]
        height, width = image.shape[-2:]
        side = min(height, width, self.compr_img_size) if self.native else min(height, width)
        *where, mirror = np.random.default_rng((self.seed, epoch, i)).random(3)
        top, left = (int(v * (n - side + 1)) for v, n in zip(where, (height, width), strict=True))
        image, boxes = (F.crop(v, top, left, side, side) for v in (image, boxes))
        image, boxes = (F.horizontal_flip(v) if self.flip and mirror < 0.5 else v for v in (image, boxes))
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(side, side))
        x, boxes = (F.resize(v, [self.compr_img_size] * 2, antialias=True) for v in (image, boxes))
        item = {"x": x.as_subclass(Tensor), "boxes": boxes.as_subclass(Tensor), "roi_mask": roi_mask(boxes, self.compr_img_size, self.compr_img_size)}
        if self.obj_det_img_size:
            item["detector_x"] = F.resize(image, [self.obj_det_img_size] * 2, antialias=True).as_subclass(Tensor)
        return item


class EpochSampler(torch.utils.data.Sampler):
    """Batches of (epoch, i): shuffled by (seed, epoch) for training, in order with epoch 0 for testing.

    Of each batch, process `rank` of `world_size` gets every world_size-th picture; where there are fewer pictures than processes it
    gets the first one, to be left out of all means. `first` is the batch to start with, after a resume.
    """

    def __init__(self, length: int, batch_size: int, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1):
        self.length, self.batch_size, self.seed, self.shuffle = length, batch_size, seed, shuffle
        self.rank, self.world_size, self.epoch, self.first = rank, world_size, 0, 0

    def __len__(self) -> int:
        return math.ceil(self.length / self.batch_size)

    def places(self, number: int) -> tuple[range, int]:
        """Which pictures of batch `number` this process has, by their place in it, and how many the batch has."""
        size = min(self.batch_size, self.length - number * self.batch_size)
        return range(self.rank, size, self.world_size), size

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length) if self.shuffle else np.arange(self.length)
        epoch = self.epoch if self.shuffle else 0
        for number in range(self.first, len(self)):
            places, _ = self.places(number)
            yield [(epoch, int(order[number * self.batch_size + i])) for i in places or [0]]


def load_splits(p: Parameters) -> tuple[RoiDataset, RoiDataset]:
    """Training and test pictures of a run. Raises ValueError naming what is wrong with the data set."""
    root = Path(p.data_root)
    if p.dataset == "sample":
        make_sample_set(root)
    if p.dataset != "coco":
        parts, classes = split(kitti_samples(root, p.uses_objects), p.train_size_p1, root), KITTI_CLASSES
    else:
        parts, classes = coco_splits(root, p.train_size_p1)
    if p.unlabelled:
        parts[0].extend(unlabelled_samples(p.unlabelled))
    return tuple(RoiDataset(part, classes) for part in parts)


def evaluation_pictures(p: Parameters, folder: str | None = None) -> RoiDataset:
    """What to evaluate on: the pictures of a folder of one's own, or the test pictures of p's data set."""
    return RoiDataset(*folder_samples(folder)) if folder else load_splits(p)[1]


def coco_splits(root: Path, train_size_p1: float | None) -> tuple[tuple[list[Sample], list[Sample]], tuple[str, ...]]:
    """COCO's train2017 and val2017, or with a `train_size_p1` that share of both together; and the category names."""
    (train, classes), (val, _) = coco_samples(root, "train2017"), coco_samples(root, "val2017")
    return ((train, val) if train_size_p1 is None else split(sorted(train + val, key=lambda s: s.id), train_size_p1, root)), classes


def batches(data: RoiDataset, p: Parameters, train: bool, rank: int = 0, world_size: int = 1) -> torch.utils.data.DataLoader:
    """Batches of crops: `x` uint8 (B, 3, S, S), `roi_mask` (B, 1, S, S), `boxes` (list) and `detector_x` where the engine needs it.

    Of each batch of p.batch_size pictures, process `rank` of `world_size` gets its share.
    """
    crops = Crops(data, p.compr_img_size, p.obj_det_img_size if p.uses_detector else None, p.seed, p.crop == "native", p.flip and train)
    sampler = EpochSampler(len(data), p.batch_size, p.seed, train, rank, world_size)
    workers = {"num_workers": p.num_workers, "persistent_workers": p.num_workers > 0, "worker_init_fn": leave_signals_to_parent}
    # Its own generator: a loader draws seeds, more or less often with processes, which would shift the training's noise.
    workers["generator"] = torch.Generator()
    return torch.utils.data.DataLoader(crops, batch_sampler=sampler, collate_fn=collate, pin_memory=torch.cuda.is_available(), **workers)


def collate(items: list[dict]) -> dict:
    """Stack tensors; boxes stay a list, since each picture has its own number."""
    return {name: [item[name] for item in items] if name == "boxes" else torch.stack([item[name] for item in items]) for name in items[0]}
