"""roilib.datasets.folder: folders of one's own pictures, with labels of any convention."""

import re

import numpy as np
import pytest
from conftest import refusal, street
from PIL import Image

from roilib.datasets.boxes import write_kitti_label
from roilib.datasets.dataset import evaluation_pictures, load_splits
from roilib.datasets.folder import folder_samples, unlabelled_samples

REST = " 0" * 7


def pictures(folder, *names):
    folder.mkdir(exist_ok=True, parents=True)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(street(i)).save(folder / name)
    return folder


@pytest.fixture
def own(tmp_path):
    """Three pictures: with a KITTI label, with JSON boxes, with none."""
    folder = pictures(tmp_path / "own", "a.png", "b.jpg", "c.png")
    boxes = np.array([[1, 2, 30, 40], [0, 0, 9, 9], [50, 20, 90, 60]])
    write_kitti_label(folder / "a.txt", ["Car", "DontCare", "tractor"], boxes)
    (folder / "b.json").write_text("[[10, 20, 50, 60, 0.5]]")
    return folder


def test_a_folder_of_ones_own(own, tiny_parameters):
    data = evaluation_pictures(tiny_parameters(), str(own))
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
        ("a.json", "[]", "a.txt: the second label file of the name a"),
        ("b.json", "[[1, 2]]", "b.json: not a list of"),
        ("b.json", "[[160, 1, 170, 9]]", "b.json: box 0: the box [160"),
        ("b.json", "[[0.1, 0.1, 0.5, 0.5]]", "b.json: all coordinates lie in 0 … 1"),
        ("a.txt", "Car 1 2", "a.txt: line 1 has 3 fields"),
        ("a.txt", f"0 1 Car 0 0 0 1 2 3 4{REST}", "a.txt: KITTI tracking labels: 17 columns"),
        ("d.png", "no picture", "d.png: not a readable picture"),
    ],
)
def test_a_mistake_names_the_file(own, name, content, message):
    (own / name).write_text(content)
    assert message in refusal(folder_samples, own)


def test_two_pictures_of_one_name(own):
    Image.fromarray(street(0)).save(own / "a.jpeg")
    assert "a.png: the second picture of the name a" in refusal(folder_samples, own)


def test_a_folder_without_pictures_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert refusal(folder_samples, folder).startswith(f"{folder}: no pictures here")


def test_a_file_is_no_folder(own):
    assert refusal(folder_samples, own / "a.png").endswith("a file; a folder of pictures is needed")


def test_hidden_files_are_ignored(own):
    for name in ("._a.png", "._a.txt", ".d.json", ".DS_Store"):
        (own / name).write_bytes(b"\0\5\x16\7")
    assert [s.id for s in folder_samples(own)[0]] == ["a", "b", "c"]


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    folder = pictures(tmp_path, *(f"frame_{i}.png" for i in range(1, 13)))
    assert [s.id for s in folder_samples(folder)[0]] == [f"frame_{i}" for i in range(1, 13)]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [(None, ("0", "2")), ("person\n\ntraffic light\n cow \n", ("cow", "person"))],
)
def test_yolos_labels_and_class_names(tmp_path, names, wanted):
    folder = pictures(tmp_path / "own", "a.png", "b.png")
    (folder / "a.txt").write_text("0 0.5 0.5 0.25 0.5\n2 0.1 0.1 0.1 0.1")
    if names:
        (folder / "classes.txt").write_text(names)
    (first, second), classes = folder_samples(folder)
    assert classes == wanted
    np.testing.assert_allclose(first.boxes[0], [60, 24, 100, 72])
    assert len(second.boxes) == 0


@pytest.mark.parametrize(
    ("name", "orientation"),
    [("a.jpg", 6), ("a.tiff", 6), ("a.webp", 6), ("a.jpg", 2), ("a.jpg", 3), ("a.jpg", 4)],
)
def test_labels_of_a_picture_that_exif_turns_are_said(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(street(0)).save(tmp_path / name, exif=exif)
    assert len(folder_samples(tmp_path)[0]) == 1  # without labels nothing can be wrong
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.25 0.5")
    with pytest.warns(UserWarning, match=rf"{name}: EXIF turns it"):
        folder_samples(tmp_path)


def test_a_format_for_all_files(tmp_path):
    folder = pictures(tmp_path / "own", "a.png")
    (folder / "a.json").write_text("[[10, 20, 30, 40]]")
    assert folder_samples(folder, "xywh")[0][0].boxes.tolist() == [[10, 20, 40, 60]]


# Sequences


def tracked(*frames):
    return "".join(f"{f} 2 Car 0 0 -1.5 {f} 40 120 90{REST}\n" for f in frames)


@pytest.mark.parametrize(
    ("names", "frames", "boxes"),
    [
        (("000000.png", "000001.png", "000002.png"), (0, 2), [0, None, 2]),
        (("8.png", "9.png", "10.png"), (9, 10), [None, 9, 10]),
        (("frame_1.png", "frame_2.png"), (1, 2), [1, 2]),
        (("image-007.jpg",), (7,), [7]),
        (("0000000005.png", "0000000006.png"), (6,), [None, 6]),
    ],
)
def test_tracking_labels_of_a_sequence(tmp_path, names, frames, boxes):
    folder = pictures(tmp_path / "own", *names)
    (folder / "0001_labels.txt").write_text(tracked(*frames))
    samples, classes = folder_samples(folder)
    assert [s.path.name for s in samples] == list(names)
    assert [s.boxes[0, 0] if len(s.boxes) else None for s in samples] == boxes
    assert classes == ("Car",)


def test_tracking_labels_of_other_frames_are_refused(tmp_path):
    folder = pictures(tmp_path / "own", "000000.png", "000001.png")
    (folder / "labels.txt").write_text(tracked(0, 1))
    pictures(folder, "other_1.png")
    assert "labels.txt: two pictures of one frame number" in refusal(folder_samples, folder)
    (folder / "other_1.png").unlink()
    (folder / "labels.txt").write_text(tracked(0, 2))
    assert "labels.txt: no picture of frame 2" in refusal(folder_samples, folder)
    (folder / "more.txt").write_text(tracked(0))
    assert "boxes for no picture" in refusal(folder_samples, folder)


# Labels that do not fit the pictures


def shapes(width, height, *points):
    shape = f'{{"label": "car", "shape_type": "rectangle", "points": {list(map(list, points))}}}'
    return f'{{"imageWidth": {width}, "imageHeight": {height}, "shapes": [{shape}]}}'


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.json", shapes(320, 192, (20, 30), (90, 80)), "a picture of 320x192 pixels, it has 160"),
        (
            "a.json",
            shapes(96, 160, (20, 30), (90, 80)),
            "a picture of 96x160 pixels, it has 160x96",
        ),
        ("a.json", "[[200, 50, 300, 180]]", "lies outside the picture of 160x96"),
        (
            "a.json",
            '[{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"image_id": 2, "bbox": [1, 2, 3, 4]}]',
            "COCO results of 2 pictures",
        ),
        ("a.txt", "3 0.5 0.5 0.25 0.5", "class 3, but classes.txt has 2, from 0 on"),
        ("a.txt", "2 0.5 0.5 0.25 0.5", "class 2, but classes.txt has 2, from 0 on"),
        ("a.txt", "0 0.9 0.5 0.4 0.5", "leaves the picture"),
        ("A.txt", "0 0.5 0.5 0.25 0.5", "boxes for no picture"),
        ("000000.txt", f"0 2 Car 0 0 0 1 2 30 40{REST}", "no picture of frame 0"),
    ],
)
def test_labels_that_do_not_fit_the_pictures_are_refused(tmp_path, name, content, why):
    folder = pictures(tmp_path / "own", "a.png", "b_1.png")
    (folder / "classes.txt").write_text("car\nperson\n")
    (folder / name).write_text(content)
    message = refusal(folder_samples, folder)
    assert message.startswith(str(folder / name))
    assert why in message


# Folders to train on


def test_a_plain_folder_trains(tmp_path, tiny_parameters):
    names = ("b.png", "a.png", "sub/c.png", "sub/deep.jpg")
    folder = pictures(tmp_path / "own", *names)
    p = tiny_parameters(
        which="hyperprior", dataset="folder", data_root=str(folder), train_size_p1=0.5
    )
    train, test = load_splits(p)
    assert train.ids + test.ids == ["a", "b", "sub/c", "sub/deep"]
    assert len(train) == 2
    (folder / "readme.txt").write_text("Photographs of mine")
    assert len(load_splits(p)[0]) == 2
    with pytest.raises(ValueError, match=r"readme\.txt: boxes for no picture"):
        load_splits(p.model_copy(update={"which": "roi_vbr"}))
    (folder / "readme.txt").unlink()
    (folder / "splits").mkdir()
    (folder / "splits" / "train.txt").write_text("sub/c\nb\n")
    (folder / "splits" / "test.txt").write_text("a\n")
    p = p.model_copy(update={"train_size_p1": None})
    train, test = load_splits(p)
    assert (train.ids, test.ids) == (["b", "sub/c"], ["a"])
    (folder / "sub" / "cut.png").write_bytes((folder / "a.png").read_bytes()[:20])
    with pytest.raises(ValueError, match=r"cut\.png: not a readable picture"):
        load_splits(p)


@pytest.mark.parametrize("separator", [",", ", ", " , "])
def test_unlabelled_folders(tmp_path, monkeypatch, separator):
    one = pictures(tmp_path / "one", "a.png", "sub/b.png", "._a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    pictures(tmp_path / "two", "c.png")
    assert [s.id for s in unlabelled_samples(f"{one}{separator}~/two")] == [
        "one/a.png",
        "one/sub/b.png",
        "two/c.png",
    ]


def test_unlabelled_folders_of_one_name_have_ids_of_their_own(tmp_path):
    one, two = (pictures(tmp_path / cam / "images", "1.png") for cam in ("left", "right"))
    third = pictures(tmp_path / "other", "1.png")
    ids = [s.id for s in unlabelled_samples(f"{one},{two},{third}")]
    assert ids == ["left/images/1.png", "right/images/1.png", "other/1.png"]


def test_unlabelled_folders_with_a_mistake(tmp_path):
    folder = pictures(tmp_path / "one", "a.png")
    assert "an empty name among the folders" in refusal(unlabelled_samples, f"{folder},")
    for again in (folder, folder.parent, folder / ".." / "one"):
        assert "a.png: in two of the" in refusal(unlabelled_samples, f"{folder}, {again}")
    assert refusal(unlabelled_samples, f"{tmp_path}/no").startswith(
        f"{tmp_path}/no: no pictures here"
    )
    (folder / "cut.png").write_bytes(b"")
    assert re.search(r"cut\.png: not a readable", refusal(unlabelled_samples, str(folder)))
