"""roilib.apps.playground.widgets without a browser: its traits after changes of controls."""

import io
import time
from datetime import UTC, datetime

import numpy as np
import pytest
from conftest import street
from matplotlib.figure import Figure
from PIL import Image

from roilib.apps.playground import widgets
from roilib.apps.playground.coding import Coder, Request
from roilib.datasets.kitti import kitti_samples


@pytest.fixture(scope="module")
def coder():
    return Coder()


@pytest.fixture
def playground(coder, tiny_kitti):
    samples = kitti_samples(tiny_kitti)
    made = widgets.Playground(
        coder, samples, Request(samples[0].path, boxes=((10.0, 50.0, 58.0, 80.0, 1.0),))
    )
    wait(made)
    yield made
    made.newest.close()


def wait(playground):
    end = time.monotonic() + 60
    while playground.view.working:
        assert time.monotonic() < end
        time.sleep(0.005)


def opened(file):
    return np.array(Image.open(io.BytesIO(file)).convert("RGB"))


def cells(playground, codec=0):
    return dict(zip(playground.view.head, playground.view.columns[codec]["cells"], strict=True))


def test_it_opens_on_a_coded_picture(playground, coder):
    view = playground.view
    assert view.size == [160, 96]
    assert np.array_equal(opened(view.original), street(0))
    stream = coder.codec.encode(street(0), [[10, 50, 58, 80]])
    assert np.array_equal(opened(view.ours), coder.codec.decode(stream))
    assert np.array_equal(opened(view.theirs), street(0))
    assert cells(playground)["bytes"] == f"{len(stream):,}"
    assert (view.names, view.heat, view.error) == (["roi_vbr", "original"], b"", "")


@pytest.mark.parametrize(("control", "value"), [("lmbda", 0.001), ("alpha", 0.6), ("picture", 1)])
def test_a_moved_control_codes_anew(playground, control, value):
    before, ours = cells(playground), playground.view.ours
    control = getattr(playground, control)
    control.value = control.options[value][1] if value == 1 else value
    assert playground.view.working
    wait(playground)
    assert playground.view.ours != ours
    assert cells(playground)["bytes"] != before["bytes"]
    assert playground.view.values == [playground.lmbda.value, playground.alpha.value, None]


def test_a_budget_takes_the_place_of_lmbda(playground):
    playground.capped.value = True
    playground.budget.value = 1000
    wait(playground)
    assert int(cells(playground)["bytes"].replace(",", "")) <= 1000
    assert (playground.lmbda.disabled, playground.budget.disabled) == (True, False)
    assert playground.view.values[2] == 1000


def test_boxes_come_from_the_mouse_from_labels_and_from_the_detector(playground, coder, tiny_kitti):
    sizes = [cells(playground)["bytes"]]
    playground.view.set_state(
        {"boxes": [[10, 50, 58, 80, 1.0], [100, 10, 150, 60, 1.0]]}
    )  # as the browser does
    wait(playground)
    sizes.append(cells(playground)["bytes"])
    assert len(set(sizes)) == 2
    detect, labels, none = playground.starts
    labels.click()
    wait(playground)
    assert [box[:4] for box in playground.view.boxes] == kitti_samples(tiny_kitti)[0].boxes.tolist()
    none.click()
    wait(playground)
    assert playground.view.boxes == []
    assert cells(playground)["ROI"] == "–"
    detect.click()
    wait(playground)
    assert [tuple(box[:4]) for box in playground.view.boxes] == [
        tuple(box) for box in coder.codec.detector.regions(street(0)).round().tolist()
    ]


def test_what_takes_longer_follows_and_goes_again(playground):
    playground.bit_map.value, playground.against.value = True, "jpeg"
    wait(playground)
    assert Image.open(io.BytesIO(playground.view.heat)).size == (12, 8)
    assert "bits a cell" in playground.view.legend
    assert playground.view.names == ["roi_vbr", "JPEG"]
    assert not playground.view.columns[1]["stale"]
    assert not np.array_equal(opened(playground.view.theirs), street(0))
    playground.bit_map.value, playground.against.value = False, ""
    wait(playground)
    assert (playground.view.heat, len(playground.view.columns)) == (b"", 1)


def test_an_error_is_told_in_place_and_the_last_result_stays(playground):
    ours, options = playground.view.ours, len(playground.picture.options)
    file = {
        "name": "notes.png",
        "type": "image/png",
        "size": 10,
        "content": memoryview(b"no picture"),
        "last_modified": datetime.now(UTC),
    }
    playground.upload.value = (file,)
    wait(playground)
    assert playground.view.error == "notes.png: not a readable picture"
    assert playground.view.ours == ours
    assert len(playground.picture.options) == options + 1
    playground.picture.index = 0
    wait(playground)
    assert playground.view.error == ""


def test_the_default_lmbda_is_a_step_of_its_slider(playground):
    steps = (np.log10(playground.lmbda.value) - playground.lmbda.min) / playground.lmbda.step
    assert steps == pytest.approx(round(steps))
    playground.lmbda.value = 10**playground.lmbda.max
    wait(playground)
    playground.lmbda.value = 10**playground.lmbda.min
    wait(playground)
    assert playground.view.error == ""


def test_where_nobody_watches_a_figure_stands_in(coder, tiny_kitti):
    samples = kitti_samples(tiny_kitti)
    figure = widgets.playground(coder, samples, Request(samples[0].path, boxes=(), against="jpeg"))
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 9  # four rows of picture and part, and the colours' meaning
