"""The decoded picture on integers: the same on every machine, bit by bit.

    y_hat · gain(q) ──► v ──► linear synthesis ──► L ─┬───────────────► (+) ──► round, clamp
                                                      └─► g_s(L, q) ─────┘

Fixed-point formats:

    gain          a row of M at every GAIN_STEP-th quality index, linear in between
    v             whole numbers; the step size differs by channel
    L             2^-LINEAR_SHIFT grey levels from middle grey, up to ±2^24
    input of g_s  signed: grey levels from middle grey; Q_UNIT steps of quality
    stream        between the blocks of g_s: 2^-STREAM_SHIFT of `stream_unit`, up to ±2^24. Layers
                  read it as deep activations in steps of `stream_unit`
    hidden        inside a block: bytes in `hidden_units`
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
    RANGES,
    ByteConv,
    exact_dtype,
    nearest,
    rounded_conv,
    settings,
    stored,
)
from roilib.models.layers import cat_channels, pixel_unshuffle
from roilib.roi import CELL, Q_MAX

if TYPE_CHECKING:
    from roilib.models.roi_vbr import RoiVbr

LINEAR_MAX = 127  # of a weight of the linear synthesis
V_MAX = 2.0**32  # fp64 adds 768 products of that and a weight exactly
LINEAR_SHIFT, STREAM_SHIFT, GREY_SHIFT = 13, 2, 6
GAIN_STEP, GAIN_SHIFT, GAIN_MAX = 8, 16, 2**27
GREY = 1 / 255  # a grey level, as float networks see it
LEAST_UNIT = 0.01  # of a channel, relative to the largest of its layer
CHUNK_CELLS = 2048  # of the linear synthesis at a time: a street frame is one chunk


class IntegerSynthesis(nn.Module):
    """The integer twin of roi_vbr's gain_s, s_lin and g_s; set by `measure`, then `quantise`.

    It is on the CPU or on CUDA: other devices lack fp64.
    """

    def __init__(self, M: int, g_s: nn.Sequential):
        super().__init__()
        first, *blocks, last, _ = g_s
        N = first.out_channels
        self.register_buffer("linear", torch.zeros(3 * CELL**2, M, dtype=torch.int8))
        self.register_buffer("gain", torch.zeros(Q_MAX // GAIN_STEP + 2, M, dtype=torch.int32))
        self.register_buffer("stream_unit", torch.ones(N))
        self.register_buffer("hidden_units", torch.ones(len(blocks), 2, N // 2))
        self.first = ByteConv(first, "signed", wide=True)
        self.blocks = nn.ModuleList()
        for block in blocks:
            one, two, three = block.body[::2]
            layers = (one, "deep", False), (two, "byte", False), (three, "byte", True)
            self.blocks.append(nn.Sequential(*(ByteConv(*layer) for layer in layers)))
        self.last = ByteConv(last, "deep", wide=True)

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
            stream = self.first(stored(self._input(grey, q[None, None]), "signed", dtype))
            for block in self.blocks:
                stream += block(stored(self._read(stream), "deep", dtype))
            correction = self.last(stored(self._read(stream), "deep", dtype))
            correction = F.pixel_shuffle(correction, 8).float().mul_(2.0**-GREY_SHIFT)
            return correction.add_(grey).add_(127.5).round_().clamp_(0, 255).byte()[0]

    def rounded(self, g_s: nn.Sequential, x: Tensor, q: Tensor) -> Tensor:
        """Return the correction (B, 3, H, W) of g_s as decoders compute it, with gradients.

        x (B, 3, H, W): the linear picture, 0 at middle grey, 1 from black to white; q (B, 1, H/16,
        W/16). All units must be known (`measure`).
        """
        with torch.autocast(x.device.type, enabled=False):
            first, *blocks, last, _ = g_s
            unit, fine = self.stream_unit, self.stream_unit * 2.0**-STREAM_SHIFT
            a = self._input(x.float() / GREY, q)
            stream = rounded_conv(first, "signed", a, input_units(), fine)
            for block, (unit_1, unit_2) in zip(blocks, self.hidden_units, strict=True):
                one, two, three = block.body[::2]
                a = rounded_conv(one, "deep", self._read(stream), unit, unit_1)
                a = rounded_conv(two, "byte", a.clamp(*RANGES["byte"]), unit_1, unit_2)
                a = rounded_conv(three, "byte", a.clamp(*RANGES["byte"]), unit_2, fine)
                stream = stream + a
            a = rounded_conv(last, "deep", self._read(stream), unit, correction_units())
            return F.pixel_shuffle(a, 8) * (GREY * 2.0**-GREY_SHIFT)

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
        near = nearest(grey).clamp(*RANGES["signed"])
        steps = torch.floor((q.float() - Q_MIDDLE + Q_UNIT // 2) / Q_UNIT)
        fine = steps.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return cat_channels([pixel_unshuffle(near, 8), fine])

    @staticmethod
    def _read(stream: Tensor) -> Tensor:
        """Return the stream as layers read it."""
        return nearest(stream * 2.0**-STREAM_SHIFT).clamp(*RANGES["deep"])

    @property
    def measured(self) -> bool:
        """Whether the units of activations are known."""
        return bool((self.stream_unit != 1).any())

    def forget_units(self) -> None:
        """Make `measured` false: the weights will change."""
        self.stream_unit.fill_(1)

    @torch.no_grad()
    def measure(self, model: "RoiVbr", pictures: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set the units of activations from their ranges over pictures, (x, q) of `forward`."""
        first, *blocks, _, _ = model.g_s
        stream_max = torch.zeros_like(self.stream_unit)
        hidden_max = torch.zeros_like(self.hidden_units)
        for x, q in pictures:
            y_hat, _ = model.quantised(x, q)
            a = first(model.correction_input(model.linear(y_hat * model.gain_s(q)), q))
            stream_max = stream_max.maximum(a.abs().amax((0, 2, 3)))
            for block, seen in zip(blocks, hidden_max, strict=True):
                one, two, three = block.body[::2]
                inside_1 = one(a).relu()
                inside_2 = two(inside_1).relu()
                for own, inside in zip(seen, (inside_1, inside_2), strict=True):
                    own.copy_(own.maximum(inside.amax((0, 2, 3))))
                a = a + three(inside_2)
                stream_max = stream_max.maximum(a.abs().amax((0, 2, 3)))
        for unit, most, steps in (
            (self.stream_unit, stream_max, RANGES["deep"][1]),
            (self.hidden_units, hidden_max, RANGES["byte"][1]),
        ):
            least = LEAST_UNIT * most.amax(-1, keepdim=True)
            unit.copy_(most.maximum(least).clamp(min=1e-6) / steps)

    def check(self) -> None:
        """Raise ValueError unless the linear synthesis is exact."""
        if (
            self.linear.int().abs().max() > LINEAR_MAX
            or not ((self.gain >= 0) & (self.gain <= GAIN_MAX)).all()
        ):
            raise ValueError("an integer synthesis whose sums are not exact")

    @torch.no_grad()
    def quantise(self, model: "RoiVbr") -> None:
        """Take over the float networks, with the units that `measure` has found."""
        weight = model.s_lin[0].weight[:, :, 0, 0].double()
        largest = weight.abs().amax(0).clamp(min=1e-12) / LINEAR_MAX
        self.linear.copy_((weight / largest).round())
        rows = torch.arange(len(self.gain), device=weight.device) * GAIN_STEP
        gain = model.gain_s(rows[None, None, None].float())[0, :, 0].T.double() * largest
        gain *= MEAN_UNIT / GREY * 2.0 ** (LINEAR_SHIFT + GAIN_SHIFT)
        self.gain.copy_(gain.round().clamp(max=GAIN_MAX))
        first, *blocks, last, _ = model.g_s
        unit, fine = self.stream_unit, self.stream_unit * 2.0**-STREAM_SHIFT
        self.first.quantise(first, input_units(), fine)
        for block, layers, own in zip(blocks, self.blocks, self.hidden_units, strict=True):
            units = itertools.pairwise((unit, *own, fine))
            for conv, layer, pair in zip(block.body[::2], layers, units, strict=True):
                layer.quantise(conv, *pair)
        self.last.quantise(last, unit, correction_units())


def input_units() -> Tensor:
    """Return what 1 of each input of g_s is worth to the float network."""
    return torch.tensor([GREY] * 192 + [Q_UNIT / Q_SPREAD])


def correction_units() -> Tensor:
    """Return what 1 of each output of g_s is worth to the float network."""
    return torch.full((192,), GREY * 2.0**-GREY_SHIFT)


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
