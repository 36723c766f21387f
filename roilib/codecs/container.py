"""The `.roic` container: what a stream says of itself, around a model's strings.

Layout, little-endian: magic, version, model id, height, width, λ and α (indices of roilib.roi), numbers of boxes and latents; the length
of each latent's string; checksum of the decoded symbols; the boxes, 8 bytes each; the strings; checksum of all bytes before it.
"""

import functools
import itertools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roilib import roi

MAGIC, VERSION = b"roic", 1
FIXED = struct.Struct(
    "<4sB4sHHHHBB"
)  # magic, version, model, height, width, lmbda, alpha, boxes, latents
U32 = struct.Struct("<I")
MAX_SIDE = 8192  # pixels
MAX_LATENTS = 3
MAX_BYTES = 1 << 28  # of a stream: 32 bits a pixel of the largest picture
BOX_BITS = 14  # of a coordinate, 0 … 8192


@dataclass(frozen=True)
class Header:
    """What a stream says of itself; lmbda, alpha: indices of roilib.roi; boxes (K, 5): integers as in `roi.importance_map`."""

    model: bytes
    height: int
    width: int
    lmbda: int
    alpha: int
    boxes: np.ndarray
    lengths: tuple[int, ...]
    symbols: int

    def pack(self, strings: Sequence[bytes]) -> bytes:
        """The whole stream; strings: one a latent, of the lengths that the header says."""
        fixed = FIXED.pack(
            MAGIC,
            VERSION,
            self.model,
            self.height,
            self.width,
            self.lmbda,
            self.alpha,
            len(self.boxes),
            len(self.lengths),
        )
        body = (
            fixed
            + b"".join(map(U32.pack, (*self.lengths, self.symbols)))
            + b"".join(_pack_box(box) for box in self.boxes.tolist())
        )
        body += b"".join(strings)
        return body + U32.pack(zlib.crc32(body))

    @classmethod
    def unpack(cls, data: bytes) -> tuple["Header", list[bytes]]:
        """The header and the strings of a whole stream. Raises ValueError with one line for anything that no encoder wrote."""
        if data[:4] != MAGIC:
            raise ValueError("not a .roic stream")
        if len(data) >= MAX_BYTES:
            raise ValueError(f"a .roic stream longer than any, {MAX_BYTES} bytes")
        if len(data) < FIXED.size + 4 or U32.unpack(data[-4:])[0] != zlib.crc32(data[:-4]):
            raise ValueError("a damaged or incomplete .roic stream")
        _, version, model, height, width, lmbda, alpha, boxes, latents = FIXED.unpack_from(data)
        if version != VERSION:
            raise ValueError(f"a .roic stream of version {version}, this reads version {VERSION}")
        start = FIXED.size + 4 * (latents + 1) + 8 * boxes
        possible = (
            1 <= height <= MAX_SIDE
            and 1 <= width <= MAX_SIDE
            and lmbda <= roi.Q_MAX
            and alpha <= roi.ALPHA_ONE
        )
        if not possible or not 1 <= latents <= MAX_LATENTS or start + 4 > len(data):
            raise ValueError("a .roic header with values that no encoder writes")
        *lengths, symbols = struct.unpack_from(f"<{latents + 1}I", data, FIXED.size)
        if start + sum(lengths) + 4 != len(data):
            raise ValueError(
                "a .roic stream whose parts do not have the lengths that its header says"
            )
        rows = [_unpack_box(data[at : at + 8]) for at in range(start - 8 * boxes, start, 8)]
        if any(
            not (x0 < x1 <= width and y0 < y1 <= height and value) for x0, y0, x1, y1, value in rows
        ):
            raise ValueError("a .roic header with a box outside its picture")
        ends = np.cumsum([start, *lengths]).tolist()
        strings = [data[a:b] for a, b in itertools.pairwise(ends)]
        return cls(
            model,
            height,
            width,
            lmbda,
            alpha,
            np.array(rows, np.int64).reshape(-1, 5),
            tuple(lengths),
            symbols,
        ), strings

    def describe(self) -> dict:
        """What `roilib info` shows: sizes in pixels and bytes, λ and α, boxes as [x0, y0, x1, y1, importance]."""
        boxes = [[*box[:4], round(box[4] / roi.FULL, 3)] for box in self.boxes.tolist()]
        knobs = {
            "lmbda": round(float(roi.lmbda_of(self.lmbda)), 6),
            "alpha": self.alpha / roi.ALPHA_ONE,
        }
        return {
            "version": VERSION,
            "model": self.model.hex(),
            "height": self.height,
            "width": self.width,
            **knobs,
            "boxes": boxes,
        } | {
            "latent_bytes": list(self.lengths),
            "symbols_checksum": f"{self.symbols:08x}",
        }


def _pack_box(box: Sequence[int]) -> bytes:
    *corners, importance = box
    value = functools.reduce(lambda total, corner: total << BOX_BITS | corner, corners, 0)
    return (value << 8 | importance).to_bytes(8, "little")


def _unpack_box(data: bytes) -> tuple[int, ...]:
    value, mask = int.from_bytes(data, "little"), (1 << BOX_BITS) - 1
    return *(
        value >> shift & mask for shift in (8 + 3 * BOX_BITS, 8 + 2 * BOX_BITS, 8 + BOX_BITS, 8)
    ), value & 255
