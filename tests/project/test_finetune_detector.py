"""finetune_detector: where the fine-tuning starts from and the layout it reads."""

import numpy as np
import pytest
import torch
from finetune_detector import COCO_PARENTS, main, narrow_head, save_detector, write_yolo_dataset
from ultralytics import YOLO

from roilib.datasets.dataset import RoiDataset
from roilib.datasets.kitti import KITTI_CLASSES, kitti_samples
from roilib.utils.provenance import origin


@pytest.fixture(scope="module")
def narrowed(shared_data):
    weights = shared_data / "weights" / "yolov8n_coco_int8.pt"
    return YOLO(weights).model.float(), narrow_head(YOLO(weights).model.float())


def test_every_kitti_class_has_coco_parents(narrowed):
    assert tuple(COCO_PARENTS) == KITTI_CLASSES
    assert {parent for parents in COCO_PARENTS.values() for parent in parents} <= set(
        narrowed[0].names.values()
    )


def test_class_rows_are_the_mean_of_their_parents(narrowed):
    coco, kitti = (model.eval() for model in narrowed)
    assert list(kitti.names.values()) == list(KITTI_CLASSES)
    rows = {name: i for i, name in coco.names.items()}
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        theirs, ours = coco(x)[0], kitti(x)[0]
    assert ours.shape[1] == 4 + len(KITTI_CLASSES)
    torch.testing.assert_close(ours[:, :4], theirs[:, :4])
    for i, name in enumerate(KITTI_CLASSES):
        parents = torch.stack([theirs[:, 4 + rows[parent]] for parent in COCO_PARENTS[name]])
        torch.testing.assert_close(
            ours[:, 4 + i].logit(), parents.logit().mean(0), atol=1e-3, rtol=1e-3
        )


def test_saved_detector_has_no_paths_and_loads(narrowed, tmp_path):
    torch.save({"model": narrowed[1]}, tmp_path / "last.pt")
    save_detector(tmp_path / "last.pt", tmp_path / "out.pt", {"imgsz": 640, "epochs": 1})
    assert str(tmp_path).encode() not in (tmp_path / "out.pt").read_bytes()
    about = torch.load(tmp_path / "out.pt", weights_only=False)["provenance"]
    assert about == origin({"imgsz": 640, "epochs": 1})
    assert YOLO(tmp_path / "out.pt").names == dict(enumerate(KITTI_CLASSES))


def test_dataset_is_laid_out_as_ultralytics_reads_it(tiny_kitti, tmp_path):
    data = RoiDataset(kitti_samples(tiny_kitti))
    write_yolo_dataset(data, tmp_path, hold_out=3)
    held_out = sorted(path.stem for path in (tmp_path / "images" / "val").iterdir())
    assert held_out == ["000000", "000003"]
    assert len(list((tmp_path / "images" / "train").iterdir())) == 4
    rows = np.loadtxt(tmp_path / "labels" / "train" / "000001.txt")
    x0, y0, x1, y1 = data.samples[1].boxes[0].tolist()
    expected = [
        data.samples[1].labels[0],
        (x0 + x1) / 2 / 160,
        (y0 + y1) / 2 / 96,
        (x1 - x0) / 160,
        (y1 - y0) / 96,
    ]
    np.testing.assert_allclose(rows[0], expected, atol=1e-6)
    write_yolo_dataset(
        RoiDataset(data.samples[:4]), tmp_path, hold_out=2
    )  # again, otherwise: nothing of before stays, in neither part
    parts = {
        part: sorted(path.stem for path in (tmp_path / "labels" / part).iterdir())
        for part in ("train", "val")
    }
    assert parts == {"train": ["000001", "000003"], "val": ["000000", "000002"]}


def test_unknown_weights_cause_a_warning_and_mistakes_are_one_line(tiny_kitti, tmp_path, capsys):
    (tmp_path / "other.pt").write_bytes(b"not weights")
    (tmp_path / "model.onnx").write_bytes(b"")
    command = [
        "--data-root",
        str(tiny_kitti),
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "out.pt"),
        "--weights",
    ]
    with pytest.warns(UserWarning, match=r"other\.pt: .*can run code"):
        assert main([*command, str(tmp_path / "other.pt")]) == 2
    assert (
        main([*command, str(tmp_path / "none.pt")])
        == main([*command, str(tmp_path / "model.onnx")])
        == 2
    )
    assert main([*command, str(tmp_path / "other.pt"), "--device", "warp"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    for line, named in zip(
        said, ("other.pt: ", "none.pt: ", "model.onnx: ", "device warp cannot be used"), strict=True
    ):
        assert named in line
    assert not (tmp_path / "work").exists()
