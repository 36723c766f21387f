"""roilib.datasets.coco: annotations that fit their pictures and each other, or one line."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import refusal, street
from PIL import Image

from roilib.datasets.coco import coco_samples
from roilib.datasets.dataset import RoiDataset, batches, coco_splits, load_splits

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]


def write_part(root, part, objects, categories=CATEGORIES, annotations="annotations", **image):
    """A part of COCO: objects are {id: [(category, box, iscrowd), …]}, a picture each."""
    (root / part).mkdir(parents=True)
    for id in objects:
        Image.fromarray(street(id)).save(root / part / f"{id:012d}.jpg")
    content = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} | image for i in objects],
        "annotations": [
            {"image_id": i, "category_id": c, "bbox": box, "iscrowd": crowd}
            for i in objects
            for c, box, crowd in objects[i]
        ],
        "categories": categories,
    }
    path = root / annotations / f"instances_{part}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def tiny_coco(tmp_path):
    """In train2017 a picture with a person and a crowd and one with nothing, in val2017 a dog."""
    crowd = (1, (0, 0, 90, 90), 1)
    train = {7: [(1, (10, 20, 30, 40), 0), crowd, (18, (5, 5, 0, 9), 0)], 3: []}
    write_part(tmp_path, "train2017", train)
    write_part(tmp_path, "val2017", {5: [(18, (1.5, 2.5, 10, 20), 0)]})
    return tmp_path


def val(root):
    return root / "annotations" / "instances_val2017.json"


def test_pictures_boxes_and_classes(tiny_coco):
    samples, classes = coco_samples(tiny_coco, "train")
    assert classes == ("person", "dog")
    assert [s.id for s in samples] == ["000000000003", "000000000007"]
    assert samples[1].boxes.tolist() == [[10, 20, 40, 60]]  # no crowd, no box without width
    assert samples[1].labels.tolist() == [0]
    assert RoiDataset(samples, classes)[0][0].shape == (3, 96, 160)


def test_splits(tiny_coco):
    def ids(share):
        return [[int(s.id) for s in part] for part in coco_splits(tiny_coco, share)[0]]

    assert ids(None) == [[3, 7], [5]]
    assert ids(0.34) == [[3], [5, 7]]
    assert ids(1.0) == [[3, 5, 7], []]
    assert ids(0.0) == [[], [3, 5, 7]]


def test_through_the_parameters(tiny_coco, tiny_parameters):
    p = tiny_parameters(
        which="hyperprior_eval_with_objs",
        dataset="coco",
        data_root=str(tiny_coco),
        train_size_p1=None,
    )
    train, test = load_splits(p)
    assert (len(train), len(test), train.classes) == (2, 1, ("person", "dog"))
    assert next(iter(batches(train, p, train=True)))["roi_mask"].shape == (2, 1, 64, 64)


# Categories


@pytest.mark.parametrize(
    ("train", "val", "names", "wanted"),
    [  # names of train's categories 1, 2, … and of val's; classes; names of val's objects
        (("car", "person"), ("car", "person"), ("car", "person"), ("car", "person")),
        (("car", "person"), ("person", "car"), ("car", "person"), ("person", "car")),
        (("car",), ("car", "truck"), ("car", "truck"), ("car", "truck")),
        (("car", "truck"), ("truck",), ("car", "truck"), ("truck",)),
        (("car",), ("boat",), ("car", "boat"), ("boat",)),
        (("car", "car"), ("bus", "car"), ("car", "bus"), ("bus", "car")),
    ],
)
def test_categories_are_matched_by_name(tmp_path, train, val, names, wanted):
    for part, own in (("train2017", train), ("val2017", val)):
        categories = [{"id": i, "name": name} for i, name in enumerate(own, 1)]
        objects = {7: [(c["id"], (1, 2, 30, 40), 0) for c in categories]}
        write_part(tmp_path, part, objects, categories)
    (_, (sample,)), classes = coco_splits(tmp_path, None)
    assert classes == names
    assert tuple(classes[i] for i in sample.labels) == wanted


def test_equal_ids_of_train_and_val_stay_apart(tmp_path):
    for part in ("train2017", "val2017"):
        write_part(tmp_path, part, {0: [], 1: []})
    (train, test), _ = coco_splits(tmp_path, None)
    assert [s.id for s in train] == ["train-000000000000", "train-000000000001"]
    assert [s.id for s in test] == ["val-000000000000", "val-000000000001"]


# Sizes


def turned(root, orientation=6):
    """A picture that is stored as 160x96 and, turned by a quarter, shown as 96x160."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(street(5)).save(root / "val2017" / "000000000005.jpg", exif=exif)


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        ((160, 96), None),
        ((None, None), None),
        ((160, None), None),
        ((320, 192), "160x96 pixels, but instances_val2017.json says 320x192"),
        ((80, 48), "160x96 pixels, but instances_val2017.json says 80x48"),
        ((96, 160), "160x96 pixels, but instances_val2017.json says 96x160"),
        ((161, 96), "160x96 pixels, but instances_val2017.json says 161x96"),
        ((0, 0), "160x96 pixels, but instances_val2017.json says 0x0"),
    ],
)
def test_the_stored_size_is_the_files(tiny_coco, stored, why):
    edit(val(tiny_coco), lambda c: c["images"][0].update(width=stored[0], height=stored[1]))
    if why:
        picture = tiny_coco / "val2017" / "000000000005.jpg"
        assert refusal(coco_samples, tiny_coco, "val") == f"{picture}: {why}"
    else:
        assert len(coco_samples(tiny_coco, "val")[0]) == 1


def test_a_size_that_exif_swaps_is_explained(tiny_coco):
    turned(tiny_coco)
    edit(val(tiny_coco), lambda c: c["images"][0].update(width=96, height=160))
    assert "EXIF turns it" in refusal(coco_samples, tiny_coco, "val")


@pytest.mark.parametrize(
    ("orientation", "size", "is_said"),
    [
        (1, (160, 96), False),
        (3, (160, 96), True),
        (3, (None, None), True),
        (6, (160, 96), False),  # the stored size, so its boxes are those of the stored picture
        (6, (None, None), True),
    ],
)
def test_labels_of_a_picture_that_exif_turns_are_said(
    tiny_coco, recwarn, orientation, size, is_said
):
    turned(tiny_coco, orientation)
    edit(val(tiny_coco), lambda c: c["images"][0].update(width=size[0], height=size[1]))
    coco_samples(tiny_coco, "val")
    said = [str(w.message) for w in recwarn if "EXIF turns 1 of its pictures, as" in str(w.message)]
    assert len(said) == is_said


# Pictures


@pytest.mark.parametrize(
    ("annotations", "pictures"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/instances_train.json", "train"),
        ("annotations/instances_train2014.json", "train2014"),
        ("annotations/instances_train.json", "images/train"),
        ("annotations/instances_train_own.json", "images"),
        ("annotations/train.json", "train"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_folders_of_other_names(tiny_coco, tmp_path, annotations, pictures):
    root = tmp_path / "other"
    for path in (root / annotations, root / pictures):
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(tiny_coco / "train2017", root / pictures, dirs_exist_ok=True)
    (root / annotations).parent.mkdir(exist_ok=True)
    shutil.copy(tiny_coco / "annotations" / "instances_train2017.json", root / annotations)
    assert [s.path.parent for s in coco_samples(root, "train")[0]] == [root / pictures] * 2


def test_file_names_with_a_folder(tiny_coco):
    edit(val(tiny_coco), lambda c: c["images"][0].update(file_name="val2017/000000000005.jpg"))
    assert len(coco_samples(tiny_coco, "val")[0]) == 1


def test_a_subset_of_the_pictures(tiny_coco):
    (tiny_coco / "train2017" / "000000000003.jpg").unlink()
    with pytest.warns(UserWarning, match=r"1 of 2 pictures are not in .*000000000003\.jpg"):
        samples, _ = coco_samples(tiny_coco, "train")
    assert [s.id for s in samples] == ["000000000007"]
    (tiny_coco / "train2017" / "000000000007.jpg").unlink()
    assert "none of its pictures are in" in refusal(coco_samples, tiny_coco, "train")


def test_which_file_of_annotations(tiny_coco):
    folder = tiny_coco / "annotations"
    (folder / "._instances_train2017.json").write_bytes(b"\0")
    shutil.copy(folder / "instances_train2017.json", folder / "instances_train2014.json")
    assert len(coco_samples(tiny_coco, "train")[0]) == 2  # 2017 where there are more
    (folder / "instances_train2017.json").rename(folder / "instances_train2015.json")
    assert "instances_train2015.json: a second file" in refusal(coco_samples, tiny_coco, "train")
    shutil.rmtree(folder)
    assert "instances_train2017.json: no such file" in refusal(coco_samples, tiny_coco, "train")


# Annotations


def change(part, **values):
    """The first entry of a part of the annotations, changed; None leaves a value out."""

    def apply(content):
        entry = content[part][0] | values
        content[part][0] = {key: value for key, value in entry.items() if value is not None}

    return apply


def add(part, **values):
    return lambda content: content[part].append(content[part][0] | values)


def boxed(*numbers):
    return change("annotations", bbox=list(numbers))


BOX = [1.5, 2.5, 11.5, 22.5]
NOT_COCO = "not COCO annotations"
ANNOTATIONS = {  # what is done to one picture with one object → its boxes, or why it is refused
    "as it is": (lambda content: None, [BOX]),
    "no objects": (lambda content: content["annotations"].clear(), []),
    "a crowd": (change("annotations", iscrowd=1), []),
    "no iscrowd": (change("annotations", iscrowd=None), [BOX]),
    "iscrowd is a word": (change("annotations", iscrowd="yes"), NOT_COCO),
    "a box without width": (boxed(10, 20, 0, 40), []),
    "a box over the border": (boxed(-10, 20, 999, 40), [[-10, 20, 989, 60]]),
    "a box outside": (boxed(160, 20, 30, 40), "annotation 0: the box [160"),
    "a box below": (boxed(10, 300, 30, 40), "annotation 0: the box [10"),
    "a box of negative size": (boxed(10, 20, -30, 40), "annotation 0: a box of negative size"),
    "a NaN width": (boxed(10, 20, float("nan"), 40), "annotation 0: a box's numbers are"),
    "three numbers": (boxed(10, 20, 30), f"{NOT_COCO} (annotations.0.bbox.3: Field required)"),
    "a text for a number": (boxed("left", 20, 30, 40), NOT_COCO),
    "no box": (change("annotations", bbox=None), f"{NOT_COCO} (annotations.0.bbox: Field"),
    "an unknown picture": (
        change("annotations", image_id=99),
        "annotation 0: no such image_id: 99",
    ),
    "an unknown category": (
        change("annotations", category_id=99),
        "annotation 0: no such category_id: 99",
    ),
    "two pictures of one id": (add("images", file_name="b.jpg"), "2 images of the id 5"),
    "two pictures of one file": (add("images", id=9), "2 images of the file name 000000000005.jpg"),
    "two categories of one id": (add("categories", name="b"), "2 categories of the id 18"),
    "an id that is a word": (change("images", id="five"), f"{NOT_COCO} (images.0.id"),
    "no categories": (lambda content: content.pop("categories"), f"{NOT_COCO} (categories: Field"),
    "pictures that are words": (lambda content: content.update(images=["a.jpg"]), NOT_COCO),
    "no pictures": (lambda content: content.update(images=[], annotations=[]), "no pictures"),
}


@pytest.mark.parametrize(("change", "outcome"), ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_annotations(tiny_coco, change, outcome):
    edit(val(tiny_coco), change)
    if isinstance(outcome, str):
        assert refusal(coco_samples, tiny_coco, "val").startswith(f"{val(tiny_coco)}: {outcome}")
    else:
        (sample,), names = coco_samples(tiny_coco, "val")
        assert names == ("person", "dog")
        wanted = np.array(outcome, np.float32).reshape(-1, 4)
        np.testing.assert_allclose(sample.boxes, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        ([(0.1, 0.2, 0.3, 0.4), (0, 0, 1, 1)], "all coordinates lie in 0 … 1"),
        ([(0.5, 0.5, 0.1, 0.1)], "all coordinates lie in 0 … 1"),
        ([(50, 40, 120, 90), (90, 50, 150, 80), (80, 60, 100, 90)], "3 of 3 boxes reach over"),
        ([(1, 1, 9, 9), (90, 50, 150, 80), (80, 60, 100, 90), (99, 9, 150, 80)], "3 of 4 boxes"),
        ([(-9, 1, 30, 9), (90, 50, 71, 47), (80, 60, 10, 10)], None),  # 1 pixel is rounding
        ([(-9, 1, 30, 9), (90, 50, 99, 47)], None),
        ([(0.1, 0.2, 0.3, 0.4), (5, 5, 10, 10)], None),
    ],
)
def test_boxes_of_another_convention(tmp_path, boxes, why):
    """Shares of a picture, or corners, where COCO has x, y, width and height in pixels."""
    path = write_part(tmp_path, "val2017", {5: [(18, box, 0) for box in boxes]})
    if why:
        assert refusal(coco_samples, tmp_path, "val").startswith(f"{path}: {why}")
    else:
        assert len(coco_samples(tmp_path, "val")[0][0].boxes) == len(boxes)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"images": 3}', '[{"bbox": [1, 2, 3, 4]}]'])
def test_files_that_are_no_annotations(tiny_coco, text):
    val(tiny_coco).write_text(text)
    assert re.match(
        r".*2017\.json: not COCO annotations \(", refusal(coco_samples, tiny_coco, "val")
    )


def test_real_coco(shared_data):
    (train, val), classes = coco_splits(shared_data / "coco", None)
    assert (len(train), len(val), len(classes)) == (128, 128, 80)
    assert sum(len(s.boxes) for s in train) == 929
    assert train[0].id == "000000000009"
    assert classes[train[0].labels[0]] == "bowl"
    np.testing.assert_allclose(train[0].boxes[0], [1.08, 187.69, 612.67, 473.53], atol=1e-3)
    height, width = RoiDataset(train, classes)[0][0].shape[-2:]
    assert (width, height) == (640, 480)
