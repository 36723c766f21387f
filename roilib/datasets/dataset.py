"""Pictures with regions of interest as a data set, its split, and batches of it.

kitti_samples │ coco_samples │ folder_samples ──► split ──► RoiDataset ──► Crops ──► batches
"""

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from roilib.datasets.coco import coco_samples
from roilib.datasets.crops import Crops, EpochSampler, collate
from roilib.datasets.folder import folder_samples, unlabelled_samples
from roilib.datasets.images import Sample, picture_size, read_picture
from roilib.datasets.kitti import KITTI_CLASSES, kitti_classes, kitti_samples
from roilib.parameters import Parameters
from roilib.utils.files import read_lines
from roilib.utils.processes import leave_signals_to_parent

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


def split(
    samples: list[Sample], train_size_p1: float | None, root: Path
) -> tuple[list[Sample], list[Sample]]:
    """Training and test part of samples that are sorted by id.

    train_size_p1: share that trains; None: the ids of `root/splits/{train,test}.txt` where they
    are, else 0.95 of them, but at least one of several tests. Raises ValueError naming the file and
    id that are wrong.
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
    if train_size_p1 is None and 1 < count == len(samples):
        count -= 1
    return samples[:count], samples[count:]


def _listed(by_id: dict[str, Sample], path: Path) -> list[Sample]:
    ids = sorted(set(read_lines(path)))
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
    root = Path(p.data_root)
    if p.dataset == "sample" and not root.is_dir():
        raise ValueError(f"{root}: no sample set; python data/streets/prepare.py {root} makes it")
    if p.dataset == "coco":
        (train, test), classes = coco_splits(root, p.train_size_p1)
    elif p.dataset == "folder":
        samples, classes = folder_samples(root, below=True, with_objects=p.uses_objects)
        train, test = split(samples, p.train_size_p1, root)
    else:
        classes = kitti_classes(root)
        train, test = split(kitti_samples(root, p.uses_objects), p.train_size_p1, root)
    if p.uses_objects and not any(len(sample.boxes) for sample in train + test):
        warnings.warn(f"{root}: no picture has a region of interest", stacklevel=2)
    if p.unlabelled:
        train = train + unlabelled_samples(p.unlabelled)
    return RoiDataset(train, classes), RoiDataset(test, classes)


def evaluation_pictures(p: Parameters, folder: str | None = None) -> RoiDataset:
    """The pictures of a folder of one's own, or the test pictures of the data set of `p`."""
    return load_splits(p)[1] if folder is None else RoiDataset(*folder_samples(folder))


def batches(
    data: RoiDataset, p: Parameters, train: bool, rank: int = 0, world_size: int = 1
) -> torch.utils.data.DataLoader:
    """Batches of `Crops`; what the detector sees, only where `p` needs it.

    Process `rank` of `world_size` gets its share of each batch of p.batch_size pictures.
    """
    sides = p.compr_img_size, p.obj_det_img_size if p.uses_detector else None
    crops = Crops(data, *sides, p.seed, p.crop, p.flip and train)
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
