"""Notebook 07 in JupyterLab in a real browser: what the mouse does is coded and shown."""

import json
import re
from collections.abc import Iterator

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
import screenshot
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def page(tiny_kitti, tmp_path_factory) -> Iterator[Page]:
    """The playground on four pictures of 160x96."""
    if not screenshot.find_browser():
        pytest.skip("no Chromium is installed")
    folder = tmp_path_factory.mktemp("playground")
    with screenshot.playground(
        dataset="kitti",
        data_root=str(tiny_kitti),
        train_size_p1=0.3,
        logdir=str(folder),
        against="jpeg",
    ) as page:
        assert (
            json.loads((folder / "07_playground" / "metrics.json").read_text())["picture"]
            == "000002"
        )
        yield page


def after(page: Page, act) -> tuple[dict[str, list[str]], str]:
    """The numbers and our picture when `act` has had its effect."""
    screenshot.answered(page, act)
    return screenshot.numbers(page), screenshot.pixels(page)


def click(page: Page, name: str):
    """What clicks the button of this name."""
    return page.locator(".roilib-playground button").filter(has_text=name).click


def number(numbers: dict[str, list[str]], name: str, codec: int = 0) -> float:
    return float(numbers[name][codec].split()[0].replace(",", ""))


def test_a_session(page):
    boxes = page.locator(".roi-box")
    after(page, click(page, "None"))
    expect(boxes).to_have_count(0)

    first, picture = after(page, lambda: screenshot.draw(page, (0.2, 0.5, 0.5, 0.85)))
    expect(boxes).to_have_count(1)
    assert first[""] == ["roi_vbr", "JPEG"]
    assert number(first, "ROI") > number(first, "background")

    drawn, more = after(page, lambda: screenshot.draw(page, (0.7, 0.4, 0.9, 0.75)))
    expect(boxes).to_have_count(2)
    assert number(drawn, "bytes") > number(first, "bytes")
    assert more != picture
    low, _ = after(page, click(page, "low"))
    assert number(low, "bytes") < number(drawn, "bytes")
    page.locator(".roi-stage").focus()
    removed, again = after(page, lambda: page.keyboard.press("Delete"))
    assert (number(removed, "bytes"), again) == (number(first, "bytes"), picture)

    coarse, worse = after(page, lambda: screenshot.slide(page, 0, -60))
    assert number(coarse, "bytes") < number(first, "bytes")
    assert number(coarse, "ROI") < number(first, "ROI")
    even, uniform = after(page, lambda: screenshot.slide(page, 1, -40))
    assert number(even, "ROI") < number(coarse, "ROI")
    assert len({picture, worse, uniform}) == 3
    assert "slider to picture" in page.locator(".roi-clock").inner_text()

    after(page, page.locator(".roilib-playground").get_by_text("byte budget").click)
    capped, best = after(page, lambda: screenshot.slide(page, 2, -96))
    assert 0.9 * number(capped, "bytes", 1) < number(capped, "bytes") <= 1000
    assert number(capped, "ROI") > number(even, "ROI")
    assert best != uniform


def test_what_is_shown_beside_it(page):
    jpeg = screenshot.pixels(page, "theirs")
    numbers, _ = after(page, click(page, "x265 + ROI"))
    assert numbers[""][1] == "x265 + ROI"
    assert screenshot.pixels(page, "theirs") != jpeg
    expect(page.locator(".roi-panels canvas")).to_have_count(3)
    expect(page.locator(".roi-heat")).to_be_hidden()
    after(page, click(page, "bit map"))
    expect(page.locator(".roi-heat")).to_be_visible()
    cut = (
        float(
            re.search(
                r"([\d.]+)%",
                page.locator(".roi-heat").evaluate("image => getComputedStyle(image).clipPath"),
            )[1]
        )
        / 100
    )
    widths = [page.locator(name).bounding_box()["width"] for name in (".roi-heat", ".roi-stage")]
    assert widths[0] * (1 - cut) == pytest.approx(
        widths[1] / 2, abs=1
    )  # ends at the line, though its cells reach over the picture
    numbers, _ = after(page, click(page, "original"))
    assert numbers[""] == ["roi_vbr"]


def test_all_of_it_fits_a_small_screen(page):
    before = page.viewport_size
    page.set_viewport_size({"width": 1280, "height": 720})
    heights = [
        page.locator(name).first.bounding_box()["height"]
        for name in (".roilib-playground", ".jp-WindowedPanel-outer")
    ]
    page.set_viewport_size(before)
    assert heights[0] <= heights[1]


def test_a_box_is_moved_resized_and_kept_inside(page):
    after(page, click(page, "None"))
    after(page, lambda: screenshot.draw(page, (0.2, 0.2, 0.4, 0.4)))
    box = page.locator(".roi-box")
    place = box.bounding_box()
    stage = page.locator(".roi-stage").bounding_box()
    middle = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2

    def drag(start, end):
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move(*end, steps=3)
        page.mouse.up()

    after(page, lambda: drag(middle, (middle[0] + 0.2 * stage["width"], middle[1])))
    moved = box.bounding_box()
    assert moved["x"] == pytest.approx(place["x"] + 0.2 * stage["width"], abs=5)
    assert moved["width"] == pytest.approx(place["width"], abs=1)
    after(page, lambda: drag((moved["x"], moved["y"]), (moved["x"] - 60, moved["y"] - 40)))
    assert box.bounding_box()["width"] == pytest.approx(moved["width"] + 60, abs=5)
    after(
        page, lambda: drag((moved["x"] + 5, moved["y"] + 5), (stage["x"] - 300, stage["y"] - 300))
    )
    assert (box.get_attribute("x"), box.get_attribute("y")) == ("0", "0")


def test_an_upload_that_is_no_picture_says_so_and_the_last_result_stays(page):
    before = screenshot.pixels(page)
    with page.expect_file_chooser() as chooser:
        click(page, "Upload")()
    chooser.value.set_files({"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.locator(".roi-error")).to_have_text("notes.png: not a readable picture")
    assert screenshot.pixels(page) == before
