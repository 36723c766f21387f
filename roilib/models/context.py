"""Inputs of roi_vbr's entropy networks: h, q, earlier slices, and earlier passes of their own.

    passes   1      2      3
             0 0    0 1    0 2      the pass that codes each of 2x2 cells; cells of the same pass do
             0 0    1 0    2 1      not see each other, so they are coded and decoded together

Fixed-point formats of the integer networks' inputs (int8; unsigned values are stored as a - 128):

    h            0 … 255        units of the integer h_s
    q            -128 … 127     Q_UNIT steps of quality, relative to Q_MIDDLE
    magnitudes   0 … 255        CONTEXT_UNIT octaves: log2(1 + |y_hat|)
    values       -127 … 127     VALUE_UNITS[0]: y_hat clamped to ±SMALL
                 -127 … 127     VALUE_UNITS[1]: the rest of y_hat
    y_hat        int32          MEAN_UNIT

Source: D. He et al., "Checkerboard context model for efficient learned image compression"
(CVPR 2021).
"""

import functools

import numpy as np
import torch
from torch import Tensor

from roilib.models.integer.networks import MAX, ZERO
from roilib.roi import floor_log2, quality_index

Q_MIDDLE = quality_index(0.012)  # the quality index that networks see as 0
Q_SPREAD = 263  # steps of quality that float networks see as 1
Q_UNIT = 4  # steps of quality that integer networks see as 1
MEAN_UNIT = 1 / 64  # step of the integer means and of y_hat, in quantiser steps
CONTEXT_UNIT = 1 / 16  # step of the integer log2-magnitudes, in octaves
VALUE_UNITS = (1 / 4, 2)  # steps of the small part of a value and of the rest
SMALL = MAX * VALUE_UNITS[0]  # the largest small part
VALUE_SCALE = 8  # the value of y_hat that float networks see as 1
Cells = slice | np.ndarray  # some cells of a latent, numbered row by row
PATTERNS = {1: ((0,),), 2: ((0, 1), (1, 0)), 3: ((0, 2), (2, 1))}


def pass_map(passes: int, height: int, width: int) -> Tensor:
    """Return the pass, 0 … passes - 1, that codes each cell: (height, width) int64."""
    pattern = torch.tensor(PATTERNS[passes])
    side = len(pattern)
    return pattern.repeat(-(-height // side), -(-width // side))[:height, :width]


def pass_cells(passes: int, height: int, width: int) -> list[Cells]:
    """Return the cells of each pass; of a single pass a slice, which needs no copies."""
    if passes == 1:
        return [slice(None)]
    numbers = pass_map(passes, height, width).flatten().numpy()
    return [np.flatnonzero(numbers == number) for number in range(passes)]


def condition(q: Tensor) -> Tensor:
    """Return quality indices as an input of float networks, -1.7 … 0.8."""
    return (q.float() - Q_MIDDLE) / Q_SPREAD


def magnitudes(y_hat: Tensor) -> Tensor:
    """Return log2-magnitudes: a large value suggests large values beside it."""
    return (1 + y_hat.abs()).log2()


def values(y_hat: Tensor) -> Tensor:
    """Split (B, n, …) into (B, 2 n, …): the small parts of values, then the rest of large ones."""
    small = y_hat.clamp(-SMALL, SMALL)
    return torch.cat([small, y_hat - small], 1) / VALUE_SCALE


def later_context(context: Tensor, own: Tensor) -> Tensor:
    """Return the input of the second and third pass of a slice.

    context (B, C, h, w): the input of the first pass. own (B, n, h, w): the y_hat of the slice, 0
    where it is not coded yet.
    """
    return torch.cat([context, magnitudes(own), values(own)], 1)


@functools.cache
def magnitude_table() -> Tensor:
    """Return int8 `magnitudes` by |y_hat| / MEAN_UNIT, exactly rounded."""
    one, halves = round(1 / MEAN_UNIT), round(2 / CONTEXT_UNIT)
    return torch.tensor(
        [
            ZERO + (floor_log2(one + a, halves) - floor_log2(one, halves) + 1) // 2
            for a in range(1 << 16)
        ],
        dtype=torch.int8,
    )


def stored_magnitudes(y_hat: Tensor) -> Tensor:
    """Return int8 `magnitudes` of y_hat, int32 in units of MEAN_UNIT, any shape."""
    return torch.from_numpy(magnitude_table().numpy().take(y_hat.abs().numpy(), mode="clip"))


def stored_values(y_hat: Tensor) -> Tensor:
    """Return int8 `values` (…, 2 n) of y_hat (…, n), int32 in units of MEAN_UNIT.

    To the nearest; halves are rounded away from 0.
    """
    limit = round(SMALL / MEAN_UNIT)
    small = y_hat.clamp(-limit, limit)
    parts = zip((small, y_hat - small), VALUE_UNITS, strict=True)
    return torch.cat([_nearest(part, unit) for part, unit in parts], -1)


def _nearest(y_hat: Tensor, unit: float) -> Tensor:
    shift = round(unit / MEAN_UNIT).bit_length() - 1
    # Shifts round down. One less is added to negative values, so that halves go away from 0.
    halves = (y_hat >> 31) + (1 << shift - 1)
    return halves.add_(y_hat).bitwise_right_shift_(shift).clamp_(-MAX, MAX).to(torch.int8)


class IntegerContext:
    """The inputs of the integer networks, filled in slice by slice and pass by pass.

    h (height, width, N) int8; q (height * width,) int8; M: channels of the latent.
    `symbols` and `y_hat` (in units of MEAN_UNIT), both (height * width, M) int32, hold what has
    been coded. They are left uninitialised, so that an invalid stream costs no memory.
    """

    def __init__(self, h: Tensor, q: Tensor, M: int):
        (self.height, self.width, N), self.first = h.shape, h.shape[2] + 1
        self.symbols = torch.empty(len(q), M, dtype=torch.int32)
        self.y_hat = torch.empty_like(self.symbols)
        # Shared by all networks: h, q, magnitudes of y_hat.
        self._shared = torch.full((len(q), self.first + M), ZERO, dtype=torch.int8)
        self._shared[:, :N], self._shared[:, N] = h.flatten(0, 1), q
        self._values = torch.empty(0)  # of the present slice

    def input(self, channels: slice, number: int) -> Tensor:
        """Return the input (1, height, width, C) of pass `number` of a slice."""
        if number == 0:
            seen, self._values = self._shared[:, : self.first + channels.start], torch.empty(0)
        else:
            seen = torch.cat([self._shared[:, : self.first + channels.stop], self._values], 1)
        return seen.view(1, self.height, self.width, -1)

    def add(
        self, channels: slice, cells: Cells, symbols: Tensor, means: Tensor, more: bool
    ) -> None:
        """Add the symbols (n, channels) of a pass, and the means they were coded relative to.

        more: passes over this slice follow.
        """
        y_hat = torch.add(means, symbols, alpha=round(1 / MEAN_UNIT))
        self.symbols[cells, channels], self.y_hat[cells, channels] = symbols, y_hat
        if more:
            if not len(self._values):
                self._values = torch.zeros(len(self.symbols), 2 * y_hat.shape[1], dtype=torch.int8)
            self._values[cells] = stored_values(y_hat)
        if more or channels.stop < self.symbols.shape[1]:
            shown = slice(self.first + channels.start, self.first + channels.stop)
            self._shared[cells, shown] = stored_magnitudes(y_hat)
