"""roilib.codecs.conventional: real encoders, whose regions of interest are really better."""

import numpy as np
import pytest

from roilib.codecs import conventional
from roilib.datasets.dataset import RoiDataset
from roilib.datasets.kitti import kitti_samples
from roilib.evaluation.evaluate import evaluate_peer


@pytest.fixture(scope="module")
def picture():
    """A textured uint8 picture (144, 240, 3) and one box in it."""
    random = np.random.default_rng(0)
    coarse = random.uniform(40, 215, (18, 30, 3)).repeat(8, 0).repeat(8, 1)
    return (coarse + random.normal(0, 12, coarse.shape)).clip(0, 255).astype(np.uint8), np.array(
        [[64.0, 32, 160, 112]]
    )


def error(image, decoded, box=None):
    difference = (image.astype(int) - decoded.astype(int)) ** 2
    if box is None:
        return difference.mean()
    x0, y0, x1, y1 = box.astype(int)
    inside = np.zeros(image.shape[:2], bool)
    inside[y0:y1, x0:x1] = True
    return difference[inside].mean(), difference[~inside].mean()


def test_colours_come_back():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.abs(conventional.to_rgb(conventional.to_yuv(image)).astype(int) - image).max() <= 2
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    assert np.array_equal(
        conventional.to_rgb(conventional.to_yuv(grey)), grey
    )  # full range: 0 and 255 too


@pytest.mark.parametrize("preset", ["medium", "slow", "ultrafast", "ultrafast+zerolatency"])
@pytest.mark.parametrize("codec", conventional.VIDEO)
def test_a_region_gets_the_quality_that_its_offset_says(picture, codec, preset):
    image, boxes = picture
    (plain_in, plain_out), (roi_in, roi_out) = (
        error(
            image,
            conventional.decode(
                conventional.encode(image, codec, 36, boxes, qoffset, preset), codec
            ),
            boxes[0],
        )
        for qoffset in (0.0, -0.3)
    )
    assert roi_in < 0.4 * plain_in  # offsets that are silently ignored fail here
    assert roi_out == pytest.approx(plain_out, rel=0.1)


@pytest.mark.parametrize("codec", conventional.VIDEO)
def test_only_the_picture_is_counted(picture, codec):
    image, _ = picture
    flat = np.full_like(image, 128)
    data = conventional.encode(flat, codec, 40)
    assert len(data) < 200  # the encoder's settings as text alone would be more
    assert np.abs(conventional.decode(data, codec).astype(int) - flat).max() <= 1
    units = data.split(b"\0\0\1")[1:]
    assert units
    assert not any(conventional.SEI[codec](unit[0]) for unit in units)


@pytest.mark.parametrize("codec", conventional.VIDEO + conventional.STILL)
def test_odd_sizes_and_more_quality(picture, codec):
    image = picture[0][:101, :131]
    low, high = (48, 20) if codec in conventional.VIDEO else (10, 90)
    streams = [conventional.encode(image, codec, quality) for quality in (low, high)]
    decoded = [conventional.decode(stream, codec) for stream in streams]
    assert decoded[0].shape == image.shape
    assert len(streams[0]) < len(streams[1])
    assert error(image, decoded[1]) < 0.5 * error(image, decoded[0])
    assert error(image, decoded[1]) < (
        300 if codec == "webp" else 130
    )  # WebP has half the colour resolution


@pytest.mark.parametrize("codec", ["x264", "jpeg", "webp"])
def test_the_best_within_a_number_of_bytes(picture, codec):
    image, boxes = picture
    quality, stream, seconds = conventional.encode_within(
        image, codec, 6000, boxes, -0.1 if codec in conventional.VIDEO else 0.0
    )
    assert len(stream) <= 6000
    better = conventional.encode(
        image, codec, quality + (-1 if codec in conventional.VIDEO else 1), boxes, -0.1
    )
    assert len(better) > 0.98 * 6000
    assert stream == conventional.encode(image, codec, quality, boxes, -0.1)
    assert seconds > 0
    worst, smallest, _ = conventional.encode_within(image, codec, 10)
    assert worst == (51 if codec in conventional.VIDEO else 1)
    assert len(smallest) > 10


@pytest.mark.parametrize("codec", conventional.VIDEO)
def test_regions_are_cut_at_the_pictures_borders(picture, codec):
    image = picture[0]
    height, width = image.shape[:2]

    def stream(*box):
        return conventional.encode(image, codec, 40, [box], -0.3)

    assert stream(-40, -30, 60, 50) == stream(0, 0, 60, 50) != stream(0, 0, 100, 80)
    assert stream(width - 50, 20, width + 90, height + 9) == stream(width - 50, 20, width, height)
    assert (
        stream(-80, 10, -20, 60)
        == stream(width + 5, 10, width + 50, 60)
        == conventional.encode(image, codec, 40)
    )  # wholly outside


def test_records_are_like_ours(tiny_kitti):
    data = RoiDataset(kitti_samples(tiny_kitti)[:2])
    records, times = zip(*evaluate_peer(data, "x264 ultrafast", [30, 40], [0.0, -0.2]), strict=True)
    assert {r["codec"] for r in records} == {"x264 ultrafast"}
    assert [tuple(r["setting"].values()) for r in records[::2]] == [
        (30, 0.0),
        (30, -0.2),
        (40, 0.0),
        (40, -0.2),
    ]
    for record, time in zip(records, times, strict=True):
        assert record["bpp"] == pytest.approx(8 * record["bytes"] / (96 * 160))
        assert record["psnr"] > 15
        assert time["image"] == record["image"]
        assert time["seconds"]["encode"] > 0


@pytest.mark.parametrize("preset", ["quick", "medium+psnr", "+zerolatency"])
def test_presets_that_would_hide_regions_or_do_not_exist_are_refused(picture, preset):
    with pytest.raises(ValueError, match=r"x264 .*a preset is one of"):
        conventional.encode(picture[0], "x264", 30, preset=preset)


@pytest.mark.parametrize("name", ["x266 medium", "x265", "jpeg medium"])
def test_other_names_are_refused(name, tiny_kitti):
    with pytest.raises(ValueError, match=f"{name}: a peer is"):
        next(evaluate_peer(RoiDataset(kitti_samples(tiny_kitti)[:1]), name, [30]))
