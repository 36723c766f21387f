"""roilib.apps.playground.coding: requests answered for real, and always the newest."""

import io
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import street
from PIL import Image

from roilib import roi
from roilib.apps.playground.coding import (
    CONVENTIONAL,
    Coder,
    Newest,
    Request,
    Superseded,
    code_within,
    matching_qoffset,
    read,
)

BOX = ((30.0, 20.0, 90.0, 60.0, 1.0),)


@pytest.fixture(scope="module")
def coder():
    return Coder()


@pytest.fixture
def request_(tmp_path):
    Image.fromarray(street(0)).save(tmp_path / "street.png")
    return Request(tmp_path / "street.png", boxes=BOX)


def test_the_answer_is_what_the_codec_makes(coder, request_):
    result = coder.answer(request_)
    stream = coder.codec.encode(street(0), BOX, lmbda=request_.lmbda, alpha=request_.alpha)
    assert result.ours.bytes == len(stream)
    assert np.array_equal(result.ours.picture, coder.codec.decode(stream))
    assert result.ours.bpp == pytest.approx(8 * len(stream) / (96 * 160))
    error = (street(0).astype(float) - result.ours.picture) ** 2
    inside = np.zeros((96, 160), bool)
    inside[20:60, 30:90] = True
    assert result.ours.roi_psnr == pytest.approx(10 * np.log10(255**2 / error[inside].mean()))
    assert result.ours.bg_psnr == pytest.approx(10 * np.log10(255**2 / error[~inside].mean()))
    assert (result.bits, result.other) == (None, None)


def test_states_are_shown_as_they_come(coder, request_):
    shown = []
    result = coder.answer(replace(request_, bit_map=True, against="jpeg"), shown.append)
    states = [state for state in shown if state]
    assert [(s.bits is not None, s.other is not None) for s in states] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    assert len({id(s.ours) for s in states}) == 1
    assert None in shown  # where it can be stopped
    assert result is states[-1]
    assert result.bits.shape == (8, 12)  # of the padded picture, 128x192


def test_a_byte_budget_chooses_lmbda(coder, request_):
    free = coder.answer(request_).ours.bytes
    capped = coder.answer(replace(request_, max_bytes=round(0.7 * free)))
    assert 0.6 * free < capped.ours.bytes <= 0.7 * free
    with pytest.raises(ValueError, match="the smallest possible size"):
        coder.answer(replace(request_, max_bytes=40))


@pytest.mark.slow
def test_without_boxes_of_its_own_a_request_gets_the_detectors(coder, request_):
    streets = Path(__file__).parent.parent.parent / "report" / "pictures" / "sample.png"
    result = coder.answer(Request(streets, lmbda=0.0004))
    found = coder.codec.detector.regions(read(streets))
    assert [box[:4] for box in result.boxes] == [
        (np.floor(x0), np.floor(y0), np.ceil(x1), np.ceil(y1)) for x0, y0, x1, y1 in found
    ]
    assert {box[4] for box in result.boxes} == {1.0}
    assert coder.answer(replace(request_, boxes=())).ours.roi_psnr is None


def test_a_sliver_that_is_detected_is_a_box(coder, request_, monkeypatch):
    monkeypatch.setattr(
        coder.codec.detector, "regions", lambda image: np.array([[10.6, 5, 11.4, 40]], np.float32)
    )
    assert Coder(coder.codec).answer(replace(request_, boxes=None)).boxes == (
        (10.0, 5.0, 12.0, 40.0, 1.0),
    )


def test_uploads_are_read_and_named(coder, request_):
    file = io.BytesIO()
    Image.fromarray(street(1)).save(file, "png")
    upload = replace(request_, picture="holiday.png", content=file.getvalue())
    assert np.array_equal(coder.answer(upload).image, street(1))
    with pytest.raises(ValueError, match=r"^holiday\.png: not a readable picture$"):
        coder.answer(replace(upload, content=b"no picture"))
    with pytest.raises(ValueError, match=r"none\.png: not a readable picture"):
        coder.answer(replace(request_, picture=request_.picture.with_name("none.png")))


@pytest.mark.parametrize("name", CONVENTIONAL)
def test_a_conventional_codec_gets_as_many_bytes(coder, request_, name):
    image = np.tile(street(0), (2, 2, 1))
    stream = coder.codec.encode(image, BOX, lmbda=0.03)
    other = code_within(image, BOX, name, stream)
    assert 0.85 * len(stream) < other.bytes <= len(stream)
    worst = code_within(
        image, BOX, name, coder.codec.encode(image[:16, :16], lmbda=0.0004)
    )  # which needs fewer than any other codec
    assert worst.bytes < other.bytes
    assert worst.setting.split(",")[0] in ("quality 1", "crf 51")


def test_a_search_ends_when_told_to(coder, request_):
    tries = []

    def check():
        tries.append(1)
        if len(tries) == 2:
            raise Superseded

    stream = coder.codec.encode(street(0), BOX, lmbda=0.03)
    with pytest.raises(Superseded):
        code_within(street(0), BOX, "jpeg", stream, check)


def test_the_video_codecs_offset_stands_for_the_same_alpha():
    middle = roi.quality_index(0.012)
    assert matching_qoffset(middle, roi.alpha_index(0.5)) == 0
    strong = matching_qoffset(
        middle, roi.alpha_index(0.8)
    )  # λ of the ROI four times the background's: two octaves
    assert strong == pytest.approx(-6 / 51, abs=0.002)
    assert matching_qoffset(middle, roi.alpha_index(0.2)) == pytest.approx(6 / 51, abs=0.002)
    assert -1 <= matching_qoffset(middle, roi.alpha_index(1.0)) < strong


@pytest.mark.slow
def test_comparison_records_are_plain_and_repeat(coder, request_):
    records, again = ([c.record() for c in coder.compare(request_)] for _ in range(2))
    assert [r["codec"] for r in records] == ["roi_vbr", *CONVENTIONAL.values()]
    assert again == records
    assert all(isinstance(value, str | int | float) for r in records for value in r.values())


class Bench:
    """Newest at work on requests that wait until they are let go; what came of them."""

    def __init__(self, debounce=0.0):
        self.begun, self.shown, self.failed = [], [], []
        self.at_work, self.go, self.rested = threading.Event(), threading.Event(), threading.Event()
        self.newest = Newest(
            self.work, self.shown.append, self.failed.append, self.rested.set, debounce
        )

    def work(self, request, show):
        self.begun.append(request)
        self.at_work.set()
        assert self.go.wait(10)
        if isinstance(request, Exception):
            raise request
        show(None)
        show(request)

    def finish(self):
        self.go.set()
        assert self.rested.wait(10)
        self.newest.close()


def test_the_newest_request_wins_and_stops_the_one_at_work():
    bench = Bench()
    bench.newest.submit(1)
    assert bench.at_work.wait(10)
    for request in (2, 3, 4):
        bench.newest.submit(request)
    bench.finish()
    assert bench.begun == [1, 4]
    assert bench.shown == [4]
    assert not bench.failed


def test_a_burst_is_begun_once():
    bench = Bench(debounce=0.2)
    bench.go.set()
    for request in range(20):
        bench.newest.submit(request)
    bench.finish()
    assert bench.begun == bench.shown == [19]


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("no such\nthing"), "no such"), (KeyError("x"), "KeyError: 'x'")]
)
def test_failures_are_told_in_a_line_and_work_goes_on(error, line):
    bench = Bench()
    bench.newest.submit(error)
    assert bench.at_work.wait(10)
    bench.go.set()
    assert bench.rested.wait(10)
    bench.rested.clear()
    bench.newest.submit("next")
    bench.finish()
    assert bench.failed == [line]
    assert bench.shown == ["next"]


def test_closing_ends_the_thread_even_at_work():
    bench = Bench()
    bench.newest.submit(1)
    assert bench.at_work.wait(10)
    threading.Timer(0.05, bench.go.set).start()
    bench.newest.close()
    assert not bench.shown
    assert not any(thread.name == "playground" for thread in threading.enumerate())
