"""Pictures with regions of interest: a reader's samples as one `RoiDataset`, and crops of them as batches.

    kitti_samples │ coco_samples │ sample_set ──► [Sample] ──► split ──► RoiDataset ──► Crops ──► batches

A picture is not read until it is asked for.
"""

import math
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
from roilib.datasets.kitti import KITTI_CLASSES, kitti_samples
from roilib.parameters import Parameters
from roilib.roi import roi_mask
from roilib.utils.files import read_text
from roilib.utils.processes import leave_signals_to_parent


class RoiDataset(Dataset):
    """Whole pictures: `dataset[i]` is (image uint8 (3, H, W), BoundingBoxes (K, 4) xyxy, labels (K,) int64).

    Decoded pictures are kept until they fill `cache_bytes`, of all loader processes together; what comes later is read anew each time.
    """

    def __init__(
        self,
        samples: list[Sample],
        classes: tuple[str, ...] = KITTI_CLASSES,
        cache_bytes: int = 2**30,
    ):
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
        self,
        data: RoiDataset,
        compr_img_size: int,
        obj_det_img_size: int | None = None,
        seed: int = 0,
        native: bool = False,
        flip: bool = False,
    ):
        self.data, self.compr_img_size, self.obj_det_img_size = (
            data,
            compr_img_size,
            obj_det_img_size,
        )
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
        image, boxes = (
            F.horizontal_flip(v) if self.flip and mirror < 0.5 else v for v in (image, boxes)
        )
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(side, side))
        x, boxes = (F.resize(v, [self.compr_img_size] * 2, antialias=True) for v in (image, boxes))
        item = {
            "x": x.as_subclass(Tensor),
            "boxes": boxes.as_subclass(Tensor),
            "roi_mask": torch.from_numpy(
                roi_mask(boxes, self.compr_img_size, self.compr_img_size)
            ).float()[None],
        }
        if self.obj_det_img_size:
            item["detector_x"] = F.resize(
                image, [self.obj_det_img_size] * 2, antialias=True
            ).as_subclass(Tensor)
        return item


class EpochSampler(torch.utils.data.Sampler):
    """Batches of (epoch, i): shuffled by (seed, epoch) for training, in order with epoch 0 for testing.

    Of each batch, process `rank` of `world_size` gets every world_size-th picture; where there are fewer pictures than processes it
    gets the first one, to be left out of all means. `first` is the batch to start with, after a resume.
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
        """Which pictures of batch `number` this process has, by their place in it, and how many the batch has."""
        size = min(self.batch_size, self.length - number * self.batch_size)
        return range(self.rank, size, self.world_size), size

    def __iter__(self):
        order = (
            np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
            if self.shuffle
            else np.arange(self.length)
        )
        epoch = self.epoch if self.shuffle else 0
        for number in range(self.first, len(self)):
            places, _ = self.places(number)
            yield [(epoch, int(order[number * self.batch_size + i])) for i in places or [0]]


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


def load_splits(p: Parameters) -> tuple[RoiDataset, RoiDataset]:
    """Training and test pictures of a run. Raises ValueError naming what is wrong with the data set."""
    root = Path(p.data_root)
    if p.dataset == "sample" and not root.is_dir():
        raise ValueError(f"{root}: no sample set; python data/streets/prepare.py {root} makes it")
    if p.dataset != "coco":
        parts, classes = (
            split(kitti_samples(root, p.uses_objects), p.train_size_p1, root),
            KITTI_CLASSES,
        )
    else:
        parts, classes = coco_splits(root, p.train_size_p1)
    if p.unlabelled:
        tested = {sample.path.resolve() for sample in parts[1]}
        for sample in unlabelled_samples(p.unlabelled):
            if sample.path.resolve() in tested:
                raise ValueError(
                    f"{sample.path}: a test picture among the unlabelled ones to train on"
                )
            parts[0].append(sample)
    return tuple(RoiDataset(part, classes) for part in parts)


def evaluation_pictures(p: Parameters, folder: str | None = None) -> RoiDataset:
    """What to evaluate on: the pictures of a folder of one's own, or the test pictures of p's data set."""
    return load_splits(p)[1] if folder is None else RoiDataset(*folder_samples(folder))


def batches(
    data: RoiDataset, p: Parameters, train: bool, rank: int = 0, world_size: int = 1
) -> torch.utils.data.DataLoader:
    """Batches of crops: `x` uint8 (B, 3, S, S), `roi_mask` (B, 1, S, S), `boxes` (list) and `detector_x` where the engine needs it.

    Of each batch of p.batch_size pictures, process `rank` of `world_size` gets its share.
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
    # Its own generator: a loader draws seeds, more or less often with processes, which would shift the training's noise.
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
