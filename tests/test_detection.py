"""roilib.detection: matching and average precision."""

import numpy as np
import pytest
import torch
from torch import Tensor

from roilib.datasets import KITTI_CLASSES, RoiDataset, kitti_samples
from roilib.detection import GROUP_NAMES, average_precision, grouped, matches


@pytest.fixture
def labelled(tiny_kitti):
    data = RoiDataset(kitti_samples(tiny_kitti))
    perfect = [
        torch.cat([boxes.as_subclass(Tensor), torch.full((len(boxes), 1), 0.9), grouped(labels, KITTI_CLASSES)[:, None].float()], 1)
        for _, boxes, labels in data
    ]
    return data, perfect


def test_perfect_detections_reach_one(labelled):
    data, perfect = labelled
    result = average_precision(perfect, data)
    assert set(result) == {"agnostic", "Car", "Pedestrian", "mAP"}
    assert all(value == pytest.approx(0.995, abs=0.006) for value in result.values())  # 101-point integration


def test_no_detections_and_wrong_places_are_zero(labelled):
    data, perfect = labelled
    assert average_precision([f[:0] for f in perfect], data)["agnostic"] == 0
    assert average_precision([f + torch.tensor([200.0, 0, 200, 0, 0, 0]) for f in perfect], data)["mAP"] == 0


def test_wrong_class_counts_class_agnostically_only(labelled):
    data, perfect = labelled
    swapped = [f.clone() for f in perfect]
    for f in swapped:
        f[:, 5] = 1 - f[:, 5]
    result = average_precision(swapped, data)
    assert result["agnostic"] > 0.98
    assert result["mAP"] == 0


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
    assert [GROUP_NAMES[i] if i >= 0 else None for i in ids] == ["Pedestrian", "Car", None, "Cyclist"]


def test_lower_confidence_of_false_alarms_helps(labelled):
    data, perfect = labelled

    def with_alarms(confidence):
        alarm = torch.tensor([[130.0, 0, 150, 20, confidence, 0]])
        return average_precision([torch.cat([f, alarm]) for f in perfect], data)["agnostic"]

    assert np.isclose(with_alarms(0.1), 0.995, atol=0.006)
    assert with_alarms(0.95) < 0.8
