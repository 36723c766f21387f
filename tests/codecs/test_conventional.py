"""roilib.codecs.conventional: real encoders, whose regions of interest really get better."""

import os
import pickle

import numpy as np
import pytest
from conftest import refusal, street

from roilib.codecs.conventional import STILL, ConventionalCodec
from roilib.codecs.protocol import DoesNotFit
from roilib.codecs.video import SEI, WITH_ROI, to_rgb, to_yuv

SUBSAMPLED = ("x264 medium 4:2:0", "x265 medium 4:2:0", "svtav1 8 4:2:0", "avif 4:2:0")


@pytest.fixture(scope="module")
def picture():
    """A textured uint8 picture (144, 240, 3) and one box in it."""
    random = np.random.default_rng(0)
    coarse = random.uniform(40, 215, (18, 30, 3)).repeat(8, 0).repeat(8, 1)
    image = (coarse + random.normal(0, 12, coarse.shape)).clip(0, 255).astype(np.uint8)
    return image, np.array([[64.0, 32, 160, 112]])


def codec_of(name):
    """The codec at its medium preset, where it has presets."""
    return ConventionalCodec(f"{name} medium" if name in WITH_ROI else name)


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
    assert np.abs(to_rgb(to_yuv(image)).astype(int) - image).max() <= 2
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    assert np.array_equal(to_rgb(to_yuv(grey)), grey)  # full range: 0 and 255 too


def test_colours_are_bt_709s():
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    expected = [[54, 182, 18], [99, 30, 255], [255, 12, 116]]  # by hand, from KR and KB
    assert to_yuv(primaries)[:, 0].tolist() == expected


@pytest.mark.parametrize(
    "preset",
    [
        *("medium", "slow", "ultrafast", "ultrafast+zerolatency"),
        *("medium 4:2:0", "ultrafast+zerolatency 4:2:0"),
    ],
)
@pytest.mark.parametrize("name", WITH_ROI)
def test_a_region_gets_the_quality_that_its_offset_says(picture, name, preset):
    image, boxes = picture
    codec = ConventionalCodec(f"{name} {preset}")
    if codec.subsampled:  # whose colours are lost whatever the quality
        image = image[..., 1:2].repeat(3, 2)
    (plain_in, plain_out), (roi_in, roi_out) = (
        error(
            image,
            codec.decode(codec.encode(image, boxes, quality=36, qoffset=qoffset)),
            boxes[0],
        )
        for qoffset in (0.0, -0.3)
    )
    assert roi_in < 0.4 * plain_in  # offsets that are silently ignored fail here
    assert roi_out == pytest.approx(plain_out, rel=0.1)


@pytest.mark.parametrize("name", WITH_ROI)
def test_only_the_picture_is_counted(picture, name):
    flat = np.full_like(picture[0], 128)
    codec = codec_of(name)
    data = codec.encode(flat, quality=40)
    assert len(data) < 200  # the encoder's settings as text alone would be more
    assert np.abs(codec.decode(data).astype(int) - flat).max() <= 1
    units = data.split(b"\0\0\1")[1:]
    assert units
    assert not any(SEI[name](unit[0]) for unit in units)


@pytest.mark.parametrize("name", WITH_ROI + STILL)
def test_odd_sizes_and_more_quality(picture, name):
    image, codec = picture[0][:101, :131], codec_of(name)
    streams = [codec.encode(image, quality=q) for q in ((48, 20) if codec.is_video else (10, 90))]
    decoded = [codec.decode(stream) for stream in streams]
    assert decoded[0].shape == image.shape
    assert len(streams[0]) < len(streams[1])
    assert error(image, decoded[1]) < 0.5 * error(image, decoded[0])
    limit = 300 if name == "webp" else 130  # WebP has half the colour resolution
    assert error(image, decoded[1]) < limit


def smooth(height, width):
    """Two colours that change slowly, which 4:2:0 keeps."""
    rows, columns = np.mgrid[:height, :width]
    red, green = 60 + 100 * rows / height, 200 - 120 * columns / width
    return np.stack([red, green, np.full((height, width), 90)], 2).astype(np.uint8)


@pytest.mark.parametrize("name", SUBSAMPLED)
@pytest.mark.parametrize("size", [(96, 160), (95, 160), (96, 159), (95, 159)])
def test_colours_and_odd_sizes_come_back_at_420(name, size):
    image, codec = smooth(*size), ConventionalCodec(name)
    decoded = codec.decode(codec.encode(image, quality=10 if codec.is_video else 95))
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).max() <= 6  # another range or order would be more
    assert np.abs(decoded.astype(int) - image).mean() < 1


@pytest.mark.parametrize(
    ("name", "least"),
    [("x264 fast", 1), ("x265 fast", 16), ("x265 fast 4:2:0", 15), ("svtav1 12 4:2:0", 4)],
)
def test_the_smallest_picture_of_an_encoder(name, least):
    codec = ConventionalCodec(name)
    for size in ((least, 40), (40, least)):
        image = smooth(*size)
        assert codec.decode(codec.encode(image, quality=30)).shape == image.shape
    if least > 1:
        said = refusal(lambda: codec.encode(smooth(40, least - 1), quality=30))
        assert said.endswith(
            f" codes pictures of at least {least}x{least} pixels, not of {least - 1}x40"
        )


@pytest.mark.parametrize("name", SUBSAMPLED)
def test_420_has_half_the_colour_resolution(name):
    image = np.full((64, 64, 3), (180, 60, 60), np.uint8)
    image[:, ::2] = (60, 120, 60)
    codec = ConventionalCodec(name)
    best = {"quality": 1 if codec.is_video else 100}
    assert error(image, codec.decode(codec.encode(image, **best))) > 300
    if codec.format != "svtav1":
        full = ConventionalCodec(name.removesuffix(" 4:2:0"))
        assert error(image, full.decode(full.encode(image, **best))) < 30


@pytest.mark.parametrize("name", ["svtav1 8 4:2:0", "svtav1 12 4:2:0"])
def test_svt_av1_is_one_picture_the_same_each_time_and_has_no_roi(picture, name):
    image, boxes = picture
    codec = ConventionalCodec(name)
    streams = [codec.encode(image, boxes, quality=q) for q in (55, 30, 10)]
    assert len(streams[0]) < len(streams[1]) < len(streams[2])
    errors = [error(image, codec.decode(stream)) for stream in streams]
    assert errors[0] > errors[1] > errors[2]
    assert streams[1] == codec.encode(image, boxes, quality=30, qoffset=-0.5)
    assert not codec.has_roi


@pytest.mark.parametrize("name", ["x265 medium", "x265 ultrafast", "svtav1 8 4:2:0"])
def test_threads_change_no_byte_of_these(picture, name):
    streams = {ConventionalCodec(name, n).encode(picture[0], quality=40) for n in (None, 1, 2)}
    assert len(streams) == 1
    codec = ConventionalCodec(name, 2)
    assert np.array_equal(codec.decode(*streams), ConventionalCodec(name).decode(*streams))


def test_avif_has_one_thread_unless_told_otherwise(picture):
    streams = [ConventionalCodec("avif", n).encode(picture[0], quality=60) for n in (None, 1, 2)]
    assert streams[0] == streams[1] != streams[2]  # bytes must not depend on the machine's cores


@pytest.mark.parametrize("name", ["x264", "jpeg", "webp", "svtav1 8 4:2:0"])
def test_the_best_within_a_number_of_bytes(picture, name):
    image, boxes = picture
    codec = codec_of(name)
    setting = {"qoffset": -0.1} if codec.has_roi else {}
    found = codec.search(image, boxes, 6000, **setting)
    assert len(found.stream) <= 6000
    assert found.seconds > 0
    assert found.stream == codec.encode(image, boxes, quality=found.quality, **setting)
    assert found.stream == codec.encode_within(image, boxes, 6000, **setting)
    better = found.quality + (-1 if codec.is_video else 1)
    least = 0.98 if codec.format != "svtav1" else 0.9  # whose crfs are far apart
    assert len(codec.encode(image, boxes, quality=better, **setting)) > least * 6000


@pytest.mark.parametrize("name", ["x264", "jpeg"])
def test_a_budget_that_nothing_fits_is_said_with_the_least_size(picture, name):
    codec, worst = codec_of(name), 51 if name in WITH_ROI else 1
    found = codec.search(picture[0], (), 10)
    assert found.quality == worst
    with pytest.raises(DoesNotFit, match="max_bytes=10: the smallest possible size") as raised:
        codec.encode_within(picture[0], (), 10)
    assert raised.value.least_bytes == len(found.stream) > 10
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_a_search_stops_where_it_is_told_to(picture):
    tries = []

    def stop_at_the_second():
        tries.append(1)
        if len(tries) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        codec_of("jpeg").search(picture[0], (), 900, before_each=stop_at_the_second)


@pytest.mark.parametrize("name", WITH_ROI)
def test_regions_are_cut_at_the_pictures_borders(picture, name):
    image, codec = picture[0], codec_of(name)
    height, width = image.shape[:2]

    def stream(*box):
        return codec.encode(image, [box], quality=40, qoffset=-0.3)

    assert stream(-40, -30, 60, 50) == stream(0, 0, 60, 50) != stream(0, 0, 100, 80)
    assert stream(width - 50, 20, width + 90, height + 9) == stream(width - 50, 20, width, height)
    outside = stream(-80, 10, -20, 60)
    assert outside == stream(width + 5, 10, width + 50, 60) == codec.encode(image, quality=40)


@pytest.mark.parametrize("qoffset", [0, -0.2])
@pytest.mark.parametrize("name", ["x264 veryfast", "x265 veryfast", "x265 veryfast 4:2:0"])
def test_there_are_rates_between_those_of_two_crf(name, qoffset):
    image, boxes = np.tile(street(0), (4, 4, 1)), [[30, 40, 200, 160]]
    codec = ConventionalCodec(name)
    smallest, *between, largest = (
        len(codec.encode(image, boxes, quality=q, qoffset=qoffset)) for q in (39, 38.5, 38.25, 38)
    )
    assert all(smallest < size < largest for size in between)
    within = codec.encode_within(image, boxes, max(between), qoffset=qoffset)
    assert smallest <= len(within) <= max(between)


@pytest.mark.parametrize("preset", ["quick", "medium+psnr", "+zerolatency"])
def test_presets_that_would_hide_regions_or_do_not_exist_are_refused(preset):
    with pytest.raises(ValueError, match=r"x264 .*a preset is one of"):
        ConventionalCodec(f"x264 {preset}")


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux alone has it")
def test_svt_av1_leaves_no_real_time_priority(picture):
    before = os.sched_getscheduler(0)
    ConventionalCodec("svtav1 12 4:2:0").encode(*picture, quality=50)
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize("name", ["svtav1 14 4:2:0", "svtav1 medium 4:2:0", "svtav1 6+psnr 4:2:0"])
def test_other_presets_of_svt_av1_are_refused(name):
    with pytest.raises(ValueError, match=r"a preset is one of 0, 1, .*, 13$"):
        ConventionalCodec(name)


def test_svt_av1_without_its_chroma_format_is_told_the_name():
    with pytest.raises(ValueError, match="name it 'svtav1 6 4:2:0'"):
        ConventionalCodec("svtav1 6")


@pytest.mark.parametrize(
    "name",
    ["x266 medium", "x265", "jpeg medium", "jpeg 4:2:0", "svtav1", "x265 4:2:0", "4:2:0", ""],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: a conventional codec is"):
        ConventionalCodec(name)
