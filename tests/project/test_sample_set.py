"""prepare: complete or not there."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import prepare
from prepare import make_drive, make_sample_set, make_streets
from roilib.datasets.dataset import RoiDataset, split
from roilib.datasets.kitti import kitti_samples


def files(root):
    return {
        path.relative_to(root).as_posix(): path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    """A sample set of one scene, and the files that were there when its folder appeared."""
    root = tmp_path_factory.mktemp("samples") / "sample"
    with ThreadPoolExecutor() as pool:
        job = pool.submit(make_sample_set, root, scenes=1)
        while not root.exists() and not job.done():
            time.sleep(0.01)
        appeared = files(root)
        job.result()
    return root, appeared


@pytest.mark.slow
def test_the_folder_appears_complete_and_alone(small_set):
    root, appeared = small_set
    pictures = {f"training/image_2/{name}" for name in ("000000.png", "bus.jpg", "zidane.jpg")}
    labels = {f"training/label_2/{name}.txt" for name in ("000000", "bus", "zidane")}
    assert appeared.keys() == pictures | labels | {"splits/train.txt", "splits/test.txt"}
    assert [path.name for path in root.parent.iterdir()] == ["sample"]


@pytest.mark.slow
def test_it_is_a_kitti_data_set(small_set):
    root, _ = small_set
    samples = kitti_samples(root)
    train, test = (RoiDataset(part) for part in split(samples, None, root))
    assert ([s.id for s in train.samples], [s.id for s in test.samples]) == (
        ["bus"],
        ["000000", "zidane"],
    )
    assert test[0][0].shape == (3, 375, 1242)
    for image, boxes, _ in [*train, *test]:
        assert len(boxes) > 0
        assert (boxes[:, 2:] <= torch.tensor(image.shape[:0:-1])).all()


@pytest.mark.slow
def test_streets_are_the_first_frames_of_their_seeds(small_set, tmp_path):
    root = make_streets(tmp_path / "streets", 1, seed=0)
    (picture,) = (root / "training" / "image_2").iterdir()
    assert picture.name == "000000.png"
    assert (
        picture.read_bytes() == (small_set[0] / "training" / "image_2" / "000000.png").read_bytes()
    )
    assert make_streets(root, 1, seed=0) == root
    with pytest.raises(ValueError, match="has 1 of 2 frames"):
        make_streets(root, 2)


def test_what_is_something_else_is_named(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match=rf"{root.name}: is there already, and no sample set"):
            make_sample_set(root)
        with pytest.raises(ValueError, match=rf"{root.name}: has 0 of 2 frames"):
            make_drive(root, 2)
    for wrong in (
        lambda: make_drive(tmp_path / "a", 0),
        lambda: make_streets(tmp_path / "a", -2),
        lambda: make_drive(tmp_path / "a", 1, seed=-1),
    ):
        with pytest.raises(ValueError, match="at least 1 frame"):
            wrong()


@pytest.mark.slow
def test_what_exists_is_not_made_again(small_set):
    root, appeared = small_set
    assert make_sample_set(root) == make_drive(root, 3) == root
    assert files(root) == appeared
    with pytest.raises(ValueError, match="has 3 of 100 frames"):
        make_drive(root, 100)


@pytest.fixture
def unrendered(monkeypatch):
    """Frames that are empty files, made at once."""

    def write(root, frames):
        for _, _, name in frames:
            (root / "training" / "image_2" / f"{name}.png").touch()

    monkeypatch.setattr(prepare, "_write_frames", write)


def test_frames_of_another_kind_or_seed_are_refused(unrendered, tmp_path):
    root = make_drive(tmp_path / "drive", 3, seed=7)
    assert make_drive(root, 3, seed=7) == make_drive(root, 2, seed=7) == make_drive(root, 3) == root
    with pytest.raises(ValueError, match=r"drive: has a drive of seed 7, not a drive of seed 9; "):
        make_drive(root, 3, seed=9)
    with pytest.raises(ValueError, match=r"has a drive of seed 7, not streets of seed 200; name"):
        make_streets(root, 2, seed=200)
    with pytest.raises(ValueError, match="has a drive of seed 7, not streets; "):
        make_streets(root, 2)
    with pytest.raises(ValueError, match="has 3 of 4 frames"):
        make_drive(root, 4, seed=7)
    with pytest.raises(ValueError, match="drive: is there already, and no sample set"):
        make_sample_set(root)


def test_frames_of_an_earlier_version_are_kept(unrendered, tmp_path):
    root = make_drive(tmp_path / "drive", 3, seed=7)
    (root / prepare.RENDERED).unlink()
    assert make_drive(root, 3, seed=9) == make_streets(root, 2) == make_sample_set(root) == root
