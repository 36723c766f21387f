"""roilib.evaluation.detection: matching and average precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou
from ultralytics.utils.metrics import ap_per_class

from roilib.codecs.conventional import ConventionalCodec
from roilib.datasets.dataset import RoiDataset
from roilib.datasets.kitti import KITTI_CLASSES, kitti_samples
from roilib.evaluation.detection import (
    GROUP_NAMES,
    THRESHOLDS,
    average_precisions,
    grouped,
    matches,
    objects,
    scored,
    with_boxes,
)
from roilib.evaluation.evaluate import evaluate
from roilib.models.detector import HookedDetector


@pytest.fixture
def labelled(tiny_kitti):
    data = RoiDataset(kitti_samples(tiny_kitti))
    perfect = [
        torch.cat(
            [
                boxes.as_subclass(Tensor),
                torch.full((len(boxes), 1), 0.9),
                grouped(labels, KITTI_CLASSES)[:, None].float(),
            ],
            1,
        )
        for _, boxes, labels in data
    ]
    return data, perfect


def average_precision(found, data):
    """`average_precisions` of detections of whole pictures, each counted once."""
    truth = [
        (boxes.as_subclass(Tensor), grouped(labels, data.classes)) for _, boxes, labels in data
    ]
    rows = [scored(f, boxes, groups) for f, (boxes, groups) in zip(found, truth, strict=True)]
    counts = [objects(groups) for _, groups in truth]
    values = average_precisions(rows, counts, np.ones((1, len(rows))))
    return {name: float(value[0]) for name, value in values.items()}


def test_encoders_get_other_boxes_than_those_measured(tiny_kitti, tmp_path):
    labelled = RoiDataset(kitti_samples(tiny_kitti)[:2])
    (tmp_path / "000000.json").write_text("[[10, 20, 30, 60, 0.5]]")
    (tmp_path / "000001.json").write_text("[]")
    given = with_boxes(labelled, str(tmp_path))
    codec, settings = ConventionalCodec("x264 ultrafast"), [{"quality": 35, "qoffset": -0.3}]
    for before, after in zip(labelled.samples, given.samples, strict=True):
        assert np.array_equal(before.boxes, after.boxes)
    measured = [record for record, _ in evaluate(codec, given, settings)]
    labels = [record for record, _ in evaluate(codec, labelled, settings)]
    assert [r["roi_count"] for r in measured] == [r["roi_count"] for r in labels]
    assert all(a["roi_psnr"] < b["roi_psnr"] for a, b in zip(measured, labels, strict=True))
    with pytest.raises(ValueError, match=r"no 000002\.txt or 000002\.json"):
        with_boxes(RoiDataset(kitti_samples(tiny_kitti)), str(tmp_path))


def test_without_labels_quality_is_measured_in_what_encoders_get(tiny_kitti, monkeypatch):
    monkeypatch.setattr(HookedDetector, "regions", lambda *_: np.array([[8.0, 16, 24, 32]]))
    plain = [replace(s, boxes=s.boxes[:0]) for s in kitti_samples(tiny_kitti)[:1]]
    (sample,) = with_boxes(RoiDataset(plain), "detector").samples
    assert sample.boxes.tolist() == sample.coder_boxes.tolist() == [[8, 16, 24, 32]]


def test_perfect_detections_reach_one(labelled):
    data, perfect = labelled
    result = average_precision(perfect, data)
    assert set(result) == {"agnostic_ap50", "car_ap50", "pedestrian_ap50", "map50", "map50_95"}
    assert all(
        value == pytest.approx(0.995, abs=0.006) for value in result.values()
    )  # 101-point integration


def test_no_detections_and_wrong_places_are_zero(labelled):
    data, perfect = labelled
    assert average_precision([f[:0] for f in perfect], data)["agnostic_ap50"] == 0
    assert (
        average_precision([f + torch.tensor([200.0, 0, 200, 0, 0, 0]) for f in perfect], data)[
            "map50"
        ]
        == 0
    )


def test_wrong_class_counts_class_agnostically_only(labelled):
    data, perfect = labelled
    swapped = [f.clone() for f in perfect]
    for f in swapped:
        f[:, 5] = 1 - f[:, 5]
    result = average_precision(swapped, data)
    assert result["agnostic_ap50"] > 0.98
    assert result["map50"] == 0


def test_second_hit_of_an_object_is_false():
    box = torch.tensor([[0.0, 0, 10, 10]])
    found = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 9]])
    assert matches(found, box, torch.ones(2, 1, dtype=torch.bool), 0.5).tolist() == [True, False]


def test_threshold_is_the_overlap():
    box, found = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 6]])
    same = torch.ones(1, 1, dtype=torch.bool)
    assert matches(found, box, same, 0.59).tolist() == [True]
    assert matches(found, box, same, 0.61).tolist() == [False]


def test_classes_of_both_vocabularies_meet():
    names = {0: "person", 1: "Van", 2: "zebra", 3: "bicycle"}
    ids = grouped(torch.tensor([0, 1, 2, 3]), names).tolist()
    assert [GROUP_NAMES[i] if i >= 0 else None for i in ids] == [
        "Pedestrian",
        "Car",
        None,
        "Cyclist",
    ]


def test_lower_confidence_of_false_alarms_helps(labelled):
    data, perfect = labelled

    def with_alarms(confidence):
        alarm = torch.tensor([[130.0, 0, 150, 20, confidence, 0]])
        return average_precision([torch.cat([f, alarm]) for f in perfect], data)["agnostic_ap50"]

    assert np.isclose(with_alarms(0.1), 0.995, atol=0.006)
    assert with_alarms(0.95) < 0.8


@pytest.fixture(scope="module")
def noisy():
    """`scored` rows and counts of 12 random pictures, some empty, and what Ultralytics needs."""
    random = torch.Generator().manual_seed(0)
    rows, counts, raw = [], [], []
    for i in range(12):
        corners = torch.rand(i % 5, 2, generator=random) * 80
        boxes, groups = (
            torch.cat([corners, corners + 15], 1),
            torch.randint(0, 3, (i % 5,), generator=random),
        )
        near = boxes.repeat(2, 1) + 4 * torch.randn(2 * len(boxes), 4, generator=random)
        found = torch.cat(
            [near, torch.rand(6, 4, generator=random) * 20 + torch.tensor([0, 0, 30, 30])]
        )
        score = (torch.randperm(90_000, generator=random)[: len(found)] * 12 + i) * 1e-6
        found = torch.cat(
            [found, score[:, None], torch.randint(0, 3, (len(found), 1), generator=random)], 1
        )
        rows.append(scored(found, boxes, groups))
        counts.append(objects(groups))
        raw.append((found, boxes, groups))
    return rows, counts, raw


def ultralytics_ap(raw, weights, group, threshold):
    """Their AP of the pictures, each repeated as often as its weight says."""
    hits, scores, number = [], [], 0
    for (found, boxes, groups), times in zip(raw, weights, strict=True):
        found = found[found[:, 4].argsort(descending=True)]
        found = found if group is None else found[found[:, 5] == group]
        boxes = boxes if group is None else boxes[groups == group]
        for _ in range(int(times)):
            hits.append(
                matches(
                    found, boxes, torch.ones(len(found), len(boxes), dtype=torch.bool), threshold
                )
            )
            scores.append(found[:, 4].numpy())
            number += len(boxes)
    hits, scores = np.concatenate(hits), np.concatenate(scores)
    return ap_per_class(hits[:, None], scores, np.zeros(len(hits)), np.zeros(number))[5].mean()


def test_average_precision_of_any_resample_is_ultralytics(noisy):
    rows, counts, raw = noisy
    weights = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), 5)
    found = average_precisions(rows, counts, weights)
    for r, times in enumerate(weights):
        assert found["agnostic_ap50"][r] == pytest.approx(
            ultralytics_ap(raw, times, None, 0.5), abs=1e-6
        )
        by_class = [
            [ultralytics_ap(raw, times, group, t) for t in THRESHOLDS] for group in range(3)
        ]
        assert found["car_ap50"][r] == pytest.approx(by_class[0][0], abs=1e-6)
        assert found["map50_95"][r] == pytest.approx(np.mean(by_class), abs=1e-6)
    assert len(set(np.round(found["map50_95"], 6))) > 1


def test_rows_say_which_thresholds_are_hit(noisy):
    _, _, raw = noisy
    found, boxes, groups = raw[4]
    (best,) = scored(
        torch.cat([boxes[:1], torch.tensor([[0.5, (groups[0] + 1) % 3]])], 1), boxes[:1], groups[:1]
    )
    assert best == [500_000, (int(groups[0]) + 1) % 3, 2 ** len(THRESHOLDS) - 1, 0]
    for row, one in zip(
        scored(found, boxes, groups), found[found[:, 4].argsort(descending=True)], strict=True
    ):
        assert (row[2] & 1) <= bool((box_iou(one[None, :4], boxes) >= 0.5).any())


def test_a_resample_without_a_class_is_the_mean_of_the_others(noisy):
    rows, counts, _ = noisy
    weights = np.array([[float(count[3] == 0) for count in counts]])
    found = average_precisions(rows, counts, weights)
    assert np.isnan(found["cyclist_ap50"][0])
    assert found["map50"][0] == pytest.approx(
        (found["car_ap50"][0] + found["pedestrian_ap50"][0]) / 2
    )
    assert np.isnan(average_precisions(rows, counts, np.zeros((1, 12)))["map50"][0])
