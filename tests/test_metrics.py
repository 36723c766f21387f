"""roilib.metrics: means over true pixel sets."""

import math

import numpy as np
import pytest

from roilib.metrics import picture_metrics, pooled_psnr, psnr_from_mse, squared_errors


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (170, 180, 3), np.uint8)
    decoded = np.clip(image + rng.normal(0, 9, image.shape), 0, 255).astype(np.uint8)
    mask = np.zeros((170, 180), bool)
    mask[20:50, 30:90] = True
    return image, decoded, mask


def test_psnr_of_known_errors():
    assert psnr_from_mse(1.0, 255) == pytest.approx(48.1308, abs=1e-4)
    assert psnr_from_mse(0.01) == pytest.approx(20)
    assert psnr_from_mse(0.0) is None


def test_each_part_is_the_mean_over_its_own_pixels(pair):
    image, decoded, mask = pair
    values = picture_metrics(*pair)
    squares = (image.astype(float) - decoded) ** 2
    for name, part in (("psnr", np.ones_like(mask)), ("roi_psnr", mask), ("bg_psnr", ~mask)):
        assert values[name] == pytest.approx(10 * math.log10(255**2 / squares[part].mean()))
    assert values["sse"] == values["roi_sse"] + values["bg_sse"] == squares.sum()
    assert values["count"] == values["roi_count"] + values["bg_count"] == image.size


def test_errors_outside_do_not_touch_the_roi(pair):
    image, _, mask = pair
    values = picture_metrics(image, np.where(mask[..., None], image, 255 - image), mask)
    assert (values["roi_psnr"], values["roi_sse"]) == (None, 0)  # no error has no PSNR
    assert values["bg_psnr"] < 10


def test_bytes_do_not_wrap_around():
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert squared_errors(black, white, {"": np.ones((1, 1), bool)}) == {"": (3 * 255.0**2, 3)}


def test_empty_parts_have_no_psnr(pair):
    image, decoded, mask = pair
    nothing, everything = (
        picture_metrics(image, decoded, np.full_like(mask, v)) for v in (False, True)
    )
    assert nothing["roi_psnr"] is None
    assert everything["bg_psnr"] is None
    assert nothing["bg_psnr"] == everything["roi_psnr"] == nothing["psnr"]


def test_a_class_is_measured_over_its_own_boxes(pair):
    image, decoded, mask = pair
    car = np.zeros_like(mask)
    car[20:50, 30:40] = True
    values = picture_metrics(image, decoded, mask, {"car": car, "cyclist": np.zeros_like(mask)})
    assert values["car_psnr"] == pytest.approx(
        10 * math.log10(255**2 / ((image.astype(float) - decoded) ** 2)[car].mean())
    )
    assert values["car_count"] == 3 * 300
    assert values["cyclist_psnr"] is None
    assert (
        pooled_psnr([values, values | {"car_count": 0, "car_sse": 0.0}], "car_")
        == values["car_psnr"]
    )


def test_pooled_psnr_is_that_of_one_big_picture(pair):
    image, decoded, mask = pair
    parts = [
        picture_metrics(image[rows], decoded[rows], mask[rows])
        for rows in (slice(0, 40), slice(40, 170))
    ]
    whole = picture_metrics(*pair)
    for name in ("", "roi_", "bg_"):
        assert pooled_psnr(parts, name) == pytest.approx(whole[f"{name}psnr"])
    assert pooled_psnr([picture_metrics(image, decoded, np.zeros_like(mask))], "roi_") is None


def test_ms_ssim_needs_161_pixels(pair):
    image, decoded, mask = pair
    assert 0.5 < picture_metrics(*pair)["ms_ssim"] < 1
    assert picture_metrics(image, image, mask)["ms_ssim"] == pytest.approx(1)
    assert picture_metrics(image[:161], decoded[:161], mask[:161])["ms_ssim"] is not None
    assert picture_metrics(image[:160], decoded[:160], mask[:160])["ms_ssim"] is None
