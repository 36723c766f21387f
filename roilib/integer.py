"""Networks on integers: what decides a symbol's probability must be the same number on every machine.

A float network of convolutions, ReLUs and pixel shuffles becomes one whose inputs, weights and activations are integers of at most 8 bits
(and a sign), carried as fp32. Its sums stay below 2^24, where fp32 adds integers exactly in any order, and its factors are exact in bf16, fp16
and TF32 too. So neither threads, memory layout, instruction set, library nor reduced-precision matrix units can change a result.

    a ──► W_q · a + b_q ──► floor(· 2^-shift) ──► clamp to 0 … 255 ──► next layer, which undoes the scale of its inputs

ReLUs pass positive factors on, so each channel has its own scale; only the outputs of the last layer have a unit that the caller chooses.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

W_MAX, A_MAX, SUM_MAX, HEADROOM = 255, 255, 2**24 - 1, 1.25


class IntegerConv(nn.Module):
    """A convolution on integers, its sums shifted right; shapes are those of the nn.Conv2d it stands for."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.padding = conv.padding
        self.register_buffer("weight", torch.zeros_like(conv.weight))
        self.register_buffer("bias", torch.zeros(conv.out_channels))
        self.register_buffer("scale", torch.ones(conv.out_channels))  # 2^-shift

    def forward(self, a: Tensor) -> Tensor:
        """a (B, C, H, W), integers of magnitude ≤ 255 → (B, out, H, W), integers."""
        return torch.floor(F.conv2d(a, self.weight, self.bias, padding=self.padding) * self.scale[:, None, None])

    @torch.no_grad()
    def quantise(self, conv: nn.Conv2d, unit_in: Tensor, a_max: Tensor, unit_out: Tensor | None, group: int) -> Tensor:
        """Take over a float convolution; returns the units of the outputs (out,).

        unit_in: value of 1 of each input channel (in,). For a hidden layer a_max (out,) is the largest activation to represent, and `group`
        channels in a row share a unit, for the pixel shuffle behind them. For the last one unit_out (out,) are powers of two.
        """
        weight, bias = (conv.weight * unit_in[:, None, None]).double(), conv.bias.double()
        largest, total = weight.abs().amax((1, 2, 3)).clamp(min=1e-12), weight.abs().sum((1, 2, 3)).clamp(min=1e-12)
        room = (SUM_MAX // 2) / (total * A_MAX)
        finest = torch.minimum(W_MAX / largest, room)  # steps a unit of the sum, at most
        finest = finest.reshape(-1, group).amin(1, keepdim=True).expand(-1, group).reshape(-1)
        if unit_out is None:
            a_max = a_max.double().reshape(-1, group).amax(1, keepdim=True).expand(-1, group).reshape(-1).clamp(min=1e-6)
            shift = torch.ceil(torch.log2(a_max * finest / A_MAX)).clamp(min=0)
            steps = torch.minimum(finest, A_MAX * 2**shift / a_max)
            unit_out = 2**shift / steps
        else:
            shift = torch.floor(torch.log2(finest * unit_out.double())).clamp(min=0)
            steps = 2**shift / unit_out.double()
        self.weight.copy_((weight * steps[:, None, None, None]).round())
        limit = SUM_MAX // 2
        self.bias.copy_(((bias * steps).round() + torch.where(shift > 0, 2 ** (shift - 1), 0)).clamp(-limit, limit))
        self.scale.copy_(2.0**-shift)
        self.check()
        return unit_out.float()

    def check(self) -> None:
        """Raise ValueError unless every sum this layer can make is exact."""
        whole = bool((self.weight == self.weight.round()).all() and (self.bias == self.bias.round()).all())
        exponent = torch.log2(self.scale)
        largest = self.weight.abs().double().sum((1, 2, 3)) * A_MAX + self.bias.abs().double()
        if not (whole and self.weight.abs().max() <= W_MAX and largest.max() <= SUM_MAX and bool((exponent == exponent.round()).all())):
            raise ValueError("an integer network whose sums are not exact")


class IntegerNet(nn.Module):
    """The integer twin of a float nn.Sequential of Conv2d, ReLU and PixelShuffle; empty until `quantise`.

    It stays in fp32 on the CPU, wherever the model that it is part of goes.
    """

    def __init__(self, net: nn.Sequential):
        super().__init__()
        self.layers = nn.ModuleList(IntegerConv(layer) if isinstance(layer, nn.Conv2d) else layer for layer in net)
        self.last = max(i for i, layer in enumerate(net) if isinstance(layer, nn.Conv2d))
        self.ends_in_relu = any(isinstance(layer, nn.ReLU) for layer in net[self.last :])

    def _apply(self, fn, recurse=True):  # what .to(), .cuda() and .half() call
        return self

    def forward(self, a: Tensor) -> Tensor:
        """a (B, C, H, W): integers of magnitude ≤ 255, in fp32 on the CPU."""
        with torch.autocast(a.device.type, enabled=False):  # it would round the sums to bf16
            for i, layer in enumerate(self.layers):
                a = layer(a)
                if isinstance(layer, IntegerConv) and (i != self.last or self.ends_in_relu):
                    a = a.clamp_(0, A_MAX)
        return a

    @torch.no_grad()
    def quantise(self, net: nn.Sequential, inputs: Sequence[Tensor], unit_in: Tensor, unit_out: Tensor | None = None) -> Tensor:
        """Take over the float network; returns the units of its outputs.

        inputs: float inputs (B, C, H, W) that show how large activations become; unit_in (in,): value of 1 of each input channel, so that the
        integer input is input / unit_in; unit_out (out,): powers of two, units of the outputs, or None where the network ends in a ReLU.
        """
        if (unit_out is None) != self.ends_in_relu:
            raise ValueError("unit_out belongs to a network that does not end in a ReLU")
        net, inputs, unit_in = copy.deepcopy(net).cpu(), [a.cpu() for a in inputs], unit_in.cpu()
        largest = {i: HEADROOM * value for i, value in self._largest(net, inputs).items()}
        convs = [i for i, layer in enumerate(net) if isinstance(layer, nn.Conv2d)]
        for i in convs:
            group = math.prod(layer.upscale_factor**2 for layer in net[i + 1 : _next(convs, i, len(net))] if isinstance(layer, nn.PixelShuffle))
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
