"""roilib.evaluation.cache: every point once, in order; a stopped evaluation goes on."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, on_gpu, street
from PIL import Image
from ultralytics import YOLO

from roilib.codecs.roic import load_codec
from roilib.datasets.dataset import RoiDataset
from roilib.datasets.folder import folder_samples
from roilib.datasets.kitti import kitti_samples
from roilib.evaluation import cache
from roilib.evaluation.cache import detector_files, measure, tasks
from roilib.evaluation.evaluate import evaluate, trained_settings
from roilib.utils import provenance
from roilib.utils.pretrained import PRETRAINED_DETECTOR, pretrained

CONVENTIONAL = {
    "x264 ultrafast": {"quality": [30, 40], "qoffset": [0.0, -0.2]},
    "jpeg": {"quality": [50]},
}


WORKING = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from time import sleep
from roilib.utils.processes import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), end_with_parent)
    jobs = [pool.submit(sleep, 1) for _ in range(4)]
    sleep(3)
    print(*pool._processes, flush=True)
    sleep(60)
"""


def alive(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def points(vbr_run, tiny_kitti):
    return tasks(
        [vbr_run],
        RoiDataset(kitti_samples(tiny_kitti)[:2]),
        [0.002, 0.02],
        [0.5, 0.9],
        CONVENTIONAL,
    )


def test_a_setting_that_is_given_twice_is_measured_once(tiny_kitti):
    data = RoiDataset(kitti_samples(tiny_kitti)[:2])
    twice = {"lmbdas": [0.003, 0.012, 0.003], "alphas": [0.5, 0.5], "weights": ["shipped"] * 2}
    points = tasks([], data, conventional={"jpeg": {"quality": [50, 50]}}, **twice)
    assert [point.setting.get("lmbda") for point in points] == [0.003] * 2 + [0.012] * 2 + [
        None
    ] * 2


@pytest.mark.slow
def test_points_are_all_pictures_at_all_settings_in_order(points, vbr_run, tiny_kitti, tmp_path):
    assert len(points) == 2 * (4 + 4 + 1)
    records = [record for record, _ in measure(points, tmp_path, workers=2)]
    plain = [
        record
        for record, _ in evaluate(
            load_codec(vbr_run.weights),
            RoiDataset(kitti_samples(tiny_kitti)[:2]),
            trained_settings(vbr_run.parameters, [0.002, 0.02], [0.5, 0.9]),
        )
    ]
    assert records[:8] == plain
    assert [r["codec"] for r in records[8:]] == ["x264 ultrafast"] * 8 + ["jpeg"] * 2
    assert len(list(tmp_path.iterdir())) == len(points)


def test_a_stopped_evaluation_goes_on(points, tmp_path, monkeypatch):
    first = list(measure(points[:5], tmp_path, workers=1))
    measured = []
    original = cache.Task.measure
    monkeypatch.setattr(cache.Task, "measure", lambda task: measured.append(task) or original(task))
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
    assert (
        cache.Task(moved, points[0].classes, points[0].setting, points[0].weights).key() not in keys
    )
    renamed = type(sample)(sample.id, sample.path, sample.boxes, sample.labels + 1)
    assert (
        cache.Task(renamed, points[0].classes, points[0].setting, points[0].weights).key()
        not in keys
    )
    other = replace(sample, coder_boxes=sample.boxes)
    assert replace(points[0], sample=other).key() not in keys


@on_gpu
def test_a_point_is_measured_on_a_gpu(points):
    detectors = (pretrained(PRETRAINED_DETECTOR),)
    (record, _), (expected, _) = (
        replace(points[0], device=device, detectors=detectors).measure()
        for device in ("cuda", "cpu")
    )
    assert record.keys() == expected.keys()
    assert record["psnr"] == pytest.approx(expected["psnr"], abs=0.2)
    assert record["bytes"] == pytest.approx(expected["bytes"], rel=0.05)


def test_roi_settings_need_boxes(tiny_kitti, vbr_run):
    pictures = RoiDataset([replace(s, boxes=s.boxes[:0]) for s in kitti_samples(tiny_kitti)[:2]])
    message = "image_2: no picture has boxes, without which alpha 0.9 has no effect; boxes=detector"
    with pytest.raises(ValueError, match=message):
        tasks([vbr_run], pictures, [0.002], [0.5, 0.9])
    with pytest.raises(ValueError, match=r"without which qoffset -0.2 has no effect"):
        tasks([], pictures, conventional=CONVENTIONAL)
    assert len(tasks([vbr_run], pictures, [0.002], [0.5], {"jpeg": {"quality": [50]}})) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lmbdas": [5.0]}, "lmbda is a number from"),
        ({"lmbdas": ["a"]}, "lmbda is a number from"),
        ({"alphas": [0.5, 2]}, "alpha is a number from"),
        ({"conventional": {"x265": {"quality": [30]}}}, "x265: a conventional codec is"),
        ({"conventional": {"jpeg": {"crf": [30]}}}, "jpeg: settings are lists of quality"),
        (
            {"conventional": {"jpeg": {"quality": 50}}},
            "jpeg: quality is a list of numbers from 0 to 100, not 50",
        ),
        (
            {"conventional": {"jpeg": {"quality": [500]}}},
            "jpeg: quality is a list of numbers from 0 to 100",
        ),
        (
            {"conventional": {"x264 fast": {"quality": [30], "qoffset": [-3]}}},
            "x264 fast: qoffset is a list of numbers from -1 to 1",
        ),
        ({}, "nothing to measure: 2 pictures, 0 settings"),
    ],
)
def test_what_cannot_be_measured_is_found_before_anything_is(tiny_kitti, more, message):
    with pytest.raises(ValueError, match=message):
        tasks([], RoiDataset(kitti_samples(tiny_kitti)[:2]), **more)


def test_a_picture_too_small_for_a_codec_is_named_before_any_is_measured(tmp_path):
    for name, side in (("a", 40), ("b", 15)):
        Image.fromarray(street(0)[:40, :side]).save(tmp_path / f"{name}.png")
    data = RoiDataset(folder_samples(tmp_path)[0])
    grid = {"quality": [30]}
    assert len(tasks([], data, conventional={"jpeg": grid, "x265 fast 4:2:0": grid})) == 4
    message = r"b\.png: x265 codes pictures of at least 16x16 pixels, not of 15x40$"
    with pytest.raises(ValueError, match=message):
        tasks([], data, conventional={"jpeg": grid, "x265 fast": grid})


def test_workers_end_with_the_process_that_started_them(tiny_kitti, tmp_path):
    script = tmp_path / "measuring.py"
    script.write_text(WORKING)
    with subprocess.Popen(
        [sys.executable, script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as parent:
        workers = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    until = time.monotonic() + 20
    while (left := [pid for pid in workers if alive(pid)]) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(workers) == 2
    assert not left


def test_other_code_or_precision_is_another_point(points, tmp_path, monkeypatch):
    ours, theirs = points[0].key(), points[-1].key()
    shutil.copytree(
        provenance.HERE, tmp_path / "roilib", ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr(provenance, "HERE", tmp_path / "roilib")
    assert (points[0].key(), points[-1].key()) == (ours, theirs)
    for module, changed in (
        ("codecs/conventional", [False, True]),
        ("codecs/video", [False, True]),
        ("entropy_models/range_coder", [True, False]),
        ("models/detector", [True, True]),
        ("metrics", [True, True]),
        ("visualization/rates", [False, False]),
    ):
        path = tmp_path / "roilib" / f"{module}.py"
        content = path.read_text()
        path.write_text(content + "# other\n")
        cache._code.cache_clear()
        assert [points[0].key() != ours, points[-1].key() != theirs] == changed
        path.write_text(content)
        cache._code.cache_clear()
    codec = cache._codec(points[0].weights, "cpu", None)
    monkeypatch.setattr(codec, "bf16", not codec.bf16)
    assert points[0].key() != ours


@pytest.fixture(scope="module")
def data(tiny_kitti):
    return RoiDataset(kitti_samples(tiny_kitti)[:2])


def test_what_detectors_find_is_kept_with_the_point(data, tmp_path, monkeypatch):
    measured, original = [], cache.Task.measure
    monkeypatch.setattr(cache.Task, "measure", lambda task: measured.append(task) or original(task))
    plain, looking = (
        tasks([], data, conventional={"jpeg": {"quality": [90]}}, detectors=d)
        for d in ((), detector_files(["shipped"]))
    )
    assert [(point.conventional, point.key()) for point in looking[:2]] == [
        (point.conventional, point.key()) for point in plain
    ]
    assert "detections" not in next(measure(plain, tmp_path, 1))[0]
    assert len(measured) == 1
    seen = [record for record, _ in measure(looking, tmp_path, 1)]
    assert [r["codec"] for r in seen] == ["jpeg"] * 2 + ["uncompressed"] * 2
    assert all(list(r["detections"]) == ["yolov8n_kitti"] for r in seen)
    assert seen[2]["objects"] == [2, 1, 1, 0]
    assert len(measured) == 1 + 4
    assert [record for record, _ in measure(looking, tmp_path, 1)] == seen
    (again, *_) = (
        record for record, _ in measure(plain, tmp_path, 1)
    )  # turned off again: nothing to do
    assert again == {k: v for k, v in seen[0].items() if k != "detections"}
    assert len(measured) == 1 + 4


def test_detectors_that_are_missing_or_have_one_name_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.pt: no such detector"):
        detector_files(["shipped", "nowhere.pt"])
    shutil.copy(pretrained(PRETRAINED_DETECTOR), tmp_path)
    with pytest.raises(ValueError, match=r"yolov8n_kitti\.pt: a second detector"):
        detector_files(["shipped", str(tmp_path / "yolov8n_kitti.pt")])


@pytest.mark.filterwarnings("ignore:.*can run code")
def test_a_detector_of_another_task_is_refused_before_anything_is_measured(tmp_path):
    YOLO("yolov8n-pose.yaml").save(tmp_path / "pose.pt")
    with pytest.raises(ValueError, match=r"pose\.pt: not a YOLO of the task detect"):
        detector_files([str(tmp_path / "pose.pt")])


def test_weights_files_are_measured_beside_runs(vbr_run, data, tmp_path):
    points = tasks([vbr_run], data, [0.012], [0.9], weights=[str(vbr_run.weights)])
    records = [record for record, _ in measure(points, tmp_path, 1)]
    assert [(r.get("run"), r.get("weights")) for r in records[::2]] == [
        (vbr_run.parameters.name, None),
        (None, str(vbr_run.weights)),
    ]
    assert len(list(tmp_path.iterdir())) == 2  # the same content
    assert [r["sha256"] for r in records[:2]] == [r["sha256"] for r in records[2:]]
    assert all(
        r["car_count"] > 0 and np.isfinite(r["car_psnr"]) and r["cyclist_psnr"] is None
        for r in records
    )
