"""The `.roic` container: a header and checksums around the strings of a model.

Layout, little-endian:

    magic "roic" · version u8 · model id 4 bytes · height u16 · width u16 · λ u16 · α u16
    number of boxes u8 · number of latents u8
    length of each latent's string u32 · checksum of the coded symbols u32
    boxes, 8 bytes each · strings · CRC-32 of all bytes before it u32

λ and α are indices of roilib.roi. VERSION covers the layout and how a model codes its symbols.
"""

import functools
import itertools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roilib import roi

MAGIC = b"roic"
VERSION = 3
FIXED = struct.Struct("<4sB4sHHHHBB")  # the first two lines of the layout
U32 = struct.Struct("<I")
MAX_SIDE = 8192  # pixels
MAX_LATENTS = 3
MAX_BYTES = 1 << 28  # of a stream: 32 bits a pixel of the largest picture
BOX_BITS = 14  # of a coordinate, 0 … 8192


@dataclass(frozen=True)
class Header:
    """The fields of a stream's header.

    lmbda, alpha: indices of roilib.roi. boxes (K, 5): integers as in `roi.importance_map`. lengths:
    bytes of each latent's string. symbols: checksum of the coded symbols.
    """

    model: bytes
    height: int
    width: int
    lmbda: int
    alpha: int
    boxes: np.ndarray
    lengths: tuple[int, ...]
    symbols: int

    def pack(self, strings: Sequence[bytes]) -> bytes:
        """Return the whole stream; strings: one per latent, of the header's `lengths`."""
        picture = self.height, self.width, self.lmbda, self.alpha
        counts = len(self.boxes), len(self.lengths)
        fixed = FIXED.pack(MAGIC, VERSION, self.model, *picture, *counts)
        numbers = map(U32.pack, (*self.lengths, self.symbols))
        body = b"".join([fixed, *numbers, *map(_pack_box, self.boxes.tolist()), *strings])
        return body + U32.pack(zlib.crc32(body))

    @classmethod
    def unpack(cls, data: bytes) -> tuple["Header", list[bytes]]:
        """Return the header and the strings of a whole stream.

        Raises ValueError with one line for data that no encoder wrote.
        """
        if not isinstance(data, bytes | bytearray | memoryview) or data[:4] != MAGIC:
            raise ValueError("not a .roic stream")
        if len(data) >= MAX_BYTES:
            raise ValueError(f"a .roic stream of {MAX_BYTES} bytes or more, longer than any")
        if len(data) < FIXED.size + 4 or U32.unpack(data[-4:])[0] != zlib.crc32(data[:-4]):
            raise ValueError("a damaged or incomplete .roic stream")
        _, version, model, height, width, lmbda, alpha, boxes, latents = FIXED.unpack_from(data)
        if version != VERSION:
            raise ValueError(f"a .roic stream of version {version}, this reads version {VERSION}")
        start = FIXED.size + 4 * (latents + 1) + 8 * boxes
        possible = all(1 <= side <= MAX_SIDE for side in (height, width))
        possible &= lmbda <= roi.Q_MAX and alpha <= roi.ALPHA_ONE
        if not possible or not 1 <= latents <= MAX_LATENTS or start + 4 > len(data):
            raise ValueError("a .roic header with values that no encoder writes")
        *lengths, symbols = struct.unpack_from(f"<{latents + 1}I", data, FIXED.size)
        if start + sum(lengths) + 4 != len(data):
            raise ValueError("a .roic stream whose parts do not have the lengths in its header")
        rows = [_unpack_box(data[at : at + 8]) for at in range(start - 8 * boxes, start, 8)]
        if any(
            not (x0 < x1 <= width and y0 < y1 <= height and value) for x0, y0, x1, y1, value in rows
        ):
            raise ValueError("a .roic header with a box outside its picture")
        ends = np.cumsum([start, *lengths]).tolist()
        strings = [data[a:b] for a, b in itertools.pairwise(ends)]
        rows = np.array(rows, np.int64).reshape(-1, 5)
        lengths = tuple(lengths)
        return cls(model, height, width, lmbda, alpha, rows, lengths, symbols), strings

    def describe(self) -> dict:
        """Return the fields that `roilib info` shows.

        Sizes are in pixels and bytes, boxes are [x0, y0, x1, y1, importance].
        """
        return {
            "version": VERSION,
            "model": self.model.hex(),
            "height": self.height,
            "width": self.width,
            "lmbda": round(float(roi.lmbda_of(self.lmbda)), 6),
            "alpha": round(self.alpha / roi.ALPHA_ONE, 4),
            "boxes": [[*box[:4], round(box[4] / roi.FULL, 3)] for box in self.boxes.tolist()],
            "latent_bytes": list(self.lengths),
            "symbols_checksum": f"{self.symbols:08x}",
        }


def picture_size(image: np.ndarray) -> tuple[int, int]:
    """Return height and width of a picture that can be coded."""
    is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8
    if not is_array or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError("an image is a uint8 array (H, W, 3)")
    height, width = image.shape[:2]
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"an image of {width}x{height} pixels; sides are 1 to {MAX_SIDE}")
    return height, width


def box_array(boxes: Sequence) -> np.ndarray:
    """Return boxes as (K, 4) or (K, 5) float64."""
    try:
        array = np.asarray(boxes, np.float64)
    except (TypeError, ValueError, OverflowError):  # ragged rows, words, integers beyond float64
        array = np.full(1, np.nan)
    array = array.reshape(0, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] not in (4, 5) or not np.isfinite(array).all():
        raise ValueError(
            "boxes are (K, 4) finite numbers x0, y0, x1, y1, or (K, 5) with importance"
        )
    corners, importance = array[:, :4], array[:, 4:]
    if ((corners >= 0) & (corners <= 1)).all() and (corners % 1).any():
        raise ValueError(
            "all coordinates lie in 0 … 1, as shares of a picture; boxes are in pixels"
        )
    if (array[:, 2:4] <= array[:, :2]).any() or not ((importance > 0) & (importance <= 1)).all():
        raise ValueError("a box has x0 < x1 and y0 < y1, and an importance in (0, 1]")
    return array


def _pack_box(box: Sequence[int]) -> bytes:
    *corners, importance = box
    value = functools.reduce(lambda total, corner: total << BOX_BITS | corner, corners, 0)
    return (value << 8 | importance).to_bytes(8, "little")


def _unpack_box(data: bytes) -> tuple[int, ...]:
    value, mask = int.from_bytes(data, "little"), (1 << BOX_BITS) - 1
    corners = (value >> 8 + i * BOX_BITS & mask for i in (3, 2, 1, 0))
    return *corners, value & 255
