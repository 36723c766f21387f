"""The interface of every image codec of this package: ours (roic) and the conventional ones.

    image, boxes, setting ──► encode ──────► bytes ──► decode ──► image
    image, boxes, budget  ──► encode_within ─┘

An image is uint8 (H, W, 3). Boxes are (K, 4) x0, y0, x1, y1 in pixels, or (K, 5) with importance.
A setting is the codec's quality and ROI strength: lmbda and alpha, or quality and qoffset.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class DoesNotFit(ValueError):
    """Even the smallest stream of a picture exceeds the byte budget.

    least_bytes: the size of that smallest stream.
    """

    def __init__(
        self,
        max_bytes: float,
        least_bytes: int,
        reason: str = "the smallest possible size of this picture is",
    ):
        super().__init__(max_bytes, least_bytes, reason)
        self.max_bytes, self.least_bytes, self.reason = max_bytes, least_bytes, reason

    def __str__(self) -> str:
        return f"max_bytes={self.max_bytes}: {self.reason} {self.least_bytes} bytes"


class ImageCodec(Protocol):
    """A codec of single pictures. `name` identifies it in records."""

    name: str

    def encode(self, image: np.ndarray, boxes: Sequence = (), **setting: float) -> bytes:
        """Code a picture."""

    def decode(self, data: bytes) -> np.ndarray:
        """Decode a stream that `encode` returned."""

    def encode_within(
        self, image: np.ndarray, boxes: Sequence, max_bytes: int, **setting: float
    ) -> bytes:
        """Code a picture at the best quality that takes at most `max_bytes`.

        Raises DoesNotFit where even the worst quality takes more.
        """
