"""roilib.datasets.readers: KITTI, COCO, folders of one's own and splits, on made-up folders and on the real ones where they are."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import places, street
from PIL import Image

from roilib.datasets.boxes import write_kitti_label
from roilib.datasets.coco import coco_samples
from roilib.datasets.dataset import (
    RoiDataset,
    batches,
    coco_splits,
    evaluation_pictures,
    load_splits,
    split,
)
from roilib.datasets.folder import folder_samples
from roilib.datasets.kitti import KITTI_CLASSES, kitti_samples
from roilib.models.detector import load_yolo  # noqa: F401 (Ultralytics replaces PIL's Image.open by one that installs packages)


def one_line(*names):
    """What an error has to look like: one line with these names in it."""
    return r"^[^\n]*" + r"[^\n]*".join(names) + r"[^\n]*$"


# KITTI


def test_kitti_pictures_and_boxes_by_sorted_id(tiny_kitti):
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
    with pytest.raises(ValueError, match=one_line(tmp_path.name, "training/image_2", "Kitti/raw")):
        kitti_samples(tmp_path)
    (tmp_path / "training" / "image_2").mkdir(parents=True)
    with pytest.raises(ValueError, match=one_line("training/image_2", "no pictures")):
        kitti_samples(tmp_path)


def test_missing_label(own_kitti):
    (own_kitti / "training" / "label_2" / "000001.txt").unlink()
    with pytest.raises(ValueError, match=one_line("000001.png", "no label", "000001.txt")):
        kitti_samples(own_kitti)


def test_label_for_no_picture(own_kitti):
    (own_kitti / "training" / "image_2" / "000001.png").unlink()
    with pytest.raises(ValueError, match=one_line("000001.txt", "no picture")):
        kitti_samples(own_kitti)


def test_malformed_label(own_kitti):
    (own_kitti / "training" / "label_2" / "000001.txt").write_text("Car 0.00 0 1.85 387.63\n")
    with pytest.raises(ValueError, match=one_line(r"000001\.txt", "line 1")):
        kitti_samples(own_kitti)


def test_unknown_class(own_kitti):
    write_kitti_label(
        own_kitti / "training" / "label_2" / "000001.txt", ["Tractor"], np.array([[1, 2, 3, 4]])
    )
    with pytest.raises(ValueError, match=one_line(r"000001\.txt", "'Tractor'")):
        kitti_samples(own_kitti)


def test_the_plain_baseline_needs_no_labels(own_kitti, tiny_parameters):
    shutil.rmtree(own_kitti / "training" / "label_2")
    train, _ = load_splits(
        tiny_parameters(which="hyperprior", data_root=str(own_kitti), train_size_p1=1.0)
    )
    assert [len(boxes) for _, boxes, _ in train] == [0, 0]
    with pytest.raises(ValueError, match=one_line("000000.png", "no label")):
        load_splits(tiny_parameters(which="hyperprior_eval_with_objs", data_root=str(own_kitti)))


def test_real_kitti(shared_data):
    root = shared_data / "kitti"
    samples = kitti_samples(root)
    train, test = split(samples, None, root)
    assert (len(samples), len(train), len(test)) == (104, 80, 24)
    assert {s.id for s in train}.isdisjoint(s.id for s in test)
    assert sum(len(s.boxes) for s in samples) == 507  # and 193 DontCare
    assert np.bincount(np.concatenate([s.labels for s in test]), minlength=8).tolist() == [
        77,
        11,
        2,
        16,
        0,
        8,
        1,
        2,
    ]
    image, boxes, _ = RoiDataset(test)[0]
    assert image.shape[-2:] >= (370, 1224)
    assert (boxes[:, 2] <= image.shape[-1]).all()


# COCO


@pytest.fixture
def tiny_coco(tmp_path):
    """Three pictures: in train2017 one with a person and a crowd and one with nothing, in val2017 one with a dog."""
    categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
    objects = {
        7: [(1, (10, 20, 30, 40), 0), (1, (0, 0, 90, 90), 1), (18, (5, 5, 0, 9), 0)],
        3: [],
        5: [(18, (1.5, 2.5, 10, 20), 0)],
    }
    for part, ids in (("train2017", (7, 3)), ("val2017", (5,))):
        (tmp_path / part).mkdir()
        for id in ids:
            Image.fromarray(street(id)).save(tmp_path / part / f"{id:012d}.jpg")
        annotations = [
            {"image_id": i, "category_id": c, "bbox": box, "iscrowd": crowd}
            for i in ids
            for c, box, crowd in objects[i]
        ]
        images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in ids]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_pictures_boxes_and_classes(tiny_coco):
    samples, classes = coco_samples(tiny_coco, "train2017")
    assert classes == ("person", "dog")
    assert [s.id for s in samples] == ["000000000003", "000000000007"]
    assert samples[1].boxes.tolist() == [
        [10, 20, 40, 60]
    ]  # neither the crowd nor the box without width
    assert samples[1].labels.tolist() == [0]
    assert RoiDataset(samples, classes)[0][0].shape == (3, 96, 160)


def test_coco_splits(tiny_coco):
    def ids(share):
        return [[int(s.id) for s in part] for part in coco_splits(tiny_coco, share)[0]]

    assert ids(None) == [[3, 7], [5]]
    assert ids(0.34) == [[3], [5, 7]]
    assert ids(1.0) == [[3, 5, 7], []]
    assert ids(0.0) == [[], [3, 5, 7]]


def test_coco_through_the_parameters(tiny_coco, tiny_parameters):
    p = tiny_parameters(
        which="hyperprior_eval_with_objs",
        dataset="coco",
        data_root=str(tiny_coco),
        train_size_p1=None,
    )
    train, test = load_splits(p)
    assert (len(train), len(test), train.classes) == (2, 1, ("person", "dog"))
    assert next(iter(batches(train, p, train=True)))["roi_mask"].shape == (2, 1, 64, 64)


def change_annotations(root, change):
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("images"),
        lambda c: c.update(images=["5.jpg"]),
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
        lambda c: c["annotations"][0].update(category_id=99),
        lambda c: c["annotations"][0].update(image_id=99),
        lambda c: c.update(images=[], annotations=[]),
    ],
)
def test_malformed_annotations(tiny_coco, change):
    change_annotations(tiny_coco, change)
    with pytest.raises(ValueError, match=one_line(r"instances_val2017\.json")):
        coco_splits(tiny_coco, None)


def test_coco_files_that_are_missing(tiny_coco):
    (tiny_coco / "val2017" / "000000000005.jpg").unlink()
    with pytest.raises(ValueError, match=one_line(r"000000000005\.jpg")):
        coco_splits(tiny_coco, None)
    (tiny_coco / "annotations" / "instances_train2017.json").write_text("{")
    with pytest.raises(ValueError, match=one_line(r"instances_train2017\.json")):
        coco_splits(tiny_coco, None)
    shutil.rmtree(tiny_coco / "annotations")
    with pytest.raises(ValueError, match=one_line(r"instances_train2017\.json")):
        coco_splits(tiny_coco, None)


def test_real_coco(shared_data):
    (train, val), classes = coco_splits(shared_data / "coco", None)
    assert (len(train), len(val), len(classes)) == (128, 128, 80)
    assert sum(len(s.boxes) for s in train) == 929
    assert train[0].id == "000000000009"
    assert classes[train[0].labels[0]] == "bowl"
    np.testing.assert_allclose(train[0].boxes[0], [1.08, 187.69, 612.67, 473.53], atol=1e-3)
    height, width = RoiDataset(train, classes)[0][0].shape[-2:]
    assert (width, height) == (640, 480)


# Splits


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 6), (0.5, 3), (None, 6)])
def test_a_share_of_the_sorted_ids_trains(tiny_kitti, share, count):
    train, test = split(kitti_samples(tiny_kitti), share, tiny_kitti)
    assert [s.id for s in train] + [s.id for s in test] == [f"{i:06d}" for i in range(6)]
    assert len(train) == count


def test_the_roots_own_splits(own_kitti):
    (own_kitti / "splits").mkdir()
    for part, ids in (("train", "000001\n"), ("test", "000000\n")):
        (own_kitti / "splits" / f"{part}.txt").write_text(ids)
    samples = kitti_samples(own_kitti)
    train, test = split(samples, None, own_kitti)
    assert ([s.id for s in train], [s.id for s in test]) == (["000001"], ["000000"])
    assert [s.id for s in split(samples, 0.5, own_kitti)[0]] == [
        "000000"
    ]  # a share that is given wins
    (own_kitti / "splits" / "test.txt").write_text("000000\n000009\n")
    with pytest.raises(ValueError, match=one_line(r"test\.txt", "000009")):
        split(samples, None, own_kitti)
    (own_kitti / "splits" / "test.txt").write_text("000001\n")
    with pytest.raises(ValueError, match=one_line(r"test\.txt", "000001 is in train")):
        split(samples, None, own_kitti)
    (own_kitti / "splits" / "test.txt").unlink()
    with pytest.raises(ValueError, match=one_line(r"test\.txt")):
        split(samples, None, own_kitti)


def test_two_pictures_of_one_id(own_kitti):
    folder = own_kitti / "training" / "image_2"
    (folder / "000001.jpg").write_bytes((folder / "000001.png").read_bytes())
    with pytest.raises(ValueError, match=one_line(r"000001\.png", r"same id as 000001\.jpg")):
        kitti_samples(own_kitti)


# Folders of one's own


def own_folder(folder):
    """Three pictures: with a KITTI label, with JSON boxes, with none."""
    folder.mkdir()
    for i, name in enumerate(("a.png", "b.jpg", "c.png")):
        Image.fromarray(street(i)).save(folder / name)
    write_kitti_label(
        folder / "a.txt",
        ["Car", "DontCare", "tractor"],
        np.array([[1, 2, 30, 40], [0, 0, 9, 9], [50, 20, 90, 60]]),
    )
    (folder / "b.json").write_text("[[10, 20, 50, 60, 0.5]]")
    return folder


def test_a_folder_of_ones_own(tmp_path, tiny_parameters):
    data = evaluation_pictures(tiny_parameters(), str(own_folder(tmp_path / "own")))
    assert data.ids == ["a", "b", "c"]
    assert data.classes == ("Car", "object", "tractor")
    assert [sample.labels.tolist() for sample in data.samples] == [[0, 2], [1], []]
    assert [sample.boxes.tolist() for sample in data.samples] == [
        [[1, 2, 30, 40], [50, 20, 90, 60]],
        [[10, 20, 50, 60]],
        [],
    ]
    assert [tuple(boxes.shape) for _, boxes, _ in data] == [(2, 4), (1, 4), (0, 4)]
    assert evaluation_pictures(tiny_parameters()).ids == ["000004", "000005"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.json", "[]", "d.json: boxes for no picture"),
        ("a.json", "[]", "a.txt: the second box file of the name a"),
        ("a.jpeg", "", "a.png: the second picture of the name a"),
        ("b.json", "[[1, 2]]", "b.json: not a list of"),
        ("a.txt", "Car 1 2", "a.txt: line 1 has 3 fields"),
    ],
)
def test_a_folder_with_a_mistake_names_the_file(tmp_path, name, content, message):
    folder = own_folder(tmp_path / "own")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        folder_samples(folder)


def test_a_folder_without_pictures_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=re.escape(f"{folder}: no pictures here")):
            folder_samples(folder)
