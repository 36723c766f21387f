"""Integer networks: the probability of a symbol must be the same on every machine.

A float network of convolutions, ReLUs and pixel shuffles becomes an integer one:

    a ──► W · a + b ──► floor(· 2^-shift) ──► clamp to 0 … 255 ──► next layer

Fixed-point formats:

    a       int8           inputs and activations; what is never negative is stored as a - 128
    W       int8           or, where eight bits are too few ("fine"), 14 bits: 64 * high + low,
                           both int8
    W · a   below 2^24     fp32 adds such integers exactly, in any order
    b       int32          |b| ≤ 2^29; also makes up for inputs stored as a - 128
    shift   0 … 31         one an output channel
    output  int8 or int32  of a network that ends in a ReLU, or not

The factors are exact in bf16, fp16 and TF32, too. So neither threads, memory layout, instruction
set, library nor reduced-precision matrix units can change a result. int8 matrix products are used
where they are fast and keep every bit.

Each hidden channel has its own unit (the value of integer 1), because ReLUs commute with positive
factors. The caller chooses the units of the last layer's outputs.
"""

import copy
import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

MAX = 127  # of a signed value or a weight
SUM_MAX = 2**24 - 1  # fp32 adds integers up to this exactly
BIAS_MAX = 2**29
PLANE_SHIFT = 6  # the high part of a fine weight counts 2^6 times
ZERO = -128  # stands for 0 where values are never negative
LARGEST = 255  # largest value of a channel that is never negative
CHUNK_ROWS = 8192  # rows in fp32 at a time: a street frame is one chunk, large pictures save memory


def product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply a (n, k) and b (k, m) of int8 to exact int32 (n, m); no sum exceeds SUM_MAX."""
    # Without VNNI torch's int8 product takes 18 times as long as fp32's, which is exact, too.
    vnni = torch.cpu._is_vnni_supported()
    if vnni and torch.backends.mkldnn.enabled and int8_products_are_exact():
        # _int_mm misreads overlapping rows, as those of patches can be.
        return torch._int_mm(a.contiguous(), b)
    factor = b.float()
    sums = torch.empty(len(a), b.shape[1], dtype=torch.int32)
    for start in range(0, len(a), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        sums[chunk] = a[chunk].float() @ factor
    return sums


@functools.cache
def int8_products_are_exact() -> bool:
    """Return whether this machine's int8 products are exact.

    Some instruction sets saturate sums at 16 bits.
    """
    rows = torch.tensor([[1, 1], [-1, -1], [1, -1]]).repeat(8, 128) * MAX
    exact = rows.double() @ rows.T.double()
    rows = rows.to(torch.int8)
    return bool((torch._int_mm(rows, rows.T.contiguous()) == exact).all())


def patches(a: Tensor, side: int, zero: Tensor, cells: np.ndarray | None = None) -> Tensor:
    """Return the inputs of a convolution at each cell: (B, H, W, C) → (B, H, W, side² C).

    zero (C,): the padding value of each channel. cells (n,): numbers of cells row by row;
    with them, only these cells are returned: (B, n, side² C).
    """
    edge, (batch, height, width, channels) = side // 2, a.shape
    padded = a.new_empty(batch, height + 2 * edge, width + 2 * edge, channels)
    padded[:, edge : edge + height, edge : edge + width] = a
    for sides in (padded, padded.movedim(2, 1)):
        sides[:, :edge] = sides[:, sides.shape[1] - edge :] = zero
    if cells is None:
        return padded.unfold(1, side, 1).unfold(2, side, 1).permute(0, 1, 2, 4, 5, 3).flatten(3)
    row, steps = width + 2 * edge, np.arange(side)
    corners = cells // width * row + cells % width
    seen = corners[:, None] + (steps[:, None] * row + steps).ravel()  # numbers of padded cells
    chosen = padded.flatten(1, 2).index_select(1, torch.from_numpy(seen.ravel()))
    return chosen.reshape(batch, len(cells), side**2 * channels)


class IntegerConv(nn.Module):
    """An nn.Conv2d on integers, of an odd kernel that keeps the size; its sums are shifted right.

    zero (in,): the int8 that stands for 0 in each input channel; fine: weights of 14 bits, whose
    high and low parts are columns of one matrix.
    """

    def __init__(self, conv: nn.Conv2d, zero: Tensor, fine: bool = False):
        super().__init__()
        self.side, self.zero, self.fine = conv.kernel_size[0], zero, fine
        shape = self.side**2 * conv.in_channels, conv.out_channels * (1 + fine)
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("bias", torch.zeros(conv.out_channels, dtype=torch.int32))
        self.register_buffer("shift", torch.zeros(conv.out_channels, dtype=torch.int32))

    def forward(self, a: Tensor, cells: np.ndarray | None = None) -> Tensor:
        """Return (B, H, W, out) int32 of a (B, H, W, in) int8; with cells, (B, n, out)."""
        if self.side > 1:
            a = patches(a, self.side, self.zero, cells)
        sums = product(a.flatten(0, -2), self.weight).unflatten(0, a.shape[:-1])
        if self.fine:
            high, low = sums.chunk(2, -1)
            sums = high.bitwise_left_shift_(PLANE_SHIFT).add_(low)
        return sums.add_(self.bias).bitwise_right_shift_(self.shift)

    @torch.no_grad()
    def quantise(
        self, conv: nn.Conv2d, unit_in: Tensor, a_max: Tensor, unit_out: Tensor | None, group: int
    ) -> Tensor:
        """Convert a float convolution; return the units of the outputs (out,).

        unit_in (in,): the value of integer 1 in each input channel. a_max (out,): the largest
        activation that a hidden layer must represent. group: number of consecutive channels that
        share a unit, for the pixel shuffle after them. unit_out (out,): powers of two, for the last
        layer.
        """
        weight, bias = (conv.weight * unit_in[:, None, None]).double(), conv.bias.double()
        largest = weight.abs().amax((1, 2, 3)).clamp(min=1e-12)
        total = weight.abs().sum((1, 2, 3)).clamp(min=1e-12)
        weight_max, sum_max = MAX, SUM_MAX // 2
        if self.fine:
            weight_max, sum_max = MAX << PLANE_SHIFT, SUM_MAX // 4 << PLANE_SHIFT
        # The most steps a unit of the sum that weights, sums and biases have room for.
        finest = torch.minimum(weight_max / largest, sum_max / (total * -ZERO))
        finest = torch.minimum(finest, BIAS_MAX // 4 / bias.abs().clamp(min=0.25))
        finest = _share(finest.reshape(-1, group).amin(1, keepdim=True), group)
        if unit_out is None:
            a_max = _share(a_max.double().reshape(-1, group).amax(1, keepdim=True), group)
            a_max = a_max.clamp(min=1e-6)
            octaves = torch.log2(a_max * finest / LARGEST)
            # Fine weights have bits to spare, activations have none.
            shift = (octaves.floor() if self.fine else octaves.ceil()).clamp(min=0)
            steps = torch.minimum(finest, LARGEST * 2**shift / a_max)
            unit_out = 2**shift / steps
        else:
            shift = torch.floor(torch.log2(finest * unit_out.double())).clamp(min=0)
            steps = 2**shift / unit_out.double()
        weight = (weight * steps[:, None, None, None]).round().permute(2, 3, 1, 0).flatten(0, 2)
        high = (weight / 2**PLANE_SHIFT).round()
        self.weight.copy_(
            torch.cat([high, weight - high * 2**PLANE_SHIFT], 1) if self.fine else weight
        )
        of_zeros = (weight.unflatten(0, (-1, conv.in_channels)) * self.zero[:, None]).sum((0, 1))
        half = torch.where(shift > 0, 2 ** (shift - 1), 0)  # shifts then round to the nearest
        self.bias.copy_(((bias * steps).round() + half - of_zeros).clamp(-BIAS_MAX, BIAS_MAX))
        self.shift.copy_(shift)
        self.check()
        return unit_out.float()

    def check(self) -> None:
        """Raise ValueError unless every sum this layer can make is exact."""
        sums, bias = self.weight.double().abs().sum(0) * -ZERO, self.bias.double().abs()
        shifts_fit = ((self.shift >= 0) & (self.shift < 32)).all()
        if sums.max() > SUM_MAX or bias.max() > BIAS_MAX or not shifts_fit:
            raise ValueError("an integer network whose sums are not exact")


class IntegerNet(nn.Module):
    """The integer twin of an nn.Sequential of Conv2d, ReLU and PixelShuffle; set by `quantise`.

    It stays on the CPU, and its buffers stay integers, wherever the model around it is moved.
    signed: the input channels that can be negative. Other inputs, and outputs behind a ReLU, store
    0 as ZERO. fine: as in IntegerConv.
    """

    def __init__(self, net: nn.Sequential, signed: Sequence[int] = (), fine: bool = False):
        super().__init__()
        zero = torch.full((net[0].in_channels,), ZERO, dtype=torch.int8)
        zero[list(signed)] = 0
        self.layers = nn.ModuleList()
        for layer in net:
            if isinstance(layer, nn.Conv2d):
                self.layers.append(IntegerConv(layer, zero, fine))
                zero = torch.full((layer.out_channels,), ZERO, dtype=torch.int8)
                continue
            self.layers.append(layer)
            if isinstance(layer, nn.PixelShuffle):
                zero = zero[:: layer.upscale_factor**2]
        convs = [i for i, layer in enumerate(net) if isinstance(layer, nn.Conv2d)]
        self.last = convs[-1]
        self.last_wide = max((i for i in convs if net[i].kernel_size[0] > 1), default=None)
        self.ends_in_relu = any(isinstance(layer, nn.ReLU) for layer in net[self.last :])

    def _apply(self, fn, recurse=True):  # what .to(), .cuda() and .half() call
        return self

    @torch.no_grad()
    def forward(self, a: Tensor, cells: np.ndarray | None = None) -> Tensor:
        """Return (B, H', W', out) of a (B, H, W, C) int8 on the CPU.

        int8 if the network ends in a ReLU, else int32. cells (n,): numbers of cells row by row;
        with them, only these cells are computed: (B, n, out).
        """
        with torch.autocast(a.device.type, enabled=False):  # autocast would round sums to bf16
            for i, layer in enumerate(self.layers):
                if isinstance(layer, nn.PixelShuffle):
                    a = layer(a.movedim(-1, 1)).movedim(1, -1).contiguous()
                elif isinstance(layer, IntegerConv):
                    a = layer(a, cells if i == self.last_wide else None)
                    if i != self.last or self.ends_in_relu:
                        a = a.clamp_(0, LARGEST).add_(ZERO).to(torch.int8)
        return a

    @torch.no_grad()
    def quantise(
        self,
        net: nn.Sequential,
        inputs: Sequence[Tensor],
        unit_in: Tensor,
        unit_out: Tensor | None = None,
    ) -> Tensor:
        """Convert the float network; return the units of its outputs.

        inputs: float inputs (B, C, H, W), from which the ranges of activations are measured.
        unit_in (in,): the value of integer 1 in each input channel: an integer input is
        input / unit_in, stored as `signed` says. unit_out (out,): powers of two, units of the
        outputs; None if the network ends in a ReLU.
        """
        if (unit_out is None) != self.ends_in_relu:
            raise ValueError("unit_out belongs to a network that does not end in a ReLU")
        net, inputs, unit_in = copy.deepcopy(net).cpu(), [a.cpu() for a in inputs], unit_in.cpu()
        largest = self._largest(net, inputs)
        convs = [i for i, layer in enumerate(net) if isinstance(layer, nn.Conv2d)]
        for i, after in zip(convs, [*convs[1:], len(net)], strict=True):
            shuffles = [layer for layer in net[i + 1 : after] if isinstance(layer, nn.PixelShuffle)]
            group = math.prod(layer.upscale_factor**2 for layer in shuffles)
            final = unit_out if i == self.last else None
            unit_in = self.layers[i].quantise(net[i], unit_in, largest[i], final, group)[::group]
        return unit_in

    @staticmethod
    def _largest(net: nn.Sequential, inputs: Sequence[Tensor]) -> dict[int, Tensor]:
        """Return the largest value of each convolution's output channels over the inputs."""
        largest: dict[int, Tensor] = {}
        for a in inputs:
            for i, layer in enumerate(net):
                a = layer(a)
                if isinstance(layer, nn.Conv2d):
                    seen = a.amax((0, 2, 3))
                    largest[i] = torch.maximum(largest[i], seen) if i in largest else seen
        return largest


def _share(values: Tensor, group: int) -> Tensor:
    """Return values (n / group, 1) as (n,), equal within each group."""
    return values.expand(-1, group).reshape(-1)
