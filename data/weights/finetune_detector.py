"""Fine-tune YOLOv8n from COCO's classes to KITTI's: how `data/weights/yolov8n_kitti.pt` was made.

    python data/weights/finetune_detector.py --data-root DIR --weights yolov8n.pt [--out FILE]

The class rows of the head start from their nearest COCO classes instead of noise, so that 80 frames
are enough. `--hold-out K` keeps every K-th training frame for validation, to choose settings.
Without it every training frame trains, and the last epoch is kept.

Training is Ultralytics' own (https://docs.ultralytics.com/modes/train). Only the head's starting
point and the written file are ours.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import torch
import yaml
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer

from roilib.datasets.dataset import RoiDataset, split
from roilib.datasets.kitti import KITTI_CLASSES, kitti_samples
from roilib.models.detector import open_yolo
from roilib.utils.device import resolve_device
from roilib.utils.files import replacing
from roilib.utils.provenance import origin, sha256

COCO_PARENTS = {
    "Car": ("car",),
    "Van": ("car", "truck"),
    "Truck": ("truck",),
    "Pedestrian": ("person",),
    "Person_sitting": ("person",),
    "Cyclist": ("person", "bicycle"),
    "Tram": ("train", "bus"),
    "Misc": ("truck", "car"),
}


def narrow_head(model: nn.Module) -> nn.Module:
    """Replace a COCO detector's 80 class outputs by KITTI's 8, in place.

    Each is the mean of its COCO parents' rows.
    """
    head, index = model.model[-1], {name: i for i, name in model.names.items()}
    parents = [[index[parent] for parent in COCO_PARENTS[name]] for name in KITTI_CLASSES]
    for branch in head.cv3:
        old = branch[2]
        branch[2] = nn.Conv2d(old.in_channels, len(parents), 1)
        branch[2].weight.data = torch.stack([old.weight.data[rows].mean(0) for rows in parents])
        branch[2].bias.data = torch.stack([old.bias.data[rows].mean(0) for rows in parents])
    head.nc, head.no = len(parents), len(parents) + 4 * head.reg_max
    model.nc, model.names = len(parents), dict(enumerate(KITTI_CLASSES))
    return model


class KittiTrainer(DetectionTrainer):
    """Ultralytics' trainer, starting from the narrowed COCO head."""

    def get_model(self, cfg=None, weights=None, verbose=True):
        return narrow_head(weights.float())


def write_yolo_dataset(dataset: RoiDataset, folder: Path, hold_out: int) -> Path:
    """Lay `dataset` out as Ultralytics reads it, replacing what was there; return its YAML file.

    Pictures are linked, labels are text with normalised coordinates.
    """
    for name in ("images", "labels"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for i, sample in enumerate(dataset.samples):
        part = "val" if hold_out and i % hold_out == 0 else "train"
        image = folder / "images" / part / sample.path.name
        label = (folder / "labels" / part / sample.path.name).with_suffix(".txt")
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(sample.path.resolve(), image)
        picture, boxes, labels = dataset[i]
        height, width = picture.shape[-2:]
        centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        rows = torch.cat([centres, sizes], 1) / torch.tensor([width, height, width, height])
        label.write_text(
            "".join(
                f"{c} {' '.join(f'{v:.6f}' for v in row)}\n"
                for c, row in zip(labels.tolist(), rows.tolist(), strict=True)
            )
        )
    names = dict(enumerate(KITTI_CLASSES))
    description = {
        "path": str(folder.resolve()),
        "train": "images/train",
        "val": "images/val" if hold_out else "images/train",
        "names": names,
    }
    (folder / "kitti.yaml").write_text(yaml.safe_dump(description))
    return folder / "kitti.yaml"


def save_detector(trained: Path, out: Path, parameters: dict) -> None:
    """Write the trained model as an fp16 file that `ultralytics.YOLO` loads.

    The file says where it comes from. It has neither the optimiser nor this machine's paths.
    """
    model = open_yolo(trained).model.half()
    model.pt_path = out.name
    model.args = {"task": "detect", "imgsz": parameters["imgsz"]}
    with replacing(out) as temporary:
        torch.save(
            {
                "model": model,
                "train_args": model.args,
                "provenance": origin(parameters),
                "license": "AGPL-3.0",
            },
            temporary,
        )


def finetune(args: argparse.Namespace) -> None:
    """Lay out the data, train, and write the detector.

    Raises ValueError that names the wrong file or option.
    """
    device, yolo = resolve_device(args.device), open_yolo(args.weights)
    train = RoiDataset(split(kitti_samples(args.data_root), None, args.data_root)[0])
    data = write_yolo_dataset(train, args.work / "dataset", args.hold_out)
    settings = {
        "imgsz": args.imgsz,
        "epochs": args.epochs,
        "batch": args.batch,
        "lr0": args.lr,
        "freeze": args.freeze,
        "seed": args.seed,
    }
    yolo.train(
        trainer=KittiTrainer,
        data=str(data),
        project=str(args.work.resolve()),
        name="train",
        exist_ok=True,
        device=str(device),
        optimizer="AdamW",
        cos_lr=True,
        warmup_epochs=1,
        rect=True,
        mosaic=0.0,
        val=bool(args.hold_out),
        plots=False,
        workers=0,
        **settings,
    )
    chosen = "best.pt" if args.hold_out else "last.pt"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "data": "KITTI 2D object, train split",
        "frames": len(train),
        "hold_out": args.hold_out,
        "start_sha256": sha256([args.weights]),
    }
    save_detector(args.work / "train" / "weights" / chosen, args.out, settings | data)


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 2 with one line that says what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-root", type=Path, required=True, help="a KITTI root; its splits/train.txt is used"
    )
    parser.add_argument("--weights", type=Path, required=True, help="a COCO YOLOv8n file")
    parser.add_argument(
        "--hold-out",
        type=int,
        default=0,
        help="validate on every K-th training frame (0: train on all)",
    )
    parser.add_argument(
        "--epochs", type=int, default=10, help="10 was best on a held-out fifth of train"
    )
    parser.add_argument(
        "--imgsz", type=int, default=1248, help="longer side in pixels: 1248 is KITTI's own size"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=5e-4, help="AdamW's learning rate")
    parser.add_argument(
        "--freeze", type=int, default=10, help="first layers that do not train; 10 is the backbone"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/detector"))
    parser.add_argument("--out", type=Path, default=Path("data/weights/yolov8n_kitti.pt"))
    args = parser.parse_args(arguments)
    try:
        finetune(args)
    except ValueError as error:
        print(f"finetune_detector: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
