"""How well a detector finds labelled objects: AP50, by class and class-agnostic.

    python -m roilib.detection --data-root DIR --out FILE.json DETECTOR.pt [DETECTOR.pt …]

Precision-recall integration is Ultralytics' (101 points, as COCO's); matching is greedy by confidence, one detection an object.
Classes are compared as KITTI's benchmark names them, so that detectors with COCO's and KITTI's class lists meet.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou
from ultralytics.utils.metrics import ap_per_class

from roilib.datasets import RoiDataset, kitti_samples, split
from roilib.detector import HookedDetector
from roilib.runs import write_json

BENCHMARK = ("Car", "Pedestrian", "Cyclist")
GROUPS = {  # KITTI's and COCO's class names → what they count as; other classes only count class-agnostically
    **dict.fromkeys(("Car", "Van", "car"), "Car"),
    **dict.fromkeys(("Pedestrian", "Person_sitting", "person"), "Pedestrian"),
    **dict.fromkeys(("Cyclist", "bicycle", "motorcycle"), "Cyclist"),
    **dict.fromkeys(("Truck", "Tram", "Misc", "truck", "bus", "train"), "other"),
}
GROUP_NAMES = (*BENCHMARK, "other")


def grouped(classes: Tensor, names: dict[int, str] | tuple[str, ...]) -> Tensor:
    """Class ids → indices into GROUP_NAMES, -1 for a class of no group (COCO's animals, furniture, …)."""
    groups = [GROUPS.get(names[int(c)]) for c in classes]
    return torch.tensor([GROUP_NAMES.index(g) if g else -1 for g in groups], dtype=torch.int64)


def detect_all(detector: HookedDetector, data: RoiDataset, confidence: float = 0.001, iou: float = 0.7) -> list[Tensor]:
    """Detections of every whole picture, (K, 6) each with the class column as index into GROUP_NAMES; other classes are left out."""
    found = []
    for image, _, _ in data:
        boxes = detector.detect(image[None].float() / 255, confidence, iou)[0].cpu()
        boxes[:, 5] = grouped(boxes[:, 5], detector.names)
        found.append(boxes[boxes[:, 5] >= 0])
    return found


def matches(found: Tensor, boxes: Tensor, same_class: Tensor, threshold: float) -> np.ndarray:
    """Which detections (K, ≥4), best first, hit a box (n, 4) that no better one has hit; same_class: (K, n) bool."""
    overlap = torch.where(same_class, box_iou(found[:, :4], boxes), 0.0)
    hit = np.zeros(len(found), bool)
    for i, row in enumerate(overlap):
        if len(row) and row.max() >= threshold:
            hit[i], overlap[:, row.argmax()] = True, 0
    return hit


def average_precision(found: list[Tensor], data: RoiDataset, threshold: float = 0.5) -> dict[str, float]:
    """`agnostic` AP over all objects and AP of every BENCHMARK class with objects, with `mAP` their mean, at one IoU threshold."""
    truth = [(boxes.as_subclass(Tensor), grouped(labels, data.classes)) for _, boxes, labels in data]
    found = [f[f[:, 4].argsort(descending=True)] for f in found]
    anything = [torch.ones(len(f), len(b), dtype=torch.bool) for f, (b, _) in zip(found, truth, strict=True)]
    result = {"agnostic": _ap(anything, found, truth, None, threshold)}
    for i, name in enumerate(BENCHMARK):
        if any((groups == i).any() for _, groups in truth):
            same = [(f[:, 5:6] == i) & (groups == i)[None] for f, (_, groups) in zip(found, truth, strict=True)]
            result[name] = _ap(same, found, truth, i, threshold)
    return result | {"mAP": float(np.mean([v for k, v in result.items() if k in BENCHMARK]))}


def _ap(same: list[Tensor], found: list[Tensor], truth: list[tuple[Tensor, Tensor]], group: int | None, threshold: float) -> float:
    chosen = [slice(None) if group is None else f[:, 5] == group for f in found]
    hits = np.concatenate([matches(f[c], b, s[c], threshold) for f, c, s, (b, _) in zip(found, chosen, same, truth, strict=True)])
    confidence = torch.cat([f[c][:, 4] for f, c in zip(found, chosen, strict=True)]).numpy()
    objects = sum(len(b) if group is None else int((g == group).sum()) for b, g in truth)
    return float(ap_per_class(hits[:, None], confidence, np.zeros(len(hits)), np.zeros(objects))[5].mean()) if len(hits) else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", type=Path, nargs="+")
    parser.add_argument("--data-root", type=Path, required=True, help="a KITTI root; its test split is used")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    test = RoiDataset(split(kitti_samples(args.data_root), None, args.data_root)[1])
    result = {path.name: average_precision(detect_all(HookedDetector(path), test), test) for path in args.detectors}
    write_json(args.out, {"AP50": result, "pictures": len(test), "data": "KITTI 2D object, test split"})
    print(args.out.read_text())


if __name__ == "__main__":
    main()
