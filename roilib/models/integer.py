"""Networks on integers: what decides a symbol's probability must be the same number on every machine.

A float network of convolutions, ReLUs and pixel shuffles becomes one whose inputs, weights and activations are int8. Its sums stay below 2^24,
where fp32 adds integers exactly in any order, and its factors are exact in bf16, fp16 and TF32 too. So neither threads, memory layout,
instruction set, library nor reduced-precision matrix units can change a result; where int8 matrix products keep every bit they are used.

    a ──► W · a + b ──► floor(· 2^-shift) ──► clamp to 0 … 255 ──► next layer, which undoes the scale of its inputs

Where eight bits are too few for weights, two int8 make one of fourteen: W = 64 * high + low, two products of the same inputs.

What is never negative is stored as a - 128, so that it has all eight bits; the biases make up for it.

ReLUs pass positive factors on, so each channel has its own scale; only the outputs of the last layer have a unit that the caller chooses.
"""

import copy
import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

MAX, SUM_MAX, BIAS_MAX = 127, 2**24 - 1, 2**29
PLANE_SHIFT = 6  # 2 to its power: how much more the high part of a fine weight counts
ZERO, LARGEST = -128, 255  # how 0 is stored of what is never negative, and its largest value


def product(a: Tensor, b: Tensor) -> Tensor:
    """a (n, k) · b (k, m) of int8, as exact int32 (n, m), where no sum exceeds SUM_MAX."""
    # Without VNNI torch's int8 product takes 18 times as long as fp32's, which is exact here too.
    vnni = torch.cpu._is_vnni_supported()
    if vnni and torch.backends.mkldnn.enabled and int8_products_are_exact():
        return torch._int_mm(
            a.contiguous(), b
        )  # it misreads rows that overlap, as those of patches can
    return (a.float() @ b.float()).int()


@functools.cache
def int8_products_are_exact() -> bool:
    """Whether this machine's int8 products keep their largest sums: some instruction sets saturate them at 16 bits."""
    rows = torch.tensor([[1, 1], [-1, -1], [1, -1]]).repeat(8, 128) * MAX
    exact = rows.double() @ rows.T.double()
    return bool(
        (torch._int_mm(rows.to(torch.int8), rows.T.contiguous().to(torch.int8)) == exact).all()
    )


def patches(a: Tensor, side: int, zero: Tensor, cells: np.ndarray | None = None) -> Tensor:
    """(B, H, W, C) → (B, H, W, side² C): of each cell the values that a convolution sees, the zero (C,) of each channel beyond the border.

    With cells (n,), numbers of cells row by row, only of these: (B, n, side² C).
    """
    edge, (batch, height, width, channels) = side // 2, a.shape
    padded = a.new_empty(batch, height + 2 * edge, width + 2 * edge, channels)
    padded[:, edge : edge + height, edge : edge + width] = a
    for sides in (padded, padded.movedim(2, 1)):
        sides[:, :edge] = sides[:, sides.shape[1] - edge :] = zero
    if cells is None:
        return padded.unfold(1, side, 1).unfold(2, side, 1).permute(0, 1, 2, 4, 5, 3).flatten(3)
    row, steps = width + 2 * edge, np.arange(side)
    numbers = (cells // width * row + cells % width)[:, None] + (
        steps[:, None] * row + steps
    ).ravel()  # of the padded cells that each one sees
    return (
        padded.flatten(1, 2)
        .index_select(1, torch.from_numpy(numbers.ravel()))
        .reshape(batch, len(cells), side**2 * channels)
    )


class IntegerConv(nn.Module):
    """The nn.Conv2d of an odd kernel that keeps the size, on integers, its sums shifted right.

    zero (in,): int8 that stands for 0 in its inputs; fine: weights of fourteen bits, their high parts beside their low ones.
    """

    def __init__(self, conv: nn.Conv2d, zero: Tensor, fine: bool = False):
        super().__init__()
        self.side, self.zero, self.fine = conv.kernel_size[0], zero, fine
        self.register_buffer(
            "weight",
            torch.zeros(
                self.side**2 * conv.in_channels, conv.out_channels * (1 + fine), dtype=torch.int8
            ),
        )
        self.register_buffer("bias", torch.zeros(conv.out_channels, dtype=torch.int32))
        self.register_buffer("shift", torch.zeros(conv.out_channels, dtype=torch.int32))

    def forward(self, a: Tensor, cells: np.ndarray | None = None) -> Tensor:
        """a (B, H, W, in) int8 → (B, H, W, out) int32; with cells, as in `patches`, (B, n, out)."""
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
        """Take over a float convolution; returns the units of the outputs (out,).

        unit_in: value of 1 of each input channel (in,). For a hidden layer a_max (out,) is the largest activation to represent, and `group`
        channels in a row share a unit, for the pixel shuffle behind them. For the last one unit_out (out,) are powers of two.
        """
        weight, bias = (conv.weight * unit_in[:, None, None]).double(), conv.bias.double()
        largest, total = (
            weight.abs().amax((1, 2, 3)).clamp(min=1e-12),
            weight.abs().sum((1, 2, 3)).clamp(min=1e-12),
        )
        room, tightest = (
            (MAX, SUM_MAX // 2)
            if not self.fine
            else (MAX << PLANE_SHIFT, SUM_MAX // 4 << PLANE_SHIFT)
        )
        finest = torch.minimum(
            room / largest, tightest / (total * -ZERO)
        )  # steps a unit of the sum, at most
        finest = torch.minimum(finest, BIAS_MAX // 4 / bias.abs().clamp(min=0.25))
        finest = finest.reshape(-1, group).amin(1, keepdim=True).expand(-1, group).reshape(-1)
        if unit_out is None:
            a_max = (
                a_max.double()
                .reshape(-1, group)
                .amax(1, keepdim=True)
                .expand(-1, group)
                .reshape(-1)
                .clamp(min=1e-6)
            )
            octaves = torch.log2(a_max * finest / LARGEST)
            shift = (octaves.floor() if self.fine else octaves.ceil()).clamp(
                min=0
            )  # fine weights have bits to spare, activations have none
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
        half = torch.where(shift > 0, 2 ** (shift - 1), 0)  # of a step: to nearest
        self.bias.copy_(((bias * steps).round() + half - of_zeros).clamp(-BIAS_MAX, BIAS_MAX))
        self.shift.copy_(shift)
        self.check()
        return unit_out.float()

    def check(self) -> None:
        """Raise ValueError unless every sum this layer can make is exact."""
        sums, bias = self.weight.double().abs().sum(0) * -ZERO, self.bias.double().abs()
        if (
            sums.max() > SUM_MAX
            or bias.max() > BIAS_MAX
            or not ((self.shift >= 0) & (self.shift < 32)).all()
        ):
            raise ValueError("an integer network whose sums are not exact")


class IntegerNet(nn.Module):
    """The integer twin of a float nn.Sequential of Conv2d, ReLU and PixelShuffle; empty until `quantise`.

    It stays on the CPU, and the integers that it is, wherever the model that it is part of goes. signed: the input channels that can be negative;
    of the others, and of outputs behind a ReLU, 0 is stored as ZERO. fine: as in IntegerConv.
    """

    def __init__(self, net: nn.Sequential, signed: Sequence[int] = (), fine: bool = False):
        super().__init__()
        zero = torch.full((net[0].in_channels,), ZERO, dtype=torch.int8)
        zero[list(signed)] = 0
        self.layers = nn.ModuleList()
        for layer in net:
            self.layers.append(
                IntegerConv(layer, zero, fine) if isinstance(layer, nn.Conv2d) else layer
            )
            if isinstance(layer, nn.Conv2d):
                zero = torch.full((layer.out_channels,), ZERO, dtype=torch.int8)
            elif isinstance(layer, nn.PixelShuffle):
                zero = zero[:: layer.upscale_factor**2]
        self.last = max(i for i, layer in enumerate(net) if isinstance(layer, nn.Conv2d))
        self.last_wide = max(
            (
                i
                for i, layer in enumerate(net)
                if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > 1
            ),
            default=None,
        )
        self.ends_in_relu = any(isinstance(layer, nn.ReLU) for layer in net[self.last :])

    def _apply(self, fn, recurse=True):  # what .to(), .cuda() and .half() call
        return self

    @torch.no_grad()
    def forward(self, a: Tensor, cells: np.ndarray | None = None) -> Tensor:
        """a (B, H, W, C) int8 on the CPU → (B, H', W', out): int8 of a network that ends in a ReLU, else int32.

        With cells (n,), numbers of cells row by row, only these are computed: (B, n, out).
        """
        with torch.autocast(a.device.type, enabled=False):  # it would round the sums to bf16
            for i, layer in enumerate(self.layers):
                if isinstance(layer, nn.PixelShuffle):
                    a = layer(a.movedim(-1, 1)).movedim(1, -1).contiguous()
                elif isinstance(layer, IntegerConv):
                    a = layer(a, cells if i == self.last_wide else None)
                    a = (
                        a.clamp_(0, LARGEST).add_(ZERO).to(torch.int8)
                        if i != self.last or self.ends_in_relu
                        else a
                    )
        return a

    @torch.no_grad()
    def quantise(
        self,
        net: nn.Sequential,
        inputs: Sequence[Tensor],
        unit_in: Tensor,
        unit_out: Tensor | None = None,
    ) -> Tensor:
        """Take over the float network; returns the units of its outputs.

        inputs: float inputs (B, C, H, W) that show how large activations become; unit_in (in,): value of 1 of each input channel, so that the
        integer input is input / unit_in, stored as `signed` says; unit_out (out,): powers of two, units of the outputs, or None where the network
        ends in a ReLU.
        """
        if (unit_out is None) != self.ends_in_relu:
            raise ValueError("unit_out belongs to a network that does not end in a ReLU")
        net, inputs, unit_in = copy.deepcopy(net).cpu(), [a.cpu() for a in inputs], unit_in.cpu()
        largest = self._largest(net, inputs)
        convs = [i for i, layer in enumerate(net) if isinstance(layer, nn.Conv2d)]
        for i in convs:
            group = math.prod(
                layer.upscale_factor**2
                for layer in net[i + 1 : _next(convs, i, len(net))]
                if isinstance(layer, nn.PixelShuffle)
            )
            final = unit_out if i == self.last else None
            unit_in = self.layers[i].quantise(net[i], unit_in, largest[i], final, group)[::group]
        return unit_in

    @staticmethod
    def _largest(net: nn.Sequential, inputs: Sequence[Tensor]) -> dict[int, Tensor]:
        """By convolution: the largest value of each output channel over the inputs."""
        largest: dict[int, Tensor] = {}
        for a in inputs:
            for i, layer in enumerate(net):
                a = layer(a)
                if isinstance(layer, nn.Conv2d):
                    seen = a.amax((0, 2, 3))
                    largest[i] = torch.maximum(largest[i], seen) if i in largest else seen
        return largest


def _next(convs: list[int], i: int, end: int) -> int:
    """The index of the convolution after i, or the end."""
    return next((j for j in convs if j > i), end)
