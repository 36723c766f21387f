"""roilib.measurements: every point once, in order, and again after an interruption without measuring what is known."""

import json

import pytest

from roilib import measurements
from roilib.codec import load_codec
from roilib.datasets import RoiDataset, kitti_samples
from roilib.evaluation import evaluate
from roilib.measurements import measure, tasks

PEERS = {"x264 ultrafast": {"quality": [30, 40], "qoffset": [0.0, -0.2]}, "jpeg": {"quality": [50]}}


@pytest.fixture(scope="module")
def points(vbr_run, tiny_kitti):
    return tasks([vbr_run], RoiDataset(kitti_samples(tiny_kitti)[:2]), [0.002, 0.02], [0.5, 0.9], PEERS)


def test_points_are_all_pictures_at_all_settings_in_order(points, vbr_run, tiny_kitti, tmp_path):
    assert len(points) == 2 * (4 + 4 + 1)
    records = [record for record, _ in measure(points, tmp_path, workers=2)]
    plain = [record for record, _ in evaluate(load_codec(vbr_run.weights), RoiDataset(kitti_samples(tiny_kitti)[:2]), [0.002, 0.02], [0.5, 0.9])]
    assert records[:8] == plain
    assert [r["codec"] for r in records[8:]] == ["x264 ultrafast"] * 8 + ["jpeg"] * 2
    assert len(list(tmp_path.iterdir())) == len(points)


def test_a_stopped_evaluation_goes_on(points, tmp_path, monkeypatch):
    first = list(measure(points[:5], tmp_path, workers=1))
    measured = []
    original = measurements.Task.measure
    monkeypatch.setattr(measurements.Task, "measure", lambda task: measured.append(task) or original(task))
    assert list(measure(points[:7], tmp_path, workers=1))[:5] == first
    assert measured == points[5:7]


def test_damaged_files_are_made_anew(points, tmp_path):
    (wanted,) = measure(points[:1], tmp_path, workers=1)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:20])
    (again,) = measure(points[:1], tmp_path, workers=1)
    assert again[0] == wanted[0]
    assert json.loads(path.read_text())["record"] == wanted[0]


def test_other_content_is_another_point(points, vbr_run, tiny_kitti):
    keys = {point.key() for point in points}
    assert len(keys) == len(points)
    sample = points[0].sample
    moved = type(sample)(sample.id, sample.path, sample.boxes + 1, sample.labels)
    assert measurements.Task(moved, points[0].classes, points[0].knobs, points[0].weights).key() not in keys
