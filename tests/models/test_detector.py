"""roilib.models.detector: every module hooked, nothing kept, frozen."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refusal
from PIL import Image
from torchvision.ops import box_iou
from ultralytics import RTDETR, YOLO

from roilib.datasets.dataset import RoiDataset, split
from roilib.datasets.kitti import kitti_samples
from roilib.models.detector import (
    CODEC_CHANNELS,
    CODEC_LAYERS,
    CODEC_STRIDES,
    GREY,
    HookedDetector,
    load_yolo,
)


@pytest.fixture(scope="module")
def detector():
    return HookedDetector()


def picture(height, width, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def no_collector():
    """Garbage that only the cycle collector would find stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_every_module_has_one_hook_that_fires_once(detector):
    modules = list(detector.yolo.model)
    assert [len(module._forward_hooks) for module in modules] == [1] * 23
    calls = []
    counters = [
        module.register_forward_hook(lambda module, args, output, i=i: calls.append(i))
        for i, module in enumerate(modules)
    ]
    for _ in range(2):
        calls.clear()
        features, _ = detector(picture(64, 96))
        assert calls == list(range(23))
        assert len(features) == 23
    for counter in counters:
        counter.remove()


def test_features_are_the_modules_outputs(detector):
    features, detections = detector(picture(64, 96))
    modules = detector.yolo.model
    with torch.no_grad():
        assert torch.equal(features[0], modules[0](picture(64, 96)))
        assert torch.equal(features[8], modules[8](features[7]))
        assert torch.equal(features[21], modules[21](features[20]))
    assert torch.equal(features[22][0], detections)
    assert detections.shape == (1, 4 + len(detector.names), 8 * 12 + 4 * 6 + 2 * 3)


def test_the_codecs_layers(detector):
    assert (CODEC_LAYERS, CODEC_CHANNELS, CODEC_STRIDES) == (
        (15, 18, 21),
        (64, 128, 256),
        (8, 16, 32),
    )
    features, _ = detector(picture(64, 96))
    assert [tuple(features[i].shape) for i in (15, 18, 21)] == [
        (1, 64, 8, 12),
        (1, 128, 4, 6),
        (1, 256, 2, 3),
    ]
    assert all(
        torch.equal(features[i], f)
        for i, f in zip(CODEC_LAYERS, detector.codec_features(picture(64, 96)), strict=True)
    )


def test_any_frame_size(detector):
    x = picture(75, 130)
    chosen = detector.codec_features(x)
    assert [tuple(f.shape) for f in chosen] == [(1, 64, 10, 17), (1, 128, 5, 9), (1, 256, 3, 5)]
    padded = torch.full((1, 3, 96, 160), GREY)
    padded[..., :75, :130] = x
    features, _ = detector(padded)
    for i, f in zip(CODEC_LAYERS, chosen, strict=True):
        assert torch.equal(features[i][..., : f.shape[-2], : f.shape[-1]], f)


def test_pictures_of_a_batch_do_not_mix(detector):
    both = detector.codec_features(torch.cat([picture(64, 64, 0), picture(64, 64, 1)]))
    for i in range(2):
        alone = detector.codec_features(picture(64, 64, i))
        for a, b in zip(both, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, atol=1e-4, rtol=1e-4)


def test_nothing_is_held_between_calls(detector, no_collector):
    features, detections = detector(picture(64, 64))
    references = [weakref.ref(f) for f in features if torch.is_tensor(f)] + [
        weakref.ref(detections)
    ]
    assert len(references) == 23  # Detect's own output is not a tensor
    del features, detections
    assert [reference() for reference in references] == [None] * 23


def test_nothing_is_held_after_an_error(detector):
    with pytest.raises(RuntimeError):
        detector(picture(64, 64)[:, :, :50])  # the neck cannot join odd sizes
    assert detector._outputs == []
    assert len(detector(picture(64, 64))[0]) == 23


def test_freed_with_the_object(no_collector):
    own = HookedDetector()
    own(picture(64, 64))
    references = [weakref.ref(own), weakref.ref(own.yolo), weakref.ref(own.yolo.model[15])]
    del own
    assert [reference() for reference in references] == [None] * 3


def test_no_autograd_graph(detector):
    x = picture(64, 64).requires_grad_()
    features = detector.codec_features(x)
    assert not any(f.requires_grad or f.is_inference() for f in features)
    convolution = torch.nn.Conv2d(64, 1, 1)
    convolution(features[0]).square().sum().backward()
    assert convolution.weight.grad.abs().sum() > 0
    assert x.grad is None
    assert not any(p.requires_grad or p.grad is not None for p in detector.yolo.parameters())


def test_stays_in_eval_mode(detector):
    before = detector.codec_features(picture(64, 64))
    torch.nn.ModuleList([detector]).train()
    assert not any(module.training for module in detector.modules())
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, detector.codec_features(picture(64, 64)), strict=True)
    )


def test_detections_stay_inside_the_picture(detector):
    found = detector.detect(torch.cat([picture(75, 130), picture(75, 130, 1)]), confidence=0.001)
    assert [f.shape[1] for f in found] == [6, 6]
    boxes = torch.cat(found)
    assert len(boxes) > 0
    assert (boxes[:, :4] >= 0).all()
    assert (boxes[:, :4] <= torch.tensor([130, 75, 130, 75])).all()


def test_finds_the_cars_of_real_frames(detector, shared_data):
    root = shared_data / "kitti"
    data = RoiDataset(split(kitti_samples(root), None, root)[1])
    large = [((s.boxes[:, 3] - s.boxes[:, 1] > 50) & (s.labels == 0)).sum() for s in data.samples]
    found = total = 0
    for i in np.argsort(large, kind="stable")[-3:]:
        image, boxes, labels = data[i]
        detections = detector.detect(image[None].float() / 255)[0]
        cars = detections[detections[:, 5] == list(detector.names.values()).index("Car"), :4]
        wanted = boxes[(labels == 0) & (boxes[:, 3] - boxes[:, 1] > 50)]
        found += int((box_iou(wanted, cars).amax(1) > 0.5).sum())
        total += len(wanted)
    assert total >= 9
    assert found / total > 0.7


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64, 3)),
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((3, 64, 64), np.uint8),
        "street.png",
    ],
)
def test_what_is_no_picture_is_refused(detector, image):
    assert refusal(detector.regions, image) == "an image is a uint8 array (H, W, 3)"


def test_pictures_of_other_libraries_are_looked_at(detector):
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    wanted = detector.regions(image, 0.0, "Car")
    assert len(wanted)
    reversed_twice = image[..., ::-1].copy()[..., ::-1]
    for same in (Image.fromarray(image), reversed_twice, np.asfortranarray(image)):
        np.testing.assert_array_equal(detector.regions(same, 0.0, ["Car"]), wanted)


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
def test_weights_that_are_none(tmp_path, content):
    path = tmp_path / "yolo.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*yolo\.pt[^\n]*$"):
        load_yolo(path)
    assert not path.exists() or path.read_bytes() == content


def test_weights_of_something_else(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "yolo.pt")
    with pytest.raises(ValueError, match=r"^[^\n]*yolo\.pt[^\n]*$"):
        load_yolo(tmp_path / "yolo.pt")


@pytest.mark.filterwarnings("ignore:.*can run code")
@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("yolov8n-seg", "task segment, head Segment"),
        ("yolov8n-pose", "task pose, head Pose"),
        ("yolov8n-obb", "task obb, head OBB"),
        ("yolov8n-cls", "task classify, head Classify"),
        ("yolo11n-seg", "task segment, head Segment"),
        ("rtdetr-l", "task detect, head RTDETRDecoder"),
    ],
)
def test_models_of_other_tasks_are_named(tmp_path, model, kind):
    path = tmp_path / f"{model}.pt"
    (RTDETR if model.startswith("rtdetr") else YOLO)(f"{model}.yaml").save(path)
    assert refusal(HookedDetector, path) == (
        f"{path}: not a YOLO of the task detect, but one of the {kind}"
    )


@pytest.mark.filterwarnings("ignore:.*can run code")
@pytest.mark.parametrize("name", ["yolov5n.pt", "driver's.pt", "yolov3-tiny.pt"])
def test_a_name_that_ultralytics_takes_for_another_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # no such name where the path has a letter u
    Path(name).write_bytes(b"not opened")
    assert "give it another name" in refusal(HookedDetector, name)


def test_threads_share_a_detector(detector):
    sizes = [(64, 96), (96, 64), (128, 160), (64, 64)] * 3
    pictures = [picture(*size, seed) for seed, size in enumerate(sizes)]
    alone = [detector(x)[1] for x in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector, pictures))
    assert all(len(features) == 23 for features, _ in together)
    assert all(torch.equal(a, b) for a, (_, b) in zip(alone, together, strict=True))
