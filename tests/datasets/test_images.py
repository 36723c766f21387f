"""roilib.datasets.images: the pixels of picture files."""

import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import refusal, street, untrained_codec
from PIL import Image

from roilib.codecs.container import MAX_SIDE
from roilib.datasets.images import picture_size, read_picture
from roilib.models.detector import load_yolo  # noqa: F401 (Ultralytics replaces Image.open)
from roilib.utils.files import picture_files

CODEC = untrained_codec(which="roi_vbr", N=4, M=20)


def damaged(content: bytes) -> list[bytes]:
    """Files that are cut off or have bytes overwritten."""
    places = np.linspace(0, len(content) - 1, 24).astype(int)
    return (
        [content[:n] for n in places]
        + [content[:n] + b"\xff\x13\x00\x7f" + content[n + 4 :] for n in places]
        + [b"GIF89a", b"<html>"]
    )


def why_refused(path):
    try:
        read_picture(path)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_unreadable_pictures(tmp_path, name):
    path, reasons = tmp_path / name, []
    Image.fromarray(street(0)).save(path)
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        reasons.append(why_refused(path))  # a few overwritten bytes may still make a picture
    refused = [reason for reason in reasons if reason]
    assert all(reason.startswith(f"{path}: not a readable picture") for reason in refused)
    assert len(refused) > 20


GREY = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint16) * 400  # to 63200


def saved(picture, name, **options):
    def write(folder):
        Image.fromarray(picture).save(folder / name, **options) if isinstance(
            picture, np.ndarray
        ) else picture.save(folder / name, **options)
        return folder / name

    return write


def rotated(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    return saved(street(0), "a.png", exif=exif)(folder)


def pgm16(folder):
    path = folder / "a.pgm"
    path.write_bytes(b"P5 %d %d 65535\n" % GREY.shape[::-1] + GREY.astype(">u2").tobytes())
    return path


RGB = Image.fromarray(street(0))
PICTURES = {  # what is written → the pixels that are read; None: about those of the picture
    "PNG": (saved(street(0), "a.png"), street(0)),
    "BMP": (saved(street(0), "a.bmp"), street(0)),
    "TIFF": (saved(street(0), "a.tiff"), street(0)),
    "PPM": (saved(street(0), "a.ppm"), street(0)),
    "WebP": (saved(street(0), "a.webp", lossless=True), street(0)),
    "AVIF": (saved(street(0), "a.avif"), None),
    "a PNG that is called JPEG": (saved(street(0), "a.jpg", format="PNG"), street(0)),
    "grey": (saved(street(0)[..., 0], "a.png"), street(0)[..., :1].repeat(3, 2)),
    "grey of 16 bits": (saved(GREY, "a.png"), (GREY[..., None] >> 8).astype(np.uint8).repeat(3, 2)),
    "grey of 16 bits, big-endian": (
        saved(GREY.astype(">u2"), "a.tiff"),
        (GREY[..., None] >> 8).astype(np.uint8).repeat(3, 2),
    ),
    "grey of 16 bits, PGM": (pgm16, (GREY >> 8)[..., None].astype(np.uint8).repeat(3, 2)),
    "black and white": (
        saved(RGB.convert("1"), "a.png"),
        np.array(RGB.convert("1").convert("RGB")),
    ),
    "palette": (saved(RGB.quantize(16), "a.png"), np.array(RGB.quantize(16).convert("RGB"))),
    "palette with transparency": (
        saved(RGB.quantize(16), "a.png", transparency=bytes(range(16))),
        np.array(RGB.quantize(16).convert("RGB")),
    ),
    "alpha": (saved(np.dstack([street(0), street(1)[..., 0]]), "a.png"), street(0)),
    "CMYK": (saved(RGB.convert("CMYK"), "a.tiff"), street(0)),
    "CMYK JPEG": (saved(RGB.convert("CMYK"), "a.jpg"), None),
    "EXIF says turn": (rotated, street(0)),
    "1x1": (saved(street(0)[:1, :1], "a.png"), street(0)[:1, :1]),
    "10000x10": (
        saved(np.full((10, 10000, 3), 90, np.uint8), "a.png"),
        np.full((10, 10000, 3), 90, np.uint8),
    ),
}


@pytest.mark.parametrize(("write", "pixels"), PICTURES.values(), ids=PICTURES)
@pytest.mark.filterwarnings("error", "ignore:Palette images:UserWarning:PIL")
def test_pictures_are_read(tmp_path, write, pixels):
    path = write(tmp_path)
    image = read_picture(path)
    assert picture_size(path) == tuple(image.shape[1:])
    assert image.dtype == torch.uint8
    read = image.permute(1, 2, 0).numpy()
    if pixels is None:
        assert np.abs(read.astype(int) - street(0)).mean() < 12
    else:
        np.testing.assert_array_equal(read, pixels)
    if max(read.shape) > MAX_SIDE:
        assert refusal(CODEC.encode, read) == "an image of 10000x10 pixels; sides are 1 to 8192"
    else:
        assert CODEC.decode(CODEC.encode(read)).shape == read.shape


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    """A small PNG that says it has many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(99999)))
        + chunk(b"IEND", b"")
    )


TEXT_BOMB = (
    bomb(8, 8)[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9)) + bomb(8, 8)[33:]
)
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    b"(touched) (w) file\nshowpage\n%%EOF\n"
)
REFUSED = {
    "0 bytes": (b"", "cannot identify image file"),
    "text": (b"<html>a picture</html>", "cannot identify image file"),
    "EPS": (EPS, "cannot identify image file"),
    "PDF": (b"%PDF-1.4\n", "cannot identify image file"),
    "cut off": (bomb(8, 8)[:50], "image file is truncated"),
    "more pixels than Pillow warns of": (
        bomb(10000, 10000),
        "Image size (100000000 pixels) exceeds limit",
    ),
    "more pixels than Pillow opens": (
        bomb(60000, 60000),
        "Image size (3600000000 pixels) exceeds limit",
    ),
    "fewer pixels than it says": (bomb(9000, 9000), "image file is truncated"),
    "a text bomb": (TEXT_BOMB, "Decompressed data too large"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("error")
def test_files_that_are_no_pictures(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    assert refusal(read_picture, tmp_path / "a.png").startswith(
        f"{tmp_path / 'a.png'}: not a readable picture ({reason}"
    )


def test_threads_that_read_pictures_leave_the_filters_of_warnings_alone(tiny_kitti):
    paths = picture_files(tiny_kitti / "training" / "image_2") * 40
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(picture_size, paths))
    assert warnings.filters == before


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pictures_of_32_bits(tmp_path, mode):
    RGB.convert(mode).save(tmp_path / "a.tiff")
    assert re.search(
        r"a\.tiff: not a readable picture \(32 bits", refusal(read_picture, tmp_path / "a.tiff")
    )


def test_a_folder_is_no_picture(tmp_path):
    assert "Is a directory" in refusal(read_picture, tmp_path)


# 16 bits


def png16(folder, values):
    """A PNG of 16 bits a channel; values (H, W, 1 to 4)."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path = folder / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_16_bits_that_are_mostly_unused_are_refused(tmp_path, channels, bits):
    values = np.repeat(GREY[..., None] >> (16 - bits), channels, 2)
    path = png16(tmp_path, values)
    assert re.search(
        rf"a\.png: .*at most {bits} are used.*values by {2 ** (16 - bits)}\)",
        refusal(read_picture, path),
    )
    assert read_picture(path, depth=16).max() < 64
    assert read_picture(png16(tmp_path, np.repeat(GREY[..., None], channels, 2))).max() > 200


@pytest.mark.parametrize("write", ["a.png", "a.tiff", "a.pgm"])
def test_grey_of_12_bits_is_mapped_when_asked(tmp_path, write):
    values = GREY >> 4
    path = tmp_path / write
    if write == "a.pgm":
        path.write_bytes(b"P5 %d %d 65535\n" % GREY.shape[::-1] + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    assert "at most 12 are used" in refusal(read_picture, path)
    read = read_picture(path, depth=12).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(read, (GREY >> 8)[..., None].repeat(3, 2))


def test_colours_of_12_bits_are_not_mapped(tmp_path):
    path = png16(tmp_path, np.repeat(GREY[..., None] >> 4, 3, 2))
    assert "depth=12 is for grey pictures" in refusal(read_picture, path, 12)


@pytest.mark.parametrize(
    ("values", "depth", "why"),
    [
        (GREY >> 8, 12, "depth=12 is for grey pictures of 16 bits; this one has 8"),
        (GREY, 12, "depth=12, but its values need 16 bits"),
        (GREY >> 4, 10, "depth=10, but its values need 12 bits"),
        (GREY >> 4, 7, "depth is 8 to 16 bits, not 7"),
        (GREY, 32, "depth is 8 to 16 bits, not 32"),
    ],
)
def test_a_depth_that_does_not_fit_is_refused(tmp_path, values, depth, why):
    Image.fromarray(values.astype(np.uint8 if values.max() < 256 else np.uint16)).save(
        tmp_path / "a.png"
    )
    assert why in refusal(read_picture, tmp_path / "a.png", depth)


def test_a_declared_range_and_black_are_believed(tmp_path):
    (tmp_path / "a.pgm").write_bytes(
        b"P5 %d %d 4095\n" % GREY.shape[::-1] + (GREY >> 4).astype(">u2").tobytes()
    )
    assert read_picture(tmp_path / "a.pgm").max() > 240
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png").max() == 0
    Image.fromarray(street(0) // 8).save(tmp_path / "dark.png")  # 8 bits, as dark as they are
    assert read_picture(tmp_path / "dark.png").max() < 32


# Several pages


@pytest.mark.parametrize(
    ("name", "pages"), [("a.tiff", 2), ("a.tif", 3), ("a.png", 2), ("a.webp", 3), ("a.avif", 2)]
)
def test_several_pages_are_named(tmp_path, name, pages):
    first, *others = (Image.fromarray(street(i)) for i in range(pages))
    first.save(tmp_path / name, save_all=True, append_images=others)
    assert re.search(rf"{name}: .*\({pages} pages", refusal(read_picture, tmp_path / name))


def test_a_phones_jpeg_with_a_second_picture_is_its_first(tmp_path):
    first, second = (Image.fromarray(street(i)) for i in range(2))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    read = read_picture(tmp_path / "a.jpg").permute(1, 2, 0).numpy()
    assert np.abs(read.astype(int) - street(0)).mean() < 12


# Which files are pictures, and in which order
