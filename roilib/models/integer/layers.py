"""Convolutions of whole numbers that every machine computes alike.

    a ──► Σ weight · a + bias ──► · 2^-shift ──► round ──► clamp to 0 … 255, unless wide

Inputs a are of one of three RANGES:

    byte     0 … 255         behind a ReLU
    signed   -128 … 127
    deep     -1024 … 1023    two bytes for the int8 kernel: the bits above DEEP_SHIFT, and the rest

Weights are int8, -127 … 127; bias and shift are integers, one an output channel. No sum exceeds
2^24, so fp32 adds it exactly in any order, and a power of two changes no digit of it. It is rounded
once, to the nearest, halves to even, as IEEE 754 defines it.

`exact_dtype` chooses how a machine computes that: by oneDNN's int8 kernel, in fp32, or in fp64. A
self-test decides, since int8 sums saturate without VNNI, and settings of torch allow fp32
convolutions fewer bits.

`rounded_conv` gives equal numbers in training. Gradients pass through the rounding
(straight-through; Bengio et al. 2013).
"""

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roilib.models.layers import cat_channels

RANGES = {"byte": (0, 255), "signed": (-128, 127), "deep": (-1024, 1023)}
OFFSET = 128  # signed bytes are stored plus this for the int8 kernel
DEEP_SHIFT = 3
EXACT = 2**24  # fp32 adds whole numbers exactly up to this
OUTPUT_MAX = 2**21  # of a layer, so that a few may be added
WEIGHT_MAX, SHIFTS = 127, 24
POWERS = torch.tensor([2.0**-shift for shift in range(SHIFTS)], dtype=torch.float64)


def bound(takes: str) -> int:
    """Return the largest magnitude of an activation, signed bytes taken as the kernel has them."""
    return max(255, -RANGES[takes][0])


class ByteConv(nn.Module):
    """The integers of an nn.Conv2d of an odd kernel that keeps the size.

    takes: the key in RANGES of its inputs. wide: outputs are not clamped.
    """

    def __init__(self, conv: nn.Conv2d, takes: str, wide: bool):
        super().__init__()
        self.takes, self.wide, self.edge = takes, wide, conv.kernel_size[0] // 2
        self.register_buffer("weight", torch.zeros(conv.weight.shape, dtype=torch.int8))
        self.register_buffer("bias", torch.zeros(conv.out_channels, dtype=torch.int32))
        self.register_buffer("shift", torch.zeros(conv.out_channels, dtype=torch.int32))
        self._forget()
        self.register_load_state_dict_post_hook(ByteConv._forget)

    def _forget(self, *_) -> None:
        """Forget what has been made of the integers for faster sums."""
        self._plain: tuple[Tensor, Tensor] | None = None
        self._packed: dict[bool, tuple[Tensor, ...]] = {}

    def __getstate__(self) -> dict:  # oneDNN's packed weights cannot be copied
        return self.__dict__ | {"_plain": None, "_packed": {}}

    def forward(self, a: Tensor) -> Tensor:
        """Return (B, out, H, W) of a (B, in, H, W), whole numbers, channels last.

        a: fp32 or fp64, or uint8 as `stored` returns it, for the int8 kernel. Outputs are of a's
        type, wide ones of uint8 in fp32.
        """
        if a.dtype == torch.uint8:
            return self._of_bytes(a)
        weight = self._plain[0] if self._plain else None
        if weight is None or (weight.dtype, weight.device) != (a.dtype, a.device):
            scale = self._scale(a.dtype)
            weight = self.weight * scale[:, None, None, None]
            weight = weight.contiguous(memory_format=torch.channels_last)
            self._plain = weight, self.bias * scale
        sums = F.conv2d(a, *self._plain, padding=self.edge).round_()
        return sums if self.wide else sums.clamp_(*RANGES["byte"])

    def _scale(self, dtype: torch.dtype) -> Tensor:
        """Return 2^-shift (out,)."""
        return POWERS.to(self.shift.device, dtype)[self.shift.long()]

    def _of_bytes(self, a: Tensor) -> Tensor:
        """Return what `forward` does, by the int8 kernel."""
        if self.takes != "deep":
            out = self._kernel(a, high=self.takes == "signed", wide=self.wide)
            return out.round_() if self.wide else out
        high, low = a.chunk(2, 1)
        out = self._kernel(high, high=True, wide=True).add_(
            self._kernel(low, high=False, wide=True)
        )
        out = out.round_()
        return out if self.wide else out.clamp_(*RANGES["byte"]).byte()

    def _kernel(self, a: Tensor, high: bool, wide: bool) -> Tensor:
        """Return oneDNN's sums of uint8, scaled.

        high: a holds signed bytes plus OFFSET, of deep activations the upper ones. Their sums take
        the bias along.
        """
        edges = [0 if high else self.edge] * 2
        if high and self.edge:
            a = F.pad(a, [self.edge] * 4, value=OFFSET)
            a = a.contiguous(memory_format=torch.channels_last)
        if high not in self._packed:
            self._packed[high] = self._pack(high, edges, a.shape)
        kind = (torch.float32, "none") if wide else (torch.uint8, "relu")
        of_shape = [1, 1], edges, [1, 1], 1, 1.0, 0
        own = self._packed[high]
        return torch.ops.onednn.qconv_pointwise(a, 1.0, 0, *own, *of_shape, *kind, [], "")

    def _pack(self, high: bool, edges: list[int], shape: torch.Size) -> tuple[Tensor, ...]:
        """Return weights in oneDNN's layout, scales, zero points and biases."""
        left = 2**DEEP_SHIFT if high and self.takes == "deep" else 1
        scale, bias = self._scale(torch.float32), self.bias
        if high:
            bias = bias - left * OFFSET * self.weight.sum((1, 2, 3), dtype=torch.int32)
        elif self.takes == "deep":
            bias = torch.zeros_like(bias)
        of_shape = 1.0, 0, [1, 1], edges, [1, 1], 1, list(shape)
        weight = self.weight.contiguous()
        packed = torch.ops.onednn.qconv_prepack(weight, left * scale, *of_shape)
        return packed, left * scale, torch.zeros_like(self.shift).long(), bias * scale

    @torch.no_grad()
    def quantise(self, conv: nn.Conv2d, unit_in: Tensor, unit_out: Tensor) -> None:
        """Take over a float convolution; units (in,), (out,): what 1 of inputs and outputs is."""
        weight, bias, shift = integers(conv, self.takes, unit_in, unit_out)
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.shift.copy_(shift)
        self._forget()
        self.check()

    def check(self) -> None:
        """Raise ValueError unless every sum this layer can make is exact."""
        sums = bound(self.takes) * self.weight.double().abs().sum((1, 2, 3))
        sums += self.bias.double().abs()
        if not ((self.shift >= 0) & (self.shift < SHIFTS)).all() or sums.max() > EXACT:
            raise ValueError("an integer layer whose sums are not exact")
        if (sums * self._scale(torch.float64)).max() > OUTPUT_MAX:
            raise ValueError("an integer layer whose outputs are too large")


class _Nearest(torch.autograd.Function):
    """To the nearest whole number; the gradient passes."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


nearest = _Nearest.apply


def integers(
    conv: nn.Conv2d, takes: str, unit_in: Tensor, unit_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight, bias and shift of a convolution's `ByteConv`, as floats with gradients."""
    unit_in, unit_out = (unit.to(conv.weight.device) for unit in (unit_in, unit_out))
    weight = conv.weight * (unit_in[:, None, None] / unit_out[:, None, None, None])
    bias = conv.bias / unit_out
    with torch.no_grad():
        total = (bound(takes) * weight.abs().sum((1, 2, 3)) + bias.abs()).clamp(min=1e-12)
        room = EXACT - bound(takes) * (weight[0].numel() / 2 + 1)  # rounding adds half a weight
        steps = WEIGHT_MAX / weight.abs().amax((1, 2, 3)).clamp(min=1e-12)
        steps = torch.minimum(steps, room / total)
        shift = steps.log2().floor().clamp(0, SHIFTS - 1)
        # An output whose unit is too small for its weights, as of a dead channel, shrinks to fit.
        fits = torch.minimum(steps, 0.9 * OUTPUT_MAX / total).clamp(max=1)
        scale = 2**shift * fits
    return nearest(weight * scale[:, None, None, None]), nearest(bias * scale), shift


def rounded_conv(
    conv: nn.Conv2d, takes: str, a: Tensor, unit_in: Tensor, unit_out: Tensor
) -> Tensor:
    """Return what a wide `ByteConv` does after `quantise`, with gradients."""
    weight, bias, shift = integers(conv, takes, unit_in, unit_out)
    scale = 2**-shift
    weight = weight * scale[:, None, None, None]
    return nearest(F.conv2d(a, weight, bias * scale, padding=conv.padding))


def stored(a: Tensor, takes: str, dtype: torch.dtype) -> Tensor:
    """Return activations of one of the RANGES as a `ByteConv` takes them in `exact_dtype`.

    In uint8, signed ones are stored plus OFFSET; deep ones are twice as many channels.
    """
    if dtype != torch.uint8:
        return a.to(dtype)
    if takes == "deep":
        high = torch.floor(a * 2.0**-DEEP_SHIFT)
        return cat_channels([high + OFFSET, a - high * 2**DEEP_SHIFT]).byte()
    return (a + OFFSET if takes == "signed" else a).byte()


def exact_dtype(device: str) -> torch.dtype:
    """Return the fastest type in which `ByteConv` is exact on a kind of device, as torch is set."""
    if device != "cpu":
        return torch.float64  # fp32 may be TF32 there
    dtypes = (torch.uint8, torch.float32, torch.float64)
    return next(dtype for dtype in dtypes if _is_exact(dtype, settings()))


def settings() -> tuple:
    """Return the settings of torch that allow fp32 fewer bits, or another library."""
    onednn = torch.backends.mkldnn
    kinds = torch.backends, onednn, onednn.conv, onednn.matmul
    return onednn.enabled, *(kind.fp32_precision for kind in kinds)


@functools.cache
def _is_exact(dtype: torch.dtype, under: tuple) -> bool:
    """Return whether convolutions in this type keep every sum on this processor."""
    if dtype == torch.uint8 and not (under[0] and torch.cpu._is_vnni_supported()):
        return False  # without VNNI sums saturate at 16 bits, or int8 is slow
    for layer, a in stress_layers(WEIGHT_MAX):
        try:
            found = layer(stored(a, layer.takes, dtype))
        except (AttributeError, RuntimeError):  # a build of torch without this kernel
            return False
        if not torch.equal(found.double(), layer(a.double())):
            return False
    return True


def stress_layers(weight_max: int) -> Iterator[tuple[ByteConv, Tensor]]:
    """Yield layers of each kind with weights up to ±weight_max, and inputs that make large sums."""
    g = torch.Generator().manual_seed(0)
    for i, o, side, takes, wide in (
        (193, 96, 3, "signed", True),
        (96, 48, 1, "deep", False),
        (48, 48, 3, "byte", False),
        (48, 96, 1, "byte", True),
        (96, 192, 3, "deep", True),
    ):
        layer = ByteConv(nn.Conv2d(i, o, side), takes, wide)
        weight = torch.randint(-weight_max, weight_max + 1, layer.weight.shape, generator=g)
        weight[::2] = weight_max
        share = EXACT / (1.5 * bound(takes) * weight_max * weight[0].numel())
        weight *= torch.rand(weight.shape, generator=g) < share
        room = int(EXACT - bound(takes) * weight.abs().sum((1, 2, 3)).max())
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.randint(-room, room, (o,), generator=g))
        layer.shift.copy_(torch.randint(6, 15, (o,), generator=g))
        layer.check()
        low, high = RANGES[takes]
        a = torch.randint(low, high + 1, (1, i, 9, 7), generator=g).float()
        a = torch.where(torch.rand(a.shape, generator=g) < 0.5, high, a)
        yield layer, a.contiguous(memory_format=torch.channels_last)
