"""roilib.metrics: means over true pixel sets."""

import math

import numpy as np
import pytest
import torch
from compressai.transforms.functional import rgb2ycbcr
from piq import haarpsi

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


def tensor(picture):
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()


def test_yuv_psnr_weighs_luma_six_times_and_halves_chroma(pair):
    image, decoded, mask = (v[:169, :179] for v in pair)  # odd sides
    values = picture_metrics(image, decoded, mask)
    planes = [rgb2ycbcr(tensor(v) / 255)[0].double().numpy() * 255 for v in (image, decoded)]
    y, *chroma = planes[0] - planes[1]

    def halved(plane):
        parts = [plane[i : i + 2, j : j + 2] for i in range(0, 169, 2) for j in range(0, 179, 2)]
        return np.array([part.mean() for part in parts]).reshape(85, 90)

    errors = [y, *map(halved, chroma)]
    inside = halved(mask.astype(float)) >= 0.5
    masks = {"": (mask | True, inside | True), "roi_": (mask, inside), "bg_": (~mask, ~inside)}
    for name, (luma, small) in masks.items():
        psnrs = [
            10 * math.log10(255**2 / (error[part] ** 2).mean())
            for error, part in zip(errors, (luma, small, small), strict=True)
        ]
        expected = (6 * psnrs[0] + psnrs[1] + psnrs[2]) / 8
        assert values[f"{name}yuv_psnr"] == pytest.approx(expected, abs=1e-3)


def test_colour_that_420_cannot_hold_costs_no_yuv_psnr():
    image = np.full((32, 32, 3), 128, np.uint8)
    image[:, ::2, 2], image[:, 1::2, 2] = 148, 108  # blue is 7 % of luma
    grey = np.full_like(image, 128)
    grey[0, 0] = (120, 128, 128)  # both planes of chroma have an error, but a small one
    values = picture_metrics(image, grey, np.zeros((32, 32), bool))
    assert values["psnr"] < 27
    assert values["yuv_psnr"] > 42


def test_without_pixels_or_error_there_is_no_yuv_psnr(pair):
    image, decoded, mask = pair
    values = picture_metrics(image, decoded, np.zeros_like(mask))
    assert values["roi_yuv_psnr"] is None
    assert values["bg_yuv_psnr"] == values["yuv_psnr"] is not None
    assert picture_metrics(image, image, mask)["yuv_psnr"] is None


def test_haarpsi_is_piqs_and_of_the_rois_regions_by_their_pixels(pair):
    image, decoded, mask = pair
    mask = mask.copy()
    mask[100:140, 100:170] = mask[120:150, 90:120] = True  # two boxes that overlap: one region
    values = picture_metrics(image, decoded, mask)

    def of(rows, columns):
        return float(haarpsi(*(tensor(v[rows, columns]) for v in (image, decoded)), data_range=255))

    assert values["haarpsi"] == pytest.approx(of(slice(None), slice(None)))
    first, second = of(slice(19, 51), slice(30, 90)), of(slice(100, 150), slice(90, 170))
    counts = 30 * 60, mask[100:150].sum()  # the first is 30 high, so its crop was enlarged to 32
    assert values["roi_haarpsi"] == pytest.approx(np.average([first, second], weights=counts))
    assert picture_metrics(image, image, mask)["roi_haarpsi"] == pytest.approx(1, abs=1e-4)


def test_haarpsi_of_small_regions_small_pictures_and_none(pair):
    image, decoded, _ = pair
    corner = np.zeros((170, 180), bool)
    corner[168:, 177:] = True
    enlarged = picture_metrics(image, decoded, corner)["roi_haarpsi"]
    crop = (slice(138, 170), slice(148, 180))
    assert enlarged == pytest.approx(
        float(haarpsi(tensor(image[crop]), tensor(decoded[crop]), data_range=255))
    )
    small = picture_metrics(image[:20, :24], decoded[:20, :24], corner[150:, 156:])
    assert small["roi_haarpsi"] == pytest.approx(small["haarpsi"])  # the crop is all of it
    tiny = picture_metrics(image[:15], decoded[:15], corner[155:])
    assert tiny["haarpsi"] is tiny["roi_haarpsi"] is None
    assert picture_metrics(image, decoded, corner & False)["roi_haarpsi"] is None
    black = np.zeros((40, 40, 3), np.uint8)
    assert picture_metrics(black, black, np.ones((40, 40), bool))["haarpsi"] == 1


def test_haarpsi_falls_with_the_error(pair):
    image, _, mask = pair
    noise = np.random.default_rng(1).normal(0, 1, image.shape)
    values = [
        picture_metrics(image, (image + s * noise).clip(0, 255).astype(np.uint8), mask)
        for s in (4, 16, 64)
    ]
    for name in ("haarpsi", "roi_haarpsi"):
        assert values[0][name] > values[1][name] > values[2][name] > 0
