"""What roi_vbr's entropy networks know of y_hat: the slices before their own, and of their own slice the cells of earlier passes.

    passes   1      2      3
             0 0    0 1    0 2      the pass that codes each of 2x2 cells; those of one pass do not know each other,
             0 0    1 0    2 1      so they are coded, and decoded, all at once

As the integer networks see it, y_hat is whole multiples of MEAN_UNIT.
Source: D. He et al., "Checkerboard context model for efficient learned image compression" (CVPR 2021).
"""

import functools

import numpy as np
import torch
from torch import Tensor

from roilib.models.integer import MAX, ZERO
from roilib.roi import floor_log2

MEAN_UNIT, CONTEXT_UNIT = (
    1 / 64,
    1 / 16,
)  # what 1 stands for in integers: means, magnitudes in octaves
VALUE_UNITS = (
    1 / 4,
    2,
)  # and both parts of a value: what fits into eight bits finely, and what large ones have beyond that
SMALL = MAX * VALUE_UNITS[0]
VALUE_SCALE = 8  # a value of y_hat that is 1 as a network's input
Cells = slice | np.ndarray  # which of a latent's cells, numbered row by row
PATTERNS = {1: ((0,),), 2: ((0, 1), (1, 0)), 3: ((0, 2), (2, 1))}


def passes_of(passes: int, height: int, width: int) -> Tensor:
    """(height, width) int64: the pass, 0 … passes - 1, that codes each cell."""
    pattern = torch.tensor(PATTERNS[passes])
    side = len(pattern)
    return pattern.repeat(-(-height // side), -(-width // side))[:height, :width]


def magnitudes(y_hat: Tensor) -> Tensor:
    """How large values are, in octaves: it tells how much to expect beside them."""
    return (1 + y_hat.abs()).log2()


def values(y_hat: Tensor) -> Tensor:
    """(B, n, …) → (B, 2 n, …): the small parts of values, then the rest of large ones; networks add them up."""
    small = y_hat.clamp(-SMALL, SMALL)
    return torch.cat([small, y_hat - small], 1) / VALUE_SCALE


def with_known(context: Tensor, known: Tensor) -> Tensor:
    """The input of a network of a second or third pass: what the first knew (B, C, h, w), then `magnitudes` and `values` of its own slice's y_hat
    (B, n, h, w), which is 0 where it is not known yet.
    """
    return torch.cat([context, magnitudes(known), values(known)], 1)


@functools.cache
def magnitude_table() -> Tensor:
    """By |y_hat| in units of MEAN_UNIT: `magnitudes` in units of CONTEXT_UNIT, to the nearest, as integer networks store it."""
    one, halves = round(1 / MEAN_UNIT), round(2 / CONTEXT_UNIT)
    return torch.tensor(
        [
            ZERO + (floor_log2(one + a, halves) - floor_log2(one, halves) + 1) // 2
            for a in range(1 << 16)
        ],
        dtype=torch.int8,
    )


def stored_magnitudes(y_hat: Tensor) -> Tensor:
    """int8 of `magnitudes`; y_hat: int32 in units of MEAN_UNIT, any shape."""
    return torch.from_numpy(magnitude_table().numpy().take(y_hat.abs().numpy(), mode="clip"))


def stored_values(y_hat: Tensor) -> Tensor:
    """(…, n) → (…, 2 n) int8 of `values` in VALUE_UNITS, to the nearest, halves away from 0; y_hat: int32 in units of MEAN_UNIT."""
    small = y_hat.clamp(-round(SMALL / MEAN_UNIT), round(SMALL / MEAN_UNIT))
    return torch.cat(
        [
            _nearest(part, unit)
            for part, unit in zip((small, y_hat - small), VALUE_UNITS, strict=True)
        ],
        -1,
    )


def _nearest(y_hat: Tensor, unit: float) -> Tensor:
    shift = round(unit / MEAN_UNIT).bit_length() - 1
    halves = (y_hat >> 31) + (
        1 << shift - 1
    )  # one less of what is negative: shifts round down, halves shall go away from 0
    return halves.add_(y_hat).bitwise_right_shift_(shift).clamp_(-MAX, MAX).to(torch.int8)


def cells_of(passes: int, height: int, width: int) -> list[Cells]:
    """By pass: the cells that it codes. A slice where it codes all, as that needs no copies."""
    turns = passes_of(passes, height, width).flatten().numpy()
    return (
        [slice(None)] if passes == 1 else [np.flatnonzero(turns == turn) for turn in range(passes)]
    )


class Known:
    """What is known while a latent is coded, slice by slice and pass by pass, as the integer networks see it.

    h (height, width, N) int8; q (height * width,) int8; M: channels of the latent. `symbols` and `y_hat`, both (height * width, M) int32, the latter
    in units of MEAN_UNIT, are what has been coded; untouched memory costs nothing, should the stream be none.
    """

    def __init__(self, h: Tensor, q: Tensor, M: int):
        (self.height, self.width, N), self.first = h.shape, h.shape[2] + 1
        self.symbols = torch.empty(len(q), M, dtype=torch.int32)
        self.y_hat = torch.empty_like(self.symbols)
        self._seen = torch.full(
            (len(q), self.first + M), ZERO, dtype=torch.int8
        )  # by all networks: h, q, magnitudes of y_hat
        self._seen[:, :N], self._seen[:, N] = h.flatten(0, 1), q
        self._values = torch.empty(0)  # of the present slice

    def seen(self, part: slice, turn: int) -> Tensor:
        """The input (1, height, width, C) of the network of a slice's pass `turn`, as `with_known` lays it out."""
        if turn == 0:
            seen, self._values = self._seen[:, : self.first + part.start], torch.empty(0)
        else:
            seen = torch.cat([self._seen[:, : self.first + part.stop], self._values], 1)
        return seen.view(1, self.height, self.width, -1)

    def add(self, part: slice, cells: Cells, symbols: Tensor, means: Tensor, more: bool) -> None:
        """Symbols (n, channels) and the means that they were coded relative to; more: whether passes over this slice follow."""
        y_hat = torch.add(means, symbols, alpha=round(1 / MEAN_UNIT))
        self.symbols[cells, part], self.y_hat[cells, part] = symbols, y_hat
        if more:
            if not len(self._values):
                self._values = torch.zeros(len(self.symbols), 2 * y_hat.shape[1], dtype=torch.int8)
            self._values[cells] = stored_values(y_hat)
        if more or part.stop < self.symbols.shape[1]:
            self._seen[cells, self.first + part.start : self.first + part.stop] = stored_magnitudes(
                y_hat
            )
