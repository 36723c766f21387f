"""Picture files of strangers: RGB pixels as they are stored, or one line that names the file.

Rotation: EXIF's orientation is not applied. Boxes are in the pixels of the file, as KITTI's and COCO's are.
Depth: 16 bits of grey become 8; alpha is dropped; 32 bits have no known range and are refused.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "TIFF",
    "PPM",
    "AVIF",
)  # no EPS, for which Pillow starts Ghostscript


PICTURE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".avif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled picture: boxes (K, 4) xyxy float32 in pixels, labels (K,) indices into the dataset's classes."""

    id: str
    path: Path
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def read_picture(path: Path) -> tv_tensors.Image:
    """The picture as RGB uint8 (3, H, W). Raises ValueError naming the file when it cannot be read or has more pixels than Pillow warns of."""
    with _opened(path) as picture:
        grey16 = (
            picture.format == "PPM" and picture.mode == "I"
        )  # Pillow has scaled it to 0 … 65535
        if picture.mode in ("I", "F") and not grey16:
            raise ValueError(
                "32 bits a pixel, of which nobody knows the range; save it with 8 or 16"
            )
        if picture.mode.startswith("I;16") or grey16:  # Pillow would cut off all above 255
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        return tv_tensors.Image(F.pil_to_tensor(picture.convert("RGB")))


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width without decoding the picture. Raises ValueError naming the file when it cannot be read."""
    with _opened(path) as picture:
        return picture.height, picture.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The open picture; whatever goes wrong until it is closed is one line, and no warnings beside it.

    Not with Ultralytics' Image.open, which takes the place of PIL's and runs `pip install` when it meets an unreadable file.
    """
    open_picture = getattr(sys.modules.get("ultralytics.utils.patches"), "_image_open", Image.open)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_picture(path, formats=FORMATS) as picture:
                yield picture
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # Pillow's readers let through whatever a damaged file makes happen in them
        raise ValueError(
            f"{path}: not a readable picture ({' '.join(str(error).split())})"
        ) from None
