"""roilib.visualization.side_by_side: pictures decoded again at equal bytes."""

import numpy as np
import pandas as pd
import pytest
from conftest import trained_run

from roilib.codecs.conventional import ConventionalCodec
from roilib.codecs.roic import load_codec
from roilib.datasets.dataset import RoiDataset
from roilib.datasets.images import Sample
from roilib.datasets.kitti import kitti_samples
from roilib.evaluation.evaluate import conventional_settings, evaluate, trained_settings
from roilib.parameters import Parameters
from roilib.roi import roi_mask
from roilib.visualization import pictures
from roilib.visualization.side_by_side import (
    PLAIN,
    ZERO_HOOKS,
    allocations,
    arms,
    choose_boxes,
    closest_in_bytes,
    compare,
    strength_at,
)


@pytest.fixture(scope="module")
def data(tiny_kitti):
    return RoiDataset(kitti_samples(tiny_kitti))


@pytest.fixture(scope="module")
def records(vbr_run, data):
    """Of the first two pictures, by a roi_vbr and x264."""
    few = RoiDataset(data.samples[:2], data.classes)
    settings = trained_settings(vbr_run.parameters, [0.002, 0.01, 0.05], [0.5, 0.9])
    ours = evaluate(load_codec(vbr_run.weights), few, settings)
    grid = {"quality": [20, 30, 40], "qoffset": [0.0, -0.2]}
    settings = conventional_settings("x264 medium", grid)
    theirs = evaluate(ConventionalCodec("x264 medium"), few, settings)
    return [record for measured in (ours, theirs) for record, _ in measured]


def test_closest_in_bytes_takes_the_nearest_of_each_codec():
    sizes = ([100, 400], [180, 390, 1000], [50, 420])
    choices = [[{"bytes": size} for size in own] for own in sizes]
    assert [r["bytes"] for r in closest_in_bytes(choices)] == [400, 390, 420]
    assert closest_in_bytes([]) == []


def test_a_strength_is_the_nearest_to_the_loss_of_those_that_get_as_low():
    def record(qoffset, bpp):
        errors = {f"{part}{name}": 1.0 for part in ("", "roi_", "bg_") for name in ("sse", "count")}
        about = {"image": "a", "codec": "x265 slow", "bpp": bpp, "psnr": 30.0}
        return about | {"setting": {"quality": bpp, "qoffset": qoffset}} | errors

    records = [
        record(q, bpp * k) for q, bpp in ((0.0, 0.08), (-0.1, 0.1), (-0.3, 0.3)) for k in (1, 2)
    ]
    trade = pd.DataFrame(
        {"codec": "x265 slow", "run": "", "strength": [-0.1, -0.3], "bg_loss": [0.3, 1.2]}
    )
    assert strength_at(records, 0.35, trade) == -0.3
    assert strength_at(records, 0.15, trade) == -0.1
    assert strength_at(records, 0.09, trade) == 0.0
    assert strength_at(records, 0.35, pd.DataFrame()) == -0.1


def test_boxes_are_the_largest_of_each_class_in_different_pictures(data):
    places = choose_boxes(data, 3)
    assert len({i for i, _ in places}) == 3
    kinds = [
        int(data.samples[i].labels[(data.samples[i].boxes == box).all(1)][0]) for i, box in places
    ]
    assert len(set(kinds[:2])) == 2
    whole = [
        b
        for s in data.samples
        for b, k in zip(s.boxes, s.labels, strict=True)
        if k == kinds[0] and b[0] > 2 and b[1] > 2 and b[2] < 157
    ]
    assert np.prod(places[0][1][2:] - places[0][1][:2]) == max(
        np.prod(b[2:] - b[:2]) for b in whole
    )
    assert choose_boxes(RoiDataset([Sample("empty", data.samples[0].path)]))[0][1].tolist() == [
        0,
        0,
        160,
        96,
    ]


def test_panels_are_what_their_streams_decode_to_at_about_equal_bytes(vbr_run, records, data):
    (scene,) = compare([vbr_run], records, data, [(1, data.samples[1].boxes[0])])
    assert [panel.codec for panel in scene.panels] == ["original", "roi_vbr", "x264 medium"]
    original, ours, x264 = scene.panels
    assert x264.strength == -0.2
    assert ours.strength == 0.9
    assert len(ours.stream) == pytest.approx(0.2 * 96 * 160 / 8, rel=0.25)
    assert np.array_equal(ours.picture, load_codec(vbr_run.weights).decode(ours.stream))
    mask = roi_mask(scene.boxes, 96, 160)
    error = (ours.picture.astype(float) - original.picture) ** 2
    assert ours.roi_psnr == pytest.approx(10 * np.log10(255**2 / error[mask].mean()))
    assert ours.bg_psnr == pytest.approx(10 * np.log10(255**2 / error[~mask].mean()))
    bits = allocations([vbr_run], scene)
    assert list(bits) == [("roi_vbr", 0.5), ("roi_vbr", 0.9)]
    inside = (
        np.add.reduceat(np.add.reduceat(mask, np.arange(0, 96, 16), 0), np.arange(0, 160, 16), 1)
        > 128
    )
    uniform, sharp = (cells[:6, :10] for cells in bits.values())
    assert sharp[inside].sum() / sharp.sum() > uniform[inside].sum() / uniform.sum()
    whole, enlarged, *_ = pictures.comparison([scene]).axes
    assert whole.get_gridspec().get_geometry() == (1, 5)  # the whole takes two of five places
    (x, y), mark = whole.patches[0].get_xy(), whole.patches[0]
    assert enlarged.get_images()[0].get_array().shape[:2] == (mark.get_height(), mark.get_width())
    window = original.picture[int(y) :, int(x) :][: int(mark.get_height()), : int(mark.get_width())]
    assert np.array_equal(enlarged.get_images()[0].get_array(), window)
    assert pictures.bit_allocation(scene, bits) is not None


def test_arms_are_decoded_by_their_own_runs_and_the_plain_loss_stands_apart(
    tiny_kitti, tmp_path, data
):
    base = {"which": "hyperprior_with_obj_features", "N": 4, "M": 6, "device": "cpu"}
    base |= {"dataset": "kitti", "data_root": str(tiny_kitti), "logdir": str(tmp_path)}
    base |= {"batch_size": 4, "num_workers": 0, "compr_img_size": 64, "max_epochs": 1}
    mask = {"mask_hooks": True, "decoder_roi": True}
    arm = ({"zero_hooks": True}, 0.5), ({"zero_hooks": True}, 0.9), (mask, 0.5), (mask, 0.9)
    runs = {
        (*hooks, alpha): trained_run(Parameters.parse(base | hooks | {"alpha": alpha}))
        for hooks, alpha in arm
    }
    scene = arms(runs["zero_hooks", 0.5], data, 1, data.samples[1].boxes[0])
    both = "hyperprior_with_obj_features (mask_hooks, decoder_roi)"
    assert [panel.codec for panel in scene.panels] == ["original", PLAIN, ZERO_HOOKS, both]
    assert [panel.strength for panel in scene.panels[1:]] == [0.5, 0.9, 0.9]
    for panel, name in zip(scene.panels[1:], list(runs)[:2] + list(runs)[3:], strict=True):
        own = load_codec(runs[name].weights)
        assert np.array_equal(own.decode(panel.stream), panel.picture)
    titles = [ax.get_title() for ax in pictures.comparison([scene]).axes[1:]]
    assert titles == ["original", PLAIN, "zero hooks", "mask on both sides"]
    for run in runs.values():  # a run's name changes with the content of the file that it began at
        run.folder.rename(run.folder.with_name(f"{run.folder.name}-moved"))
    moved = arms(runs["zero_hooks", 0.5], data, 1, data.samples[1].boxes[0])
    assert [panel.codec for panel in moved.panels] == ["original", PLAIN, ZERO_HOOKS, both]


def test_what_nothing_was_measured_of_has_no_figure(data):
    scenes = compare([], [], data, choose_boxes(data, 1))
    assert [panel.codec for panel in scenes[0].panels] == ["original"]
    assert pictures.comparison(scenes) is None
    assert pictures.bit_allocation(scenes[0], allocations([], scenes[0])) is None


def test_the_window_around_a_box_keeps_its_shape_inside_the_picture():
    x0, y0, x1, y1 = pictures.crop_window(np.array([100.0, 100, 130, 190]), 375, 1242)
    assert x0 < 100 < 130 < x1
    assert y0 < 100 < 190 < y1
    assert (x1 - x0) / (y1 - y0) == pytest.approx(pictures.CROP_ASPECT, rel=0.05)
    x0, y0, x1, y1 = pictures.crop_window(np.array([0.0, 0, 160, 96]), 96, 160)
    assert (x0, y0, x1, y1) == (0, 0, 160, 96)
