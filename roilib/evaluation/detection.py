"""Average precision of a detector: IoU 0.50 and 0.50–0.95, by class and class-agnostic.

    picture ──► detector ──► found (K, 6) ──► scored ──► average_precisions, of resamples too

`scored` makes a row of each detection: its score, its group and the IoU thresholds at which it hits
an object. Precision-recall integration is Ultralytics' (101 points, as COCO's); matching is greedy
by confidence, one detection per object. Classes are KITTI's benchmark classes, so that detectors
with COCO's and KITTI's class lists can be compared.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from roilib.datasets.boxes import box_file, read_boxes
from roilib.datasets.dataset import RoiDataset
from roilib.models.detector import HookedDetector

BENCHMARK = ("Car", "Pedestrian", "Cyclist")
GROUPS = {  # KITTI's and COCO's class names → group
    **dict.fromkeys(("Car", "Van", "car"), "Car"),
    **dict.fromkeys(("Pedestrian", "Person_sitting", "person"), "Pedestrian"),
    **dict.fromkeys(("Cyclist", "bicycle", "motorcycle"), "Cyclist"),
    **dict.fromkeys(("Truck", "Tram", "Misc", "truck", "bus", "train"), "other"),
}
GROUP_NAMES = (*BENCHMARK, "other")  # "other" counts class-agnostically only
THRESHOLDS = tuple(n / 100 for n in range(50, 100, 5))  # of IoU
SCORE_UNIT = 1e-6  # records hold scores as integers in this unit
LABELS = "labels"  # encoders get the labelled boxes
DETECTOR = "detector"  # they get what the pretrained detector finds


def with_boxes(data: RoiDataset, boxes: str) -> RoiDataset:
    """Return `data` with the boxes for encoders: LABELS, DETECTOR or a folder of box files.

    Quality is measured in the labelled boxes, or where no picture has any, in the encoders' boxes.
    Raises ValueError naming a box file that is missing or wrong.
    """
    if boxes == LABELS:
        return data
    if boxes == DETECTOR:
        detector = HookedDetector()
        found = [detector.regions(image.permute(1, 2, 0).numpy()) for image, _, _ in data]
    else:
        files = [box_file(Path(boxes), sample.path) for sample in data.samples]
        found = [read_boxes(path, data.size(i)) for i, path in enumerate(files)]
    pairs = list(zip(data.samples, found, strict=True))
    if any(len(sample.boxes) for sample in data.samples):
        return RoiDataset([replace(s, coder_boxes=b) for s, b in pairs], data.classes)
    measured = [
        replace(s, coder_boxes=b, boxes=b[:, :4], labels=np.zeros(len(b), np.int64))
        for s, b in pairs
    ]
    return RoiDataset(measured, ("object",))


def grouped(classes: Tensor, names: dict[int, str] | tuple[str, ...]) -> Tensor:
    """Class ids → indices into GROUP_NAMES, -1 for a class of no group, as COCO's animals."""
    groups = [GROUPS.get(names[int(c)]) for c in classes]
    return torch.tensor([GROUP_NAMES.index(g) if g else -1 for g in groups], dtype=torch.int64)


def detect(
    detector: HookedDetector, image: Tensor, confidence: float = 0.001, iou: float = 0.7
) -> Tensor:
    """Detect objects in a picture, uint8 (3, H, W): (K, 6), the last column indexes GROUP_NAMES.

    Classes of no group are left out.
    """
    device = next(detector.parameters()).device
    boxes = detector.detect(image[None].to(device).float() / 255, confidence, iou)[0].cpu()
    boxes[:, 5] = grouped(boxes[:, 5], detector.names)
    return boxes[boxes[:, 5] >= 0]


def matches(found: Tensor, boxes: Tensor, same_class: Tensor, threshold: float) -> np.ndarray:
    """Match detections (K, ≥4), best first, with boxes (n, 4). Returns which hit one, (K,) bool.

    Each box matches one detection. same_class: (K, n) bool, which pairs may match.
    """
    hit = np.zeros(len(found), bool)
    if not len(boxes):
        return hit
    overlap = torch.where(same_class, box_iou(found[:, :4], boxes), 0.0).numpy()
    for i in np.flatnonzero(overlap.max(1) >= threshold):
        if overlap[i].max() >= threshold:
            hit[i], overlap[:, overlap[i].argmax()] = True, 0
    return hit


def scored(found: Tensor, boxes: Tensor, groups: Tensor) -> list[list[int]]:
    """Return a picture's detections (K, 6) as the rows that AP needs, best first.

    A row holds the score in SCORE_UNIT, the group, and two bit masks of THRESHOLDS: where it hits
    any box, and where it hits a box of its own group. boxes (n, 4) and groups (n,) are the
    labelled objects.
    """
    found = found[found[:, 4].argsort(descending=True, stable=True)]
    same = (found[:, 5:6] == groups[None]) & (groups[None] >= 0)
    bits = [
        sum(matches(found, boxes, may, t).astype(int) << k for k, t in enumerate(THRESHOLDS))
        for may in (torch.ones_like(same), same)
    ]
    scores = (found[:, 4].double() / SCORE_UNIT).round().long()
    return np.stack([scores.numpy(), found[:, 5].long().numpy(), *bits], 1).tolist()


def objects(groups: Tensor) -> list[int]:
    """Count a picture's objects: all, and those of each BENCHMARK class."""
    return [len(groups), *(int((groups == i).sum()) for i in range(len(BENCHMARK)))]


def average_precisions(
    pictures: Sequence[list[list[int]]], counts: Sequence[list[int]], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """APs, (R,) each, of R ways to weight the pictures.

    pictures: `scored` rows of each; counts: its `objects`; weights (R, pictures): how often each
    counts. agnostic_ap50 is over all objects, car_ap50 … of the BENCHMARK classes with objects,
    map50 and map50_95 are means over the classes that a resample has.
    """
    rows = np.concatenate([np.array(found, int).reshape(-1, 4) for found in pictures])
    picture = np.repeat(np.arange(len(pictures)), [len(found) for found in pictures])
    order = np.argsort(-rows[:, 0], kind="stable")
    rows, picture, counts = rows[order], picture[order], np.array(counts)
    result = {
        "agnostic_ap50": _average_precisions(rows[:, 2], picture, counts[:, 0], weights, 1)[0]
    }
    by_class = []
    for i, name in enumerate(BENCHMARK):
        if counts[:, 1 + i].any():
            own = rows[:, 1] == i
            seen = rows[own, 3], picture[own], counts[:, 1 + i]
            by_class.append(_average_precisions(*seen, weights, len(THRESHOLDS)))
            result[f"{name.lower()}_ap50"] = by_class[-1][0]
    if by_class:
        known = np.isfinite(np.array(by_class))
        means = np.where(known, by_class, 0).sum(0) / np.maximum(known.sum(0), 1)
        result |= {
            "map50": np.where(known.any((0, 1)), means[0], np.nan),
            "map50_95": np.where(known.any((0, 1)), means.mean(0), np.nan),
        }
    return result


def _average_precisions(
    bits: np.ndarray, picture: np.ndarray, counts: np.ndarray, weights: np.ndarray, thresholds: int
) -> np.ndarray:
    """(thresholds, R) areas under the best precision at a higher recall, by trapezoids.

    The grid has 101 recalls. bits, picture: of detections, best first. Detections after the last
    hit change nothing and are cut.
    """
    last = np.flatnonzero(bits)[-1:] + 1
    bits, picture = bits[: int(last.sum())], picture[: int(last.sum())]
    drawn, objects_drawn = weights[:, picture], weights @ counts
    number, areas = np.cumsum(drawn, 1), []
    # area below the first n recalls of the grid
    area_below = np.concatenate([[0.0], np.cumsum([0.005, *[0.01] * 99, 0.005])])
    for k in range(thresholds):
        hit = bits >> k & 1 > 0
        true = np.cumsum(drawn[:, hit], 1)
        # resamples without objects, or before their first detection, divide by zero
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(number[:, hit] > 0, true / number[:, hit], 0)
            recall = true / objects_drawn[:, None]
        best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        reached = area_below[np.searchsorted(np.linspace(0, 1, 101), recall)]
        areas.append(
            np.where(objects_drawn > 0, (best * np.diff(reached, prepend=0, axis=1)).sum(1), np.nan)
        )
    return np.stack(areas)
