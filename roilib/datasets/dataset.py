"""Pictures with regions of interest as a data set, crops of them as batches, and their splits.

    kitti_samples │ coco_samples │ folder_samples ──► [Sample] ──► split ──► RoiDataset
                                                                  RoiDataset ──► Crops ──► batches

A picture is decoded when it is asked for.
"""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from roilib.datasets.coco import coco_samples
from roilib.datasets.folder import folder_samples, unlabelled_samples
from roilib.datasets.images import Sample, picture_size, read_picture
from roilib.datasets.kitti import KITTI_CLASSES, kitti_classes, kitti_samples
from roilib.parameters import Parameters
from roilib.roi import roi_mask
from roilib.utils.files import read_text
from roilib.utils.processes import leave_signals_to_parent
from roilib.utils.provenance import sha256

DEFAULT_TRAIN_SHARE = 0.95  # the paper's


class RoiDataset(Dataset):
    """Whole pictures: `dataset[i]` is (image, boxes, labels).

    image: uint8 (3, H, W); boxes: BoundingBoxes (K, 4), xyxy in pixels; labels: (K,) int64,
    indices into `classes`. Decoded pictures are kept until they fill `cache_bytes`, of all loader
    processes together; the others are decoded each time.
    """

    def __init__(
        self,
        samples: list[Sample],
        classes: tuple[str, ...] = KITTI_CLASSES,
        cache_bytes: int = 2**30,
    ):
        self.samples, self.classes, self.cache_bytes = samples, classes, cache_bytes
        self._cache: dict[int, tv_tensors.Image] = {}
        self._cached_bytes = 0

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
        share = self.cache_bytes // (worker.num_workers if worker else 1)
        if self._cached_bytes + image.nbytes <= share:
            self._cache[i] = image
            self._cached_bytes += image.nbytes
        return image


class Crops(Dataset):
    """Square crops at random places, resized (antialiased) to the inputs of codec and detector.

    The crop's side is min(H, W), or with `native` that of the codec's input where the picture has
    as many pixels. With `flip`, half of the crops are mirrored.

    `crops[epoch, i]` is a dict, with S = compr_img_size:
        x           uint8 (3, S, S)
        boxes       (K, 4) in pixels of x; any visible part of an object stays
        roi_mask    float (1, S, S)
        detector_x  uint8 (3, D, D), where D = obj_det_img_size is given
    The place depends on (seed, epoch, i) alone, so the number of processes does not change it.
    Test crops stay at epoch 0 and never move.
    """

    def __init__(
        self,
        data: RoiDataset,
        compr_img_size: int,
        obj_det_img_size: int | None = None,
        seed: int = 0,
        native: bool = False,
        flip: bool = False,
    ):
        self.data, self.seed, self.native, self.flip = data, seed, native, flip
        self.compr_img_size, self.obj_det_img_size = compr_img_size, obj_det_img_size

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        epoch, i = place
        image, boxes, _ = self.data[i]
        height, width = image.shape[-2:]
        S = self.compr_img_size
        side = min(height, width, S) if self.native else min(height, width)
        y, x, mirror = np.random.default_rng((self.seed, epoch, i)).random(3)
        top, left = int(y * (height - side + 1)), int(x * (width - side + 1))
        image, boxes = (F.crop(v, top, left, side, side) for v in (image, boxes))
        if self.flip and mirror < 0.5:
            image, boxes = (F.horizontal_flip(v) for v in (image, boxes))
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(side, side))
        resized, boxes = (F.resize(v, [S, S], antialias=True) for v in (image, boxes))
        item = {
            "x": resized.as_subclass(Tensor),
            "boxes": boxes.as_subclass(Tensor),
            "roi_mask": torch.from_numpy(roi_mask(boxes, S, S)).float()[None],
        }
        if self.obj_det_img_size:
            detector_x = F.resize(image, [self.obj_det_img_size] * 2, antialias=True)
            item["detector_x"] = detector_x.as_subclass(Tensor)
        return item


class EpochSampler(torch.utils.data.Sampler):
    """Batches of (epoch, i): shuffled by (seed, epoch) to train, in order at epoch 0 to test.

    Process `rank` of `world_size` gets every world_size-th picture of each batch. Where a batch
    has fewer pictures than there are processes, it gets the first one, which no mean may count.
    `first` is the batch to start with after a resume.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.length, self.batch_size, self.seed, self.shuffle = length, batch_size, seed, shuffle
        self.rank, self.world_size, self.epoch, self.first = rank, world_size, 0, 0

    def __len__(self) -> int:
        return math.ceil(self.length / self.batch_size)

    def places(self, number: int) -> tuple[range, int]:
        """This process' places in batch `number`, and the size of that batch."""
        size = min(self.batch_size, self.length - number * self.batch_size)
        return range(self.rank, size, self.world_size), size

    def __iter__(self):
        epoch, order = 0, np.arange(self.length)
        if self.shuffle:
            epoch = self.epoch
            order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        for number in range(self.first, len(self)):
            places, _ = self.places(number)
            yield [(epoch, int(order[number * self.batch_size + i])) for i in places or [0]]


def split(
    samples: list[Sample], train_size_p1: float | None, root: Path
) -> tuple[list[Sample], list[Sample]]:
    """Training and test part of samples that are sorted by id.

    train_size_p1: share that trains; None: the ids of `root/splits/{train,test}.txt` where they
    are, else 0.95. Raises ValueError naming the file and id that are wrong.
    """
    folder = Path(root) / "splits"
    if train_size_p1 is None and folder.is_dir():
        by_id = {sample.id: sample for sample in samples}
        train, test = (_listed(by_id, folder / f"{part}.txt") for part in ("train", "test"))
        for sample in train:
            if sample in test:
                raise ValueError(f"{folder / 'test.txt'}: {sample.id} is in train.txt too")
        return train, test
    share = DEFAULT_TRAIN_SHARE if train_size_p1 is None else train_size_p1
    count = round(share * len(samples))
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
    """COCO's train and val part, or that share of both together; and the class names.

    Where both parts use the same ids, as Roboflow's exports do, each id gets its part's name.
    """
    train, classes = coco_samples(root, "train")
    val, classes = coco_samples(root, "val", classes)
    if {sample.id for sample in train} & {sample.id for sample in val}:
        train = [replace(sample, id=f"train-{sample.id}") for sample in train]
        val = [replace(sample, id=f"val-{sample.id}") for sample in val]
    if train_size_p1 is None:
        return (train, val), classes
    both = sorted(train + val, key=lambda sample: sample.id)
    return split(both, train_size_p1, root), classes


def load_splits(p: Parameters) -> tuple[RoiDataset, RoiDataset]:
    """Training and test pictures of a run. Raises ValueError naming what is wrong with the data."""
    root = Path(p.data_root).expanduser()
    if p.dataset == "sample" and not root.is_dir():
        raise ValueError(f"{root}: no sample set; python data/streets/prepare.py {root} makes it")
    if p.dataset == "coco":
        (train, test), classes = coco_splits(root, p.train_size_p1)
    elif p.dataset == "folder":
        samples, classes = folder_samples(root, below=True)
        train, test = split(samples, p.train_size_p1, root)
    else:
        classes = kitti_classes(root)
        train, test = split(kitti_samples(root, p.uses_objects), p.train_size_p1, root)
    if p.uses_objects and not any(len(sample.boxes) for sample in train + test):
        warnings.warn(f"{root}: no picture has a region of interest", stacklevel=2)
    if p.unlabelled:
        train = train + _without_test(unlabelled_samples(p.unlabelled), test)
    return RoiDataset(train, classes), RoiDataset(test, classes)


def _without_test(samples: list[Sample], test: list[Sample]) -> list[Sample]:
    """The samples. Raises ValueError naming one whose file has the content of a test picture."""
    sizes = {sample.path.stat().st_size for sample in test}
    contents = {sha256([sample.path]): sample.path for sample in test} if samples else {}
    for sample in samples:
        is_candidate = sample.path.stat().st_size in sizes
        if is_candidate and (tested := contents.get(sha256([sample.path]))):
            raise ValueError(
                f"{sample.path}: the test picture {tested} among the unlabelled ones to train on"
            )
    return samples


def evaluation_pictures(p: Parameters, folder: str | None = None) -> RoiDataset:
    """The pictures of a folder of one's own, or the test pictures of the data set of `p`."""
    return load_splits(p)[1] if folder is None else RoiDataset(*folder_samples(folder))


def batches(
    data: RoiDataset, p: Parameters, train: bool, rank: int = 0, world_size: int = 1
) -> torch.utils.data.DataLoader:
    """Batches of `Crops`: stacked, but for `boxes`, a list. `detector_x` only where `p` needs it.

    Process `rank` of `world_size` gets its share of each batch of p.batch_size pictures.
    """
    crops = Crops(
        data,
        p.compr_img_size,
        p.obj_det_img_size if p.uses_detector else None,
        p.seed,
        p.crop == "native",
        p.flip and train,
    )
    sampler = EpochSampler(len(data), p.batch_size, p.seed, train, rank, world_size)
    workers = {
        "num_workers": p.num_workers,
        "persistent_workers": p.num_workers > 0,
        "worker_init_fn": leave_signals_to_parent,
    }
    # A generator of its own: how often a loader draws seeds depends on the number of processes,
    # which would change the training's noise.
    workers["generator"] = torch.Generator()
    return torch.utils.data.DataLoader(
        crops,
        batch_sampler=sampler,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        **workers,
    )


def collate(items: list[dict]) -> dict:
    """Stack tensors; boxes stay a list, since each picture has its own number."""
    return {
        name: [item[name] for item in items]
        if name == "boxes"
        else torch.stack([item[name] for item in items])
        for name in items[0]
    }
