"""Crops of pictures to train and test on, and the order in which batches have them.

crops[epoch, i] ──► {"x", "boxes", "roi_mask", and what the detector sees} ──► collate
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from roilib.roi import roi_mask

GRID = 32  # pixels between crops of kind "grid": the detector's largest stride
LISTED = ("boxes", "frame", "place")  # parts of a batch that are lists


class Crops(Dataset):
    """Square crops at random places, resized (antialiased) to the inputs of codec and detector.

    kind: "square" takes crops of side min(H, W); "native" of the side of the codec's input, where
    the picture has as many pixels; "grid" always of that side, at multiples of GRID pixels. With
    `flip`, half of the crops are mirrored.

    `crops[epoch, i]` is a dict, with S = compr_img_size:
        x           uint8 (3, S, S)
        boxes       (K, 4) in pixels of x; any visible part of an object stays
        roi_mask    float (1, S, S)
        detector_x  uint8 (3, D, D), where D = obj_det_img_size is given; or with kind "grid"
        frame       uint8 (3, H, W), the whole picture, mirrored where the crop is, and
        place       its id, whether it is mirrored, and the crop's top and left
    The place depends on (seed, epoch, i) alone, so the number of processes does not change it.
    Test crops stay at epoch 0 and never move.
    """

    def __init__(
        self,
        data: Dataset,
        compr_img_size: int,
        obj_det_img_size: int | None = None,
        seed: int = 0,
        kind: str = "square",
        flip: bool = False,
    ):
        self.data, self.seed, self.kind, self.flip = data, seed, kind, flip
        self.compr_img_size, self.obj_det_img_size = compr_img_size, obj_det_img_size

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        epoch, i = place
        frame, boxes, _ = self.data[i]
        height, width = frame.shape[-2:]
        S, on_grid = self.compr_img_size, self.kind == "grid"
        side = self._side(i, height, width)
        y, x, mirror = np.random.default_rng((self.seed, epoch, i)).random(3)
        mirrored, step = self.flip and mirror < 0.5, GRID if on_grid else 1
        top, left = (int(v * ((n - side) // step + 1)) * step for v, n in ((y, height), (x, width)))
        start = width - side - left if mirrored and on_grid else left  # the mirrored frame's grid
        image, boxes = (F.crop(v, top, start, side, side) for v in (frame, boxes))
        if mirrored:
            image, boxes = (F.horizontal_flip(v) for v in (image, boxes))
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(side, side))
        resized, boxes = (F.resize(v, [S, S], antialias=True) for v in (image, boxes))
        item = {
            "x": resized.as_subclass(Tensor),
            "boxes": boxes.as_subclass(Tensor),
            "roi_mask": torch.from_numpy(roi_mask(boxes, S, S)).float()[None],
        }
        if self.obj_det_img_size and on_grid:
            frame = frame.as_subclass(Tensor)
            item["frame"] = frame.flip(-1) if mirrored else frame
            item["place"] = (self.data.ids[i], mirrored, top, left)
        elif self.obj_det_img_size:
            detector_x = F.resize(image, [self.obj_det_img_size] * 2, antialias=True)
            item["detector_x"] = detector_x.as_subclass(Tensor)
        return item

    def _side(self, i: int, height: int, width: int) -> int:
        """The crop's side in the pixels of picture i."""
        if self.kind == "square":
            return min(height, width)
        if self.kind == "grid" and min(height, width) < self.compr_img_size:
            raise ValueError(
                f"{self.data.ids[i]}: {width}x{height} pixels, too small for crop=grid with "
                f"compr_img_size={self.compr_img_size}"
            )
        return min(height, width, self.compr_img_size)


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


def collate(items: list[dict]) -> dict:
    """Stack tensors; the parts that differ in size from picture to picture stay lists."""
    return {
        name: [item[name] for item in items]
        if name in LISTED
        else torch.stack([item[name] for item in items])
        for name in items[0]
    }
