"""roilib.datasets.kitti: KITTI's layout with KITTI's classes or one's own."""

import re
import shutil

import numpy as np
import pytest
import torch
from conftest import places, refusal, street, write_tiny_kitti
from PIL import Image

from roilib.datasets.boxes import write_kitti_label
from roilib.datasets.dataset import RoiDataset, load_splits, split
from roilib.datasets.kitti import KITTI_CLASSES, kitti_classes, kitti_samples


def label(root, id):
    return root / "training" / "label_2" / f"{id}.txt"


def test_pictures_and_boxes_by_sorted_id(tiny_kitti):
    samples = kitti_samples(tiny_kitti)
    assert [s.id for s in samples] == [f"{i:06d}" for i in range(6)]
    image, boxes, labels = RoiDataset(samples)[2]
    assert (image.dtype, image.shape) == (torch.uint8, (3, 96, 160))
    np.testing.assert_array_equal(image.permute(1, 2, 0), street(2))
    np.testing.assert_array_equal(boxes, places(2))  # the DontCare is none of them
    assert boxes.canvas_size == (96, 160)
    assert [KITTI_CLASSES[label] for label in labels] == ["Car", "Pedestrian"]
    assert RoiDataset(samples)[5][1].shape == (0, 4)


def test_torchvisions_layout(tiny_kitti, tmp_path):
    shutil.copytree(tiny_kitti, tmp_path / "Kitti" / "raw")
    assert [s.id for s in kitti_samples(tmp_path)] == [s.id for s in kitti_samples(tiny_kitti)]


def test_wrong_layouts_and_empty_roots(tmp_path):
    (tmp_path / "image_2").mkdir()
    assert re.search(r"no KITTI here: .*image_2.*Kitti/raw", refusal(kitti_samples, tmp_path))
    (tmp_path / "training" / "image_02" / "0000").mkdir(parents=True)
    assert "KITTI tracking" in refusal(kitti_samples, tmp_path)
    (tmp_path / "training" / "image_2").mkdir()
    assert "image_2: no pictures" in refusal(kitti_samples, tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Car 0.00 0 1.85 387.63\n", "line 1 has 5 fields"),
        ("0 0.5 0.5 0.2 0.2", "YOLO labels, where KITTI's are expected"),
        (f"0 1 Car 0 0 0 10 20 30 40{' 0' * 7}", "KITTI tracking labels: 17 columns"),
        (f"Car 0 0 0 0.1 0.2 0.3 0.4{' 0' * 7}", "all coordinates lie in 0 … 1"),
        (f"Car 0 0 0 10 100 30 120{' 0' * 7}", "line 1: the box [10.0, 100.0, 30.0, 120.0] lies"),
        (f"Tractor 0 0 0 10 20 30 40{' 0' * 7}", "unknown object type 'Tractor'"),
        (f"car 0 0 0 10 20 30 40{' 0' * 7}", "unknown object type 'car'"),
    ],
)
def test_a_label_of_something_else_is_named(own_kitti, text, why):
    path = label(own_kitti, "000001")
    path.write_text(text)
    assert refusal(kitti_samples, own_kitti).startswith(f"{path}: {why}")


def test_pictures_and_labels_that_do_not_match(own_kitti):
    label(own_kitti, "000001").rename(label(own_kitti, "000002"))
    assert "000002.txt: a label for no picture" in refusal(kitti_samples, own_kitti)
    label(own_kitti, "000002").unlink()
    assert re.search(r"000001\.png: no label .*000001\.txt", refusal(kitti_samples, own_kitti))
    folder = own_kitti / "training" / "image_2"
    shutil.copy(folder / "000001.png", folder / "000001.jpg")
    assert re.search(r"000001\.png: the same id as 000001\.jpg", refusal(kitti_samples, own_kitti))


def test_hidden_files_are_ignored(own_kitti):
    for path in ("image_2/._000000.png", "label_2/._000000.txt", "image_2/.DS_Store"):
        (own_kitti / "training" / path).write_bytes(b"\0\5\x16\7")
    assert [s.id for s in kitti_samples(own_kitti)] == ["000000", "000001"]


@pytest.mark.parametrize("with_objects", [True, False])
def test_an_unreadable_picture_is_found_before_anything_begins(own_kitti, with_objects):
    path = own_kitti / "training" / "image_2" / "000001.png"
    path.write_bytes(b"no picture")
    assert refusal(kitti_samples, own_kitti, with_objects).startswith(f"{path}: not a readable")


def test_own_classes_in_kittis_layout(own_kitti, tiny_parameters):
    boxes = np.array([[1, 2, 30, 40]])
    write_kitti_label(label(own_kitti, "000000"), ["Tractor"], boxes)
    write_kitti_label(label(own_kitti, "000001"), ["cow"], boxes)
    assert "classes.txt in the root names other classes" in refusal(kitti_samples, own_kitti)
    (own_kitti / "classes.txt").write_text("\n")
    assert refusal(kitti_classes, own_kitti).endswith("classes.txt: no class names")
    (own_kitti / "classes.txt").write_text("cow\n\n traffic light\n")
    assert kitti_classes(own_kitti) == ("cow", "traffic light")
    (own_kitti / "classes.txt").write_text("cow\nTractor\n")
    assert kitti_classes(own_kitti) == ("cow", "Tractor")
    p = tiny_parameters(
        which="hyperprior_eval_with_objs", data_root=str(own_kitti), train_size_p1=1.0
    )
    train, _ = load_splits(p)
    assert train.classes == ("cow", "Tractor")
    assert [labels.tolist() for _, _, labels in train] == [[1], [0]]


def test_the_plain_baseline_needs_no_labels(own_kitti, tiny_parameters):
    shutil.rmtree(own_kitti / "training" / "label_2")
    p = tiny_parameters(which="hyperprior", data_root=str(own_kitti), train_size_p1=1.0)
    train, _ = load_splits(p)
    assert [len(boxes) for _, boxes, _ in train] == [0, 0]
    with pytest.raises(ValueError, match=r"000000\.png: no label"):
        load_splits(tiny_parameters(which="hyperprior_eval_with_objs", data_root=str(own_kitti)))


def test_a_data_set_without_regions_of_interest_is_said(own_kitti, tiny_parameters):
    for id in ("000000", "000001"):
        label(own_kitti, id).write_text("")
    p = tiny_parameters(which="hyperprior_eval_with_objs", data_root=str(own_kitti))
    with pytest.warns(UserWarning, match="no picture has a region of interest"):
        load_splits(p)


def test_real_kitti(shared_data):
    root = shared_data / "kitti"
    samples = kitti_samples(root)
    train, test = split(samples, None, root)
    assert (len(samples), len(train), len(test)) == (104, 80, 24)
    assert {s.id for s in train}.isdisjoint(s.id for s in test)
    assert sum(len(s.boxes) for s in samples) == 507  # and 193 DontCare
    counts = np.bincount(np.concatenate([s.labels for s in test]), minlength=8)
    assert counts.tolist() == [77, 11, 2, 16, 0, 8, 1, 2]
    image, boxes, _ = RoiDataset(test)[0]
    assert image.shape[-2:] >= (370, 1224)
    assert (boxes[:, 2] <= image.shape[-1]).all()


def test_two_sizes_of_pictures(tmp_path):
    root = write_tiny_kitti(tmp_path, pictures=2)
    Image.fromarray(street(1)[:64]).save(root / "training" / "image_2" / "000001.png")
    write_kitti_label(label(root, "000001"), ["Car"], np.array([[0, 70, 20, 90]]))
    assert "lies outside the picture of 160x64" in refusal(kitti_samples, root)
