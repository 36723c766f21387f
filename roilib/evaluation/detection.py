"""How well a detector finds labelled objects: AP at IoU 0.50 and 0.50–0.95, by class and class-agnostic, of the pictures and of resamples of them.

    picture ──► detector ──► found (K, 6) ──► scored: a row a detection with its score, group and the IoU thresholds it hits ──► average_precisions

    python -m roilib.evaluation.detection --data-root DIR --out FILE.json DETECTOR.pt [DETECTOR.pt …]

Precision-recall integration is Ultralytics' (101 points, as COCO's); matching is greedy by confidence, one detection an object.
Classes are compared as KITTI's benchmark names them, so that detectors with COCO's and KITTI's class lists meet.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from roilib.datasets.dataset import RoiDataset, split
from roilib.datasets.kitti import kitti_samples
from roilib.models.detector import HookedDetector
from roilib.utils.files import write_json
from roilib.utils.provenance import origin, sha256

BENCHMARK = ("Car", "Pedestrian", "Cyclist")
GROUPS = {  # KITTI's and COCO's class names → what they count as; other classes only count class-agnostically
    **dict.fromkeys(("Car", "Van", "car"), "Car"),
    **dict.fromkeys(("Pedestrian", "Person_sitting", "person"), "Pedestrian"),
    **dict.fromkeys(("Cyclist", "bicycle", "motorcycle"), "Cyclist"),
    **dict.fromkeys(("Truck", "Tram", "Misc", "truck", "bus", "train"), "other"),
}
GROUP_NAMES = (*BENCHMARK, "other")
THRESHOLDS = tuple(n / 100 for n in range(50, 100, 5))  # of IoU
SCORE_UNIT = 1e-6


def grouped(classes: Tensor, names: dict[int, str] | tuple[str, ...]) -> Tensor:
    """Class ids → indices into GROUP_NAMES, -1 for a class of no group (COCO's animals, furniture, …)."""
    groups = [GROUPS.get(names[int(c)]) for c in classes]
    return torch.tensor([GROUP_NAMES.index(g) if g else -1 for g in groups], dtype=torch.int64)


def detect(
    detector: HookedDetector, image: Tensor, confidence: float = 0.001, iou: float = 0.7
) -> Tensor:
    """Detections of a picture, uint8 (3, H, W): (K, 6) with the class column as index into GROUP_NAMES; other classes are left out."""
    device = next(detector.parameters()).device
    boxes = detector.detect(image[None].to(device).float() / 255, confidence, iou)[0].cpu()
    boxes[:, 5] = grouped(boxes[:, 5], detector.names)
    return boxes[boxes[:, 5] >= 0]


def detect_all(detector: HookedDetector, data: RoiDataset) -> list[Tensor]:
    """Detections of every whole picture, as of `detect`."""
    return [detect(detector, image) for image, _, _ in data]


def matches(found: Tensor, boxes: Tensor, same_class: Tensor, threshold: float) -> np.ndarray:
    """Which detections (K, ≥4), best first, hit a box (n, 4) that no better one has hit; same_class: (K, n) bool."""
    hit = np.zeros(len(found), bool)
    if not len(boxes):
        return hit
    overlap = torch.where(same_class, box_iou(found[:, :4], boxes), 0.0).numpy()
    for i in np.flatnonzero(overlap.max(1) >= threshold):
        if overlap[i].max() >= threshold:
            hit[i], overlap[:, overlap[i].argmax()] = True, 0
    return hit


def scored(found: Tensor, boxes: Tensor, groups: Tensor) -> list[list[int]]:
    """What AP needs of a picture's detections (K, 6), best first: score in SCORE_UNIT, group, and as bits which THRESHOLDS it hits, of any box and of
    one of its own group. boxes (n, 4) and groups (n,) are the labelled objects.
    """
    found = found[found[:, 4].argsort(descending=True, stable=True)]
    same = (found[:, 5:6] == groups[None]) & (groups[None] >= 0)
    bits = [
        sum(matches(found, boxes, may, t).astype(int) << k for k, t in enumerate(THRESHOLDS))
        for may in (torch.ones_like(same), same)
    ]
    return np.stack(
        [
            (found[:, 4].double() / SCORE_UNIT).round().long().numpy(),
            found[:, 5].long().numpy(),
            *bits,
        ],
        1,
    ).tolist()


def objects(groups: Tensor) -> list[int]:
    """How many objects a picture has: all, and of each BENCHMARK class."""
    return [len(groups), *(int((groups == i).sum()) for i in range(len(BENCHMARK)))]


def average_precisions(
    pictures: Sequence[list[list[int]]], counts: Sequence[list[int]], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """APs, (R,) each, of R ways to count the pictures.

    pictures: `scored` rows of each; counts: its `objects`; weights (R, pictures): how often each counts. agnostic_ap50 is over all objects,
    car_ap50 … of the BENCHMARK classes with objects, map50 and map50_95 means over them (in a resample over those that it has).
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
            by_class.append(
                _average_precisions(
                    rows[own, 3], picture[own], counts[:, 1 + i], weights, len(THRESHOLDS)
                )
            )
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
    """(thresholds, R) area under the best precision at a higher recall, on a grid of 101 recalls, by trapezoids. bits, picture: of detections, best
    first; what comes after the last hit changes nothing.
    """
    last = np.flatnonzero(bits)[-1:] + 1
    bits, picture = bits[: int(last.sum())], picture[: int(last.sum())]
    drawn, objects_drawn = weights[:, picture], weights @ counts
    number, areas = np.cumsum(drawn, 1), []
    area_below = np.concatenate(
        [[0.0], np.cumsum([0.005, *[0.01] * 99, 0.005])]
    )  # by the number of the grid's recalls
    for k in range(thresholds):
        hit = bits >> k & 1 > 0
        true = np.cumsum(drawn[:, hit], 1)
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # resamples without objects, or before their first detection
            precision, recall = (
                np.where(number[:, hit] > 0, true / number[:, hit], 0),
                true / objects_drawn[:, None],
            )
        best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        reached = area_below[np.searchsorted(np.linspace(0, 1, 101), recall)]
        areas.append(
            np.where(objects_drawn > 0, (best * np.diff(reached, prepend=0, axis=1)).sum(1), np.nan)
        )
    return np.stack(areas)


def average_precision(found: list[Tensor], data: RoiDataset) -> dict[str, float]:
    """`average_precisions` of detections of whole pictures, each counted once."""
    truth = [
        (boxes.as_subclass(Tensor), grouped(labels, data.classes)) for _, boxes, labels in data
    ]
    rows = [scored(f, boxes, groups) for f, (boxes, groups) in zip(found, truth, strict=True)]
    values = average_precisions(
        rows, [objects(groups) for _, groups in truth], np.ones((1, len(rows)))
    )
    return {name: float(value[0]) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detectors", type=Path, nargs="+")
    parser.add_argument(
        "--data-root", type=Path, required=True, help="a KITTI root; its test split is used"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    test = RoiDataset(split(kitti_samples(args.data_root), None, args.data_root)[1])
    result = {}
    for path in args.detectors:
        values = average_precision(detect_all(HookedDetector(path), test), test)
        by_class = {
            name: values[f"{name.lower()}_ap50"]
            for name in BENCHMARK
            if f"{name.lower()}_ap50" in values
        }
        result[path.name] = {"agnostic": values["agnostic_ap50"], "mAP": values["map50"]} | by_class
    about = {
        "pictures": len(test),
        "data": "KITTI 2D object, test split",
        "sha256": {path.name: sha256([path]) for path in args.detectors},
    }
    write_json(args.out, {"AP50": result} | about | origin(vars(args)))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
