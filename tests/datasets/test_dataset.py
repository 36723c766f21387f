"""roilib.datasets.dataset: pictures, crops and batches."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from roilib.datasets.crops import Crops, EpochSampler
from roilib.datasets.dataset import RoiDataset, batches, load_splits, split
from roilib.datasets.images import Sample
from roilib.datasets.kitti import kitti_samples
from roilib.models.detector import load_yolo  # noqa: F401 (Ultralytics replaces Image.open)


def test_unreadable_picture_of_a_data_set(own_kitti):
    path = own_kitti / "training" / "image_2" / "000001.png"
    path.write_bytes(path.read_bytes()[:500])
    data = RoiDataset(kitti_samples(own_kitti))
    assert data[0][0].shape == (3, 96, 160)
    with pytest.raises(ValueError, match=r"^[^\n]*000001\.png: not a readable picture[^\n]*$"):
        data[1]


def test_cache_is_bounded(tiny_kitti):
    one = 3 * 96 * 160
    data = RoiDataset(kitti_samples(tiny_kitti), cache_bytes=2 * one + 1)
    first = [image.clone() for image, _, _ in data]
    assert sum(image.nbytes for image in data._cache.values()) == 2 * one
    assert all(torch.equal(a, b) for a, (b, _, _) in zip(first, data, strict=True))
    assert data[0][0] is data[0][0]
    assert data[5][0] is not data[5][0]


# Crops


def picture_file(folder, pixels, boxes=()):
    """A data set of one picture with these pixels (H, W, 3) and boxes."""
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "a.png")
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return RoiDataset([Sample("a", folder / "a.png", boxes, np.zeros(len(boxes), np.int64))])


def test_any_visible_part_of_an_object_stays(tmp_path):
    white = np.zeros((64, 400, 3))
    box = (20, 24, 380, 40)  # wider than any crop: both its corners are outside
    white[24:40, 20:380] = 255
    crops = Crops(picture_file(tmp_path, white, [box]), 64)
    for epoch in range(20):
        item = crops[epoch, 0]
        np.testing.assert_array_equal(item["roi_mask"], item["x"][:1] > 127)
        assert item["roi_mask"].any()


def test_boxes_follow_the_crop(tmp_path):
    black = np.zeros((64, 150, 3))
    places = [(3, 5, 20, 20), (60, 30, 90, 60), (140, 0, 150, 64)]
    for x0, y0, x1, y1 in places:
        black[y0:y1, x0:x1] = 255
    crops, seen = Crops(picture_file(tmp_path, black, places), 128), set()
    for epoch in range(20):
        item = crops[epoch, 0]
        boxes = item["boxes"]
        seen.add(len(boxes))
        assert (
            (boxes[:, 2:] > boxes[:, :2])
            & (boxes >= 0).view(-1, 2, 2)[:, 0]
            & (boxes <= 128).view(-1, 2, 2)[:, 1]
        ).all()
        np.testing.assert_array_equal(
            item["roi_mask"], item["x"][:1] > 127
        )  # twice as large, so edges stay on pixels
    assert len(seen) > 1


def test_one_crop_gives_both_inputs(tiny_kitti):
    data = RoiDataset(kitti_samples(tiny_kitti))
    for i in range(6):
        item = Crops(data, 64, 64)[3, i]
        assert torch.equal(item["x"], item["detector_x"])
        larger = Crops(data, 64, 128)[3, i]
        assert torch.equal(larger["x"], item["x"])
        assert torch.equal(larger["detector_x"], Crops(data, 128)[3, i]["x"])


def test_crop_is_a_window_of_the_picture(tiny_kitti):
    data = RoiDataset(kitti_samples(tiny_kitti))
    window = Crops(data, 96)[1, 0]["x"]  # side min(H, W) = 96: nothing is resized
    picture = data[0][0].as_subclass(torch.Tensor)
    assert any(torch.equal(window, picture[:, :, left : left + 96]) for left in range(65))


def test_shrinking_does_not_alias(tmp_path):
    board = np.indices((256, 320)).sum(0) % 2 * 255
    item = Crops(picture_file(tmp_path, np.repeat(board[..., None], 3, 2)), 64, 32)[1, 0]
    for name in ("x", "detector_x"):
        inner = item[name][:, 1:-1, 1:-1].float()
        assert (inner - 127.5).abs().max() < 8


def test_training_crops_move_and_test_crops_do_not(tiny_kitti, tiny_parameters):
    p, data = tiny_parameters(), RoiDataset(kitti_samples(tiny_kitti))

    def epochs(train):
        loader = batches(data, p, train)
        for epoch in (1, 2):
            loader.batch_sampler.epoch = epoch
            yield torch.cat([batch["x"] for batch in loader])

    first, second = epochs(train=False)
    assert torch.equal(first, second)
    first, second = epochs(train=True)
    assert not torch.equal(first, second)


def test_crops_depend_on_seed_epoch_and_index_alone(tiny_kitti):
    data = RoiDataset(kitti_samples(tiny_kitti))
    one, again, other = (
        Crops(data, 64),
        Crops(RoiDataset(data.samples), 64),
        Crops(data, 64, seed=1),
    )
    places = [(epoch, i) for epoch in (1, 2) for i in range(6)]
    expected = {place: one[place]["x"] for place in places}
    torch.rand(3), np.random.random(3)
    assert all(torch.equal(again[place]["x"], expected[place]) for place in reversed(places))
    assert any(not torch.equal(other[place]["x"], expected[place]) for place in places)
    assert any(not torch.equal(expected[1, i], expected[2, i]) for i in range(6))


def test_processes_do_not_change_the_batches(tiny_kitti, tiny_parameters):
    data = RoiDataset(kitti_samples(tiny_kitti))
    seen = []
    for count in (0, 2):
        loader = batches(
            data,
            tiny_parameters(which="hyperprior_with_obj_features", num_workers=count),
            train=True,
        )
        loader.batch_sampler.epoch = 3
        seen.append(list(loader))
    for here, there in zip(*seen, strict=True):
        assert set(here) == {"x", "boxes", "roi_mask", "detector_x"}
        assert all(torch.equal(here[name], there[name]) for name in ("x", "roi_mask", "detector_x"))
        assert all(torch.equal(a, b) for a, b in zip(here["boxes"], there["boxes"], strict=True))


def test_sampler_shuffles_by_epoch_and_loses_nothing():
    sampler = EpochSampler(7, 3, seed=0, shuffle=True)
    sampler.epoch = 1
    first, again = list(sampler), list(sampler)
    sampler.epoch = 2
    second = list(sampler)
    assert len(sampler) == len(first) == 3
    assert first == again
    assert [i for b in first for _, i in b] != [i for b in second for _, i in b]
    for epoch, order in ((1, first), (2, second)):
        assert sorted(place for batch in order for place in batch) == [(epoch, i) for i in range(7)]
    assert list(EpochSampler(3, 2, seed=0, shuffle=False)) == [[(0, 0), (0, 1)], [(0, 2)]]


def test_the_detectors_input_only_where_it_is_needed(tiny_kitti, tiny_parameters):
    data = RoiDataset(kitti_samples(tiny_kitti))
    plain = next(iter(batches(data, tiny_parameters(), train=False)))
    assert set(plain) == {"x", "boxes", "roi_mask"}
    assert plain["x"].dtype == torch.uint8


# Splits


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 6), (0.5, 3), (None, 5)])
def test_a_share_of_the_sorted_ids_trains(tiny_kitti, share, count):
    train, test = split(kitti_samples(tiny_kitti), share, tiny_kitti)
    assert [s.id for s in train] + [s.id for s in test] == [f"{i:06d}" for i in range(6)]
    assert len(train) == count


def test_of_several_pictures_one_tests_by_default(tiny_kitti):
    samples = kitti_samples(tiny_kitti)
    counts = [len(split(samples[:n], None, tiny_kitti)[1]) for n in range(4)]
    assert counts == [0, 0, 1, 1]
    assert len(split(samples * 10, None, tiny_kitti)[1]) == 3


def test_the_roots_own_splits(own_kitti):
    (own_kitti / "splits").mkdir()
    for part, ids in (("train", "000001\n"), ("test", "000000\n")):
        (own_kitti / "splits" / f"{part}.txt").write_text(ids)
    samples = kitti_samples(own_kitti)
    train, test = split(samples, None, own_kitti)
    assert ([s.id for s in train], [s.id for s in test]) == (["000001"], ["000000"])
    first, _ = split(samples, 0.5, own_kitti)  # a share that is given wins
    assert [s.id for s in first] == ["000000"]
    (own_kitti / "splits" / "test.txt").write_text("000000\n000009\n")
    with pytest.raises(ValueError, match=r"test\.txt.*000009"):
        split(samples, None, own_kitti)
    (own_kitti / "splits" / "test.txt").write_text("000001\n")
    with pytest.raises(ValueError, match=r"test\.txt.*000001 is in train"):
        split(samples, None, own_kitti)
    (own_kitti / "splits" / "test.txt").unlink()
    with pytest.raises(ValueError, match=r"test\.txt"):
        split(samples, None, own_kitti)


def test_ids_with_spaces_are_split(own_kitti):
    for folder, ending in (("image_2", ".png"), ("label_2", ".txt")):
        path = own_kitti / "training" / folder / f"000001{ending}"
        path.rename(path.with_stem("IMG 1"))
    (own_kitti / "splits").mkdir()
    (own_kitti / "splits" / "train.txt").write_text("000000\n")
    (own_kitti / "splits" / "test.txt").write_bytes(b"\r\n  IMG 1 \r\n")
    _, test = split(kitti_samples(own_kitti), None, own_kitti)
    assert [s.id for s in test] == ["IMG 1"]


def test_unlabelled_pictures_train(tiny_kitti, tiny_parameters, tmp_path):
    shutil.copy(tiny_kitti / "training" / "image_2" / "000000.png", tmp_path / "more.png")
    train, test = load_splits(tiny_parameters(unlabelled=str(tmp_path)))
    assert (train.ids[4:], len(test)) == ([f"{tmp_path.name}/more.png"], 2)
    assert len(train[4][1]) == 0
