"""The decoded picture on integers: the same on every machine, bit by bit.

    y_hat · gain(q) ──► v ──► linear synthesis ──► L ─┬───────────────► (+) ──► round, clamp
                                                      └─► g_s(L, q) ─────┘

Fixed-point formats:

    gain          a row of M at every GAIN_STEP-th quality index, linear in between
    v             whole numbers; the step size differs by channel
    L             2^-LINEAR_SHIFT grey levels from middle grey, up to ±2^24
    input of g_s  -256 … 255: grey levels from middle grey; Q_UNIT steps of quality
    stream        between the blocks of g_s: 2^-STREAM_SHIFT of a channel's unit, up to ±2^24;
                  layers read it in whole units, -1024 … 1023
    hidden        inside a block: 0 … 1023 in a channel's unit
    correction    what g_s returns: 2^-GREY_SHIFT grey levels

The layers of g_s are those of roilib.models.integer.layers. The linear synthesis has int8 weights;
its sums are made in fp32 where none of them can exceed 2^24, else in fp64. What is left are single
products, additions and roundings of fp32 and fp64, which IEEE 754 defines.
"""

import functools
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cudnn, nnpack

from roilib.models.context import MEAN_UNIT, Q_MIDDLE, Q_SPREAD, Q_UNIT
from roilib.models.integer.layers import (
    EXACT,
    ExactConv,
    exact_dtype,
    settings,
)
from roilib.models.layers import cat_channels, pixel_unshuffle
from roilib.roi import CELL, Q_MAX

if TYPE_CHECKING:
    from roilib.models.roi_vbr import RoiVbr

INPUT_MAX, STREAM_MAX, HIDDEN_MAX = 256, 1024, 1023  # largest magnitudes of activations
WEIGHT_MAX, LAST_WEIGHT_MAX, LINEAR_MAX = 2047, 127, 127  # of g_s; of its last layer; of s_lin
V_MAX = 2.0**32  # fp64 adds 768 products of that and a weight exactly
LINEAR_SHIFT, STREAM_SHIFT, GREY_SHIFT = 13, 2, 6
GAIN_STEP, GAIN_SHIFT, GAIN_MAX = 16, 16, 2**26
GREY = 1 / 255  # a grey level, as float networks see it
LEAST_UNIT = 0.01  # of a channel, relative to the largest of its layer
CHUNK_CELLS = 2048  # of the linear synthesis at a time: a street frame is one chunk


class IntegerSynthesis(nn.Module):
    """The integer twin of roi_vbr's gain_s, s_lin and g_s; set by `quantise`.

    It is on the CPU or on CUDA: other devices lack fp64.
    """

    def __init__(self, M: int, g_s: nn.Sequential):
        super().__init__()
        first, *blocks, last, _ = g_s
        self.register_buffer("linear", torch.zeros(3 * CELL**2, M, dtype=torch.int8))
        self.register_buffer("gain", torch.zeros(Q_MAX // GAIN_STEP + 2, M, dtype=torch.int32))
        self.first = ExactConv(first, INPUT_MAX, None, WEIGHT_MAX)
        self.blocks = nn.ModuleList()
        for block in blocks:
            ends = (STREAM_MAX, HIDDEN_MAX), (HIDDEN_MAX, HIDDEN_MAX), (HIDDEN_MAX, None)
            convs = zip(block.body[::2], ends, strict=True)
            self.blocks.append(
                nn.Sequential(*(ExactConv(conv, *own, WEIGHT_MAX) for conv, own in convs))
            )
        self.last = ExactConv(last, STREAM_MAX, None, LAST_WEIGHT_MAX)

    def _apply(self, fn, recurse=True):  # what .to() calls
        super()._apply(fn, recurse)
        if self.linear.device.type not in ("cpu", "cuda"):
            super()._apply(lambda buffer: buffer.cpu(), recurse)
        return self

    @torch.no_grad()
    def forward(self, y_hat: Tensor, q: Tensor) -> Tensor:
        """Return the picture (3, 16 h, 16 w) uint8.

        y_hat (h, w, M) int32 in units of MEAN_UNIT; q (h, w): quality indices.
        """
        device = self.linear.device
        y_hat, q = y_hat.to(device), q.to(device)
        with (
            torch.autocast(device.type, enabled=False),
            nnpack.flags(enabled=False),  # other algorithms than sums of products
            cudnn.flags(enabled=False),
        ):
            dtype = exact_dtype(device.type)
            grey = self._linear(y_hat, q).mul_(2.0**-LINEAR_SHIFT)
            stream = self.first(self._input(grey, q[None, None]).to(dtype))
            for block in self.blocks:
                stream += block(self._read(stream))
            correction = F.pixel_shuffle(self.last(self._read(stream)), 8)
            correction = correction.float().mul_(2.0**-GREY_SHIFT)
            return correction.add_(grey).add_(127.5).round_().clamp_(0, 255).byte()[0]

    def _linear(self, y_hat: Tensor, q: Tensor) -> Tensor:
        """Return L (1, 3, 16 h, 16 w) fp32 of y_hat (h, w, M) and q (h, w)."""
        different, cells = q.flatten().int().unique(return_inverse=True)
        row, part = different // GAIN_STEP, (different % GAIN_STEP)[:, None]
        gains = self.gain[row] * (GAIN_STEP - part) + self.gain[row + 1] * part
        gains = gains.double() * (2.0**-GAIN_SHIFT / GAIN_STEP)
        chunks = zip(y_hat.flatten(0, 1).split(CHUNK_CELLS), cells.split(CHUNK_CELLS), strict=True)
        sums = torch.cat([exact_product(y * gains[own], self.linear.T) for y, own in chunks])
        return F.pixel_shuffle(sums.view(1, *q.shape, -1).movedim(-1, 1), CELL)

    @staticmethod
    def _input(grey: Tensor, q: Tensor) -> Tensor:
        """Return the input of g_s from grey levels (B, 3, H, W) and q (B, 1, h, w)."""
        near = grey.round().clamp_(-INPUT_MAX, INPUT_MAX - 1)
        steps = torch.floor((q.float() - Q_MIDDLE + Q_UNIT // 2) / Q_UNIT)
        fine = steps.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return cat_channels([pixel_unshuffle(near, 8), fine])

    @staticmethod
    def _read(stream: Tensor) -> Tensor:
        """Return the stream as layers read it."""
        return (stream * 2.0**-STREAM_SHIFT).round_().clamp_(-STREAM_MAX, STREAM_MAX - 1)

    def check(self) -> None:
        """Raise ValueError unless the linear synthesis is exact."""
        if (
            self.linear.int().abs().max() > LINEAR_MAX
            or not ((self.gain >= 0) & (self.gain <= GAIN_MAX)).all()
        ):
            raise ValueError("an integer synthesis whose sums are not exact")

    @torch.no_grad()
    def quantise(self, model: "RoiVbr", pictures: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take over the float networks.

        pictures: some (x, q) of `forward`, from which the ranges of activations are measured.
        """
        weight = model.s_lin[0].weight[:, :, 0, 0].double()
        largest = weight.abs().amax(0).clamp(min=1e-12) / LINEAR_MAX
        self.linear.copy_((weight / largest).round())
        rows = torch.arange(len(self.gain), device=weight.device) * GAIN_STEP
        gain = model.gain_s(rows[None, None, None].float())[0, :, 0].T.double() * largest
        gain *= MEAN_UNIT / GREY * 2.0 ** (LINEAR_SHIFT + GAIN_SHIFT)
        self.gain.copy_(gain.round().clamp(max=GAIN_MAX))
        first, *blocks, last, _ = model.g_s
        stream, hidden = _largest(model, pictures)
        unit, hidden = _units(stream, STREAM_MAX - 1), _units(hidden, HIDDEN_MAX)
        fine, device = unit * 2.0**-STREAM_SHIFT, weight.device
        grey_units = torch.full((192,), GREY, dtype=torch.float64, device=device)
        quality_unit = grey_units.new_tensor([Q_UNIT / Q_SPREAD])
        self.first.quantise(first, torch.cat([grey_units, quality_unit]), fine)
        for block, layers, own in zip(blocks, self.blocks, hidden, strict=True):
            units = itertools.pairwise((unit, *own, fine))
            for conv, layer, pair in zip(block.body[::2], layers, units, strict=True):
                layer.quantise(conv, *pair)
        self.last.quantise(last, unit, grey_units * 2.0**-GREY_SHIFT)


def _largest(model: "RoiVbr", pictures: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the largest magnitudes of the stream (N,) and of hidden activations (4, 2, N/2)."""
    first, *blocks, _, _ = model.g_s
    streams, insides = [], []
    for x, q in pictures:
        y_hat, _ = model.quantised(x, q)
        a = first(model.correction_input(model.linear(y_hat * model.gain_s(q)), q))
        streams.append(a.abs().amax((0, 2, 3)))
        for block in blocks:
            one, two, three = block.body[::2]
            inside = one(a).relu()
            insides.append(inside.amax((0, 2, 3)))
            inside = two(inside).relu()
            insides.append(inside.amax((0, 2, 3)))
            a = a + three(inside)
            streams.append(a.abs().amax((0, 2, 3)))
    hidden = torch.stack(insides).unflatten(0, (-1, len(blocks), 2)).amax(0)
    return torch.stack(streams).amax(0).double(), hidden.double()


def _units(largest: Tensor, steps: int) -> Tensor:
    """Return the units of channels (…, n) whose largest values take so many steps."""
    return largest.maximum(LEAST_UNIT * largest.amax(-1, keepdim=True)).clamp(min=1e-6) / steps


def exact_product(v: Tensor, weight: Tensor) -> Tensor:
    """Round v (n, k) fp64 and multiply it by weight (k, m) int8: fp32, clamped to ±EXACT."""
    v = v.round_().clamp_(-V_MAX, V_MAX)
    if v.device.type != "cpu" or not _fp32_products_are_exact(settings()):
        return (v @ weight.double()).clamp_(-EXACT, EXACT).float()
    sums = v.float() @ weight.float()
    # Seldom are a cell's numbers so large that fp32 could round their sum.
    large = (v.abs().sum(1) * LINEAR_MAX > EXACT).nonzero()[:, 0]
    if len(large):
        sums[large] = (v[large] @ weight.double()).clamp_(-EXACT, EXACT).float()
    return sums


@functools.cache
def _fp32_products_are_exact(under: tuple) -> bool:
    """Return whether a product of fp32 matrices keeps every sum, as torch is set."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randint(-LINEAR_MAX, LINEAR_MAX + 1, (768, 768), generator=g).double()
    v = torch.randint(-EXACT // LINEAR_MAX, EXACT // LINEAR_MAX + 1, (64, 768), generator=g)
    v = (v * (torch.rand(64, 768, generator=g) < 1 / 768)).double()  # about one a row
    v = v[v.abs().sum(1) * LINEAR_MAX <= EXACT]
    return torch.equal((v.float() @ weight.float()).double(), v @ weight)
