"""Features of whole frames, cut to crops at the detector's grid."""

import pytest
import torch

from roilib.datasets.crops import GRID, Crops
from roilib.datasets.dataset import RoiDataset
from roilib.datasets.kitti import kitti_samples
from roilib.models.detector import CODEC_STRIDES, FrameFeatures, HookedDetector


@pytest.fixture(scope="module")
def detector():
    return HookedDetector()


@pytest.fixture
def data(tiny_kitti):
    return RoiDataset(kitti_samples(tiny_kitti))


def test_grid_crops_are_windows_of_the_frame_they_name(data):
    seen = set()
    for epoch in range(150):
        item = Crops(data, 64, 64, kind="grid", flip=True)[epoch, 0]
        name, mirrored, top, left = item["place"]
        assert name == data.ids[0]
        assert top % GRID == left % GRID == 0
        assert torch.equal(item["frame"][:, top : top + 64, left : left + 64], item["x"])
        picture = data[0][0].as_subclass(torch.Tensor)
        assert torch.equal(item["frame"], picture.flip(-1) if mirrored else picture)
        seen.add((mirrored, top, left))
    assert len(seen) == 2 * 2 * 4  # of frames of 96x160


def test_mirrored_crops_keep_their_boxes(data):
    for epoch in range(10):
        a, b = (Crops(data, 64, kind=kind, flip=True)[epoch, 1] for kind in ("grid", "native"))
        for item in (a, b):
            drawn = torch.zeros(1, 64, 64)
            for x0, y0, x1, y1 in item["boxes"].int().tolist():
                drawn[:, y0:y1, x0:x1] = 1
            assert torch.equal(drawn, item["roi_mask"])


def test_pictures_too_small_for_the_grid_are_named(data):
    with pytest.raises(ValueError, match=r"000000: 160x96 pixels, too small"):
        Crops(data, 128, kind="grid")[0, 0]


def test_cut_features_are_those_of_the_frame(detector, data):
    items = [
        Crops(data, 64, 64, kind="grid", flip=True)[epoch, i]
        for epoch, i in ((1, 0), (2, 0), (1, 3))
    ]
    frames, places = [item["frame"] for item in items], [item["place"] for item in items]
    features = FrameFeatures(detector)
    cut = features(frames, places, 64)
    for k, (frame, (_, _, top, left)) in enumerate(zip(frames, places, strict=True)):
        whole = detector.codec_features(frame[None].float() / 255)
        for layer, f, s in zip(cut, whole, CODEC_STRIDES, strict=True):
            window = f[0, :, top // s : top // s + 64 // s, left // s : left // s + 64 // s]
            torch.testing.assert_close(layer[k], window, rtol=1e-4, atol=1e-4)


def test_the_detector_looks_once_at_a_frame(detector, data, monkeypatch):
    calls = []
    monkeypatch.setattr(
        HookedDetector, "codec_features", counted(HookedDetector.codec_features, calls)
    )
    crops, features = Crops(data, 64, 64, kind="grid", flip=True), FrameFeatures(detector)
    for epoch in range(12):
        item = crops[epoch, 0]
        features([item["frame"]], [item["place"]], 64)
    assert len(calls) == 2  # the frame and its mirror image
    small = FrameFeatures(detector, cache_bytes=0)
    for _ in range(2):
        small([item["frame"]], [item["place"]], 64)
    assert len(calls) == 4


def counted(function, calls):
    def wrapped(self, x):
        calls.append(x.shape)
        return function(self, x)

    return wrapped
