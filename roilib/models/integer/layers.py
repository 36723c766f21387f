"""Convolutions of whole numbers that every machine computes alike.

    a ──► Σ weight · a + bias ──► · 2^-shift ──► round ──► clamp to 0 … most, unless wide

Weights, biases and shifts are integers, one bias and shift an output channel. No sum exceeds 2^24,
so fp32 adds it exactly in any order, and a power of two changes no digit of it. It is rounded once,
to the nearest, halves to even, as IEEE 754 defines it.

`exact_dtype` chooses fp32, or fp64 where a self-test finds that fp32 is not exact: settings of
torch allow fp32 convolutions fewer bits.
"""

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXACT = 2**24  # fp32 adds whole numbers exactly up to this
OUTPUT_MAX = 2**21  # of a layer, so that a few may be added
SHIFTS = 24
POWERS = torch.tensor([2.0**-shift for shift in range(SHIFTS)], dtype=torch.float64)


class ExactConv(nn.Module):
    """The integers of an nn.Conv2d of an odd kernel that keeps the size.

    takes: the largest magnitude of its inputs. gives: outputs are clamped to 0 … gives; None: they
    are not. weight_max: the largest magnitude of a weight; up to 127 they are int8, else int16.
    """

    def __init__(self, conv: nn.Conv2d, takes: int, gives: int | None, weight_max: int):
        super().__init__()
        self.takes, self.gives, self.weight_max = takes, gives, weight_max
        self.edge = conv.kernel_size[0] // 2
        kind = torch.int8 if weight_max < 128 else torch.int16
        self.register_buffer("weight", torch.zeros(conv.weight.shape, dtype=kind))
        self.register_buffer("bias", torch.zeros(conv.out_channels, dtype=torch.int32))
        self.register_buffer("shift", torch.zeros(conv.out_channels, dtype=torch.int32))

    def forward(self, a: Tensor) -> Tensor:
        """Return (B, out, H, W) of a (B, in, H, W): whole numbers in `exact_dtype`."""
        scale = self._scale(a.dtype)
        weight = self.weight * scale[:, None, None, None]
        weight = weight.contiguous(memory_format=torch.channels_last)
        sums = F.conv2d(a, weight, self.bias * scale, padding=self.edge).round_()
        return sums if self.gives is None else sums.clamp_(0, self.gives)

    def _scale(self, dtype: torch.dtype) -> Tensor:
        """Return 2^-shift (out,)."""
        return POWERS.to(self.shift.device, dtype)[self.shift.long()]

    @torch.no_grad()
    def quantise(self, conv: nn.Conv2d, unit_in: Tensor, unit_out: Tensor) -> None:
        """Take over a float convolution; units (in,), (out,): what 1 of inputs and outputs is."""
        weight = conv.weight.double() * unit_in[:, None, None] / unit_out[:, None, None, None]
        bias = conv.bias.double() / unit_out
        total = (self.takes * weight.abs().sum((1, 2, 3)) + bias.abs()).clamp(min=1e-12)
        room = EXACT - self.takes * (weight[0].numel() / 2 + 1)  # rounding adds half a weight
        steps = self.weight_max / weight.abs().amax((1, 2, 3)).clamp(min=1e-12)
        steps = torch.minimum(steps, room / total)
        shift = steps.log2().floor().clamp(0, SHIFTS - 1)
        # An output whose unit is too small for its weights, as of a dead channel, shrinks to fit.
        scale = 2**shift * torch.minimum(steps, 0.9 * OUTPUT_MAX / total).clamp(max=1)
        self.weight.copy_((weight * scale[:, None, None, None]).round())
        self.bias.copy_((bias * scale).round())
        self.shift.copy_(shift)
        self.check()

    def check(self) -> None:
        """Raise ValueError unless every sum this layer can make is exact."""
        sums = self.takes * self.weight.double().abs().sum((1, 2, 3)) + self.bias.double().abs()
        if not ((self.shift >= 0) & (self.shift < SHIFTS)).all() or sums.max() > EXACT:
            raise ValueError("an integer layer whose sums are not exact")
        if (sums * self._scale(torch.float64)).max() > OUTPUT_MAX:
            raise ValueError("an integer layer whose outputs are too large")


def exact_dtype(device: str) -> torch.dtype:
    """Return the type in which `ExactConv` is exact on a kind of device, as torch is set."""
    if device != "cpu":
        return torch.float64  # fp32 may be TF32 there
    return torch.float32 if _fp32_is_exact(settings()) else torch.float64


def settings() -> tuple:
    """Return the settings of torch that choose the library or allow fp32 fewer bits."""
    onednn = torch.backends.mkldnn
    kinds = torch.backends, onednn, onednn.conv, onednn.matmul
    return onednn.enabled, *(kind.fp32_precision for kind in kinds)


@functools.cache
def _fp32_is_exact(under: tuple) -> bool:
    """Return whether convolutions in fp32 keep every sum on this machine."""
    return all(
        torch.equal(layer(a.float()).double(), layer(a.double())) for layer, a in stress_layers()
    )


def stress_layers() -> Iterator[tuple[ExactConv, Tensor]]:
    """Yield layers of each kind, and inputs that make large sums."""
    g = torch.Generator().manual_seed(0)
    for i, o, side, low, high, gives, weight_max in (
        (193, 96, 3, -256, 255, None, 2047),
        (96, 48, 1, -1024, 1023, 1023, 2047),
        (48, 48, 3, 0, 1023, 1023, 2047),
        (48, 96, 1, 0, 1023, None, 2047),
        (96, 192, 3, -1024, 1023, None, 127),
    ):
        takes = max(-low, high)
        layer = ExactConv(nn.Conv2d(i, o, side), takes, gives, weight_max)
        weight = torch.randint(-weight_max, weight_max + 1, layer.weight.shape, generator=g)
        weight[::2] = weight_max
        most = takes * weight.abs().sum((1, 2, 3)).max()
        weight = (weight * min(1, EXACT / 1.5 / most)).trunc()
        room = int(EXACT - takes * weight.abs().sum((1, 2, 3)).max())
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.randint(-room, room, (o,), generator=g))
        layer.shift.copy_(torch.randint(6, 15, (o,), generator=g))
        layer.check()
        a = torch.randint(low, high + 1, (1, i, 9, 7), generator=g).double()
        a = torch.where(torch.rand(a.shape, generator=g) < 0.5, high, a)
        yield layer, a.contiguous(memory_format=torch.channels_last)
