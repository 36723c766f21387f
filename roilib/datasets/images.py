"""Picture files: their pixels as RGB, and samples made of them.

EXIF's orientation is not applied: boxes are in the pixels that the file stores, as KITTI's and
COCO's are. Transparency is dropped, 16 bits a channel become 8. What cannot be read without
guessing is refused: 32 bits a pixel, several pages, 16 bits that are mostly unused.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "AVIF")  # EPS would start Ghostscript
LEAST_BITS = 15  # 16-bit pictures of which all values need fewer bits probably hold fewer
EXIF_ORIENTATION = 0x0112
TURNED = range(2, 9)  # values of EXIF's orientation: the picture is shown turned or mirrored
SWAPPED = range(5, 9)  # by a quarter, so that width and height change places

# Once, and not around each opening: threads that open pictures would restore each other's filters.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_opened` refuses such pictures


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture with its objects.

    boxes: (K, 4) float32, xyxy in pixels; labels: (K,) indices into the data set's classes.
    coder_boxes: (K, 4), or (K, 5) with importance, what encoders get instead of `boxes`.
    """

    id: str
    path: Path
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    coder_boxes: np.ndarray | None = None


def read_picture(path: Path, depth: int | None = None) -> tv_tensors.Image:
    """Read a picture as RGB uint8 (3, H, W).

    depth: how many of their 16 bits grey pictures use, such as 12; None refuses a picture that
    seems to use fewer than 15. Raises ValueError naming a file that cannot be read or has more
    pixels than Pillow warns of.
    """
    with _opened(path) as picture:
        if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
            raise ValueError(f"{picture.n_frames} pages; save the one that is meant by itself")
        return rgb_pixels(picture, depth)


def rgb_pixels(picture: Image.Image, depth: int | None = None) -> tv_tensors.Image:
    """Return Pillow's picture as RGB uint8 (3, H, W), as `read_picture` does.

    Raises ValueError for 32 bits a pixel, and for 16 that are mostly unused.
    """
    # Pillow scales a 16-bit PGM to 0 … 65535 and calls it I, like pictures of 32 bits.
    is_pgm = picture.format == "PPM" and picture.mode == "I"
    if picture.mode in ("I", "F") and not is_pgm:
        raise ValueError("32 bits a pixel have no known range; save it with 8 or 16")
    is_deep_grey = is_pgm or picture.mode.startswith("I;16")
    if depth is not None and not 8 <= depth <= 16:
        raise ValueError(f"depth is 8 to 16 bits, not {depth}")
    if not is_deep_grey and not _has_16_bits(picture):
        if depth not in (None, 8):
            raise ValueError(f"depth={depth} is for grey pictures of 16 bits; this one has 8")
        return tv_tensors.Image(F.pil_to_tensor(picture.convert("RGB")))
    if is_deep_grey:
        values = np.asarray(picture)
        _check_range(int(values.max()).bit_length(), depth)
        pixels = (values >> (depth or 16) - 8).astype(np.uint8)
        return tv_tensors.Image(torch.from_numpy(pixels).expand(3, -1, -1).contiguous())
    pixels = F.pil_to_tensor(picture.convert("RGB"))  # the upper 8 bits
    _check_range(8 + int(pixels.max()).bit_length(), depth)
    if depth not in (None, 16):
        raise ValueError(f"depth={depth} is for grey pictures of 16 bits; this one has colours")
    return tv_tensors.Image(pixels)


def _has_16_bits(picture: Image.Image) -> bool:
    """Whether the file stores 16 bits a channel; to be asked before the pixels are loaded."""
    for tile in getattr(picture, "tile", ()):  # a picture from a file has them
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if any(isinstance(a, str) and ";16" in a for a in args):
            return True
        if picture.format == "PPM" and 65535 in args:
            return True
    return picture.mode == "I"


def _check_range(bits: int, depth: int | None) -> None:
    if depth is None and 0 < bits < LEAST_BITS:
        raise ValueError(
            f"16 bits, of which at most {bits} are used: it would be nearly black; encode grey "
            f"pictures with --depth {bits}, or multiply its values by {2 ** (16 - bits)}"
        )
    if depth is not None and bits > depth:
        raise ValueError(f"depth={depth}, but its values need {bits} bits")


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width from the file's header. Raises ValueError naming an unreadable file."""
    with _opened(path) as picture:
        return picture.height, picture.width


def is_turned(path: Path) -> bool:
    """Whether EXIF says that the picture is shown turned, upside down or mirrored."""
    return _orientation(path) in TURNED


def swaps_sides(path: Path) -> bool:
    """Whether EXIF says that the picture is shown turned by a quarter."""
    return _orientation(path) in SWAPPED


def _orientation(path: Path) -> int | None:
    with _opened(path) as picture:
        return picture.getexif().get(EXIF_ORIENTATION)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; errors become one ValueError that names the file.

    Ultralytics replaces PIL's Image.open by a function that runs `pip install` when it meets an
    unreadable file: the original is used.
    """
    open_picture = getattr(sys.modules.get("ultralytics.utils.patches"), "_image_open", Image.open)
    try:
        with open_picture(path, formats=FORMATS) as picture:
            if (pixels := picture.width * picture.height) > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"Image size ({pixels} pixels) exceeds limit")
            yield picture
    except MemoryError:
        raise
    except Exception as error:  # Pillow lets through whatever a damaged file causes
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable picture ({reason})") from None
