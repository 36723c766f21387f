"""Training that knows the decoder's integers: inputs and weights of its convolutions, rounded.

`prepare(model)` makes the decoder's convolutions compute what `integer_trunks` will, in floats and
straight through. Units of activations follow the largest ones that were seen, which are no weights:
the first batches after a restart set them anew.
"""

from types import MethodType

import torch
import torch.nn.functional as F
from integer_layer import LARGEST, WEIGHT_MAX, ZERO
from integer_trunks import LOG_STEPS, Q_UNIT
from structures import LINEAR, Q_SPREAD, VALUE_SCALE, Trunks
from torch import Tensor, nn

FORGET = 0.999  # of the largest activation seen, kept a step


class _Through(torch.autograd.Function):
    """Rounded and clamped; the gradient passes where nothing was clamped."""

    @staticmethod
    def forward(ctx, x: Tensor, least, most) -> Tensor:
        rounded = x.round()
        clamped = rounded.clamp(least, most)
        ctx.save_for_backward(rounded == clamped)
        return clamped

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:
        return g * ctx.saved_tensors[0], None, None


class Inputs:
    """What 1 of a convolution's stored inputs is worth: by channel given, or (0) as seen."""

    def __init__(self, given: Tensor, signed: Tensor):
        self.given, self.seen = given, torch.zeros(len(given))
        self.least, self.most = (
            -ZERO * signed,
            torch.where(signed > 0, (ZERO - 1) * signed, LARGEST),
        )

    def unit(self) -> Tensor:
        seen = self.seen.clamp(min=0.01 * float(self.seen.max())).clamp(min=1e-6)
        return torch.where(self.given > 0, self.given, seen / LARGEST)

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        if training or not self.seen.any():
            most = x.detach().amax((0, 2, 3))
            self.seen = torch.maximum(self.seen * FORGET, most)
        unit = self.unit()[:, None, None]
        least, most = (v[:, None, None] for v in (self.least, self.most))
        return _Through.apply(x / unit, least, most) * unit


def _forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    x = conv.inputs(x, conv.training)
    unit = conv.inputs.unit().detach()
    unit = unit[:, None, None, None] if conv.groups > 1 else unit[:, None, None]
    scaled = conv.weight * unit
    # steps are a power of two a unit of output, half to all of the range: here the half
    step = scaled.detach().abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12) / (WEIGHT_MAX // 2)
    weight = _Through.apply(scaled / step, -WEIGHT_MAX, WEIGHT_MAX) * (step / unit)
    return F.conv2d(x, weight, conv.bias, padding=conv.padding, groups=conv.groups)


def prepare(model: Trunks) -> None:
    """Make the decoder's networks of `model` know its integers, from now on."""
    n, (n0, n1) = model.h_s[-3].out_channels // 4, model.slices[:2]
    unsigned, log, q = [0.0], [1 / LOG_STEPS], [Q_UNIT / Q_SPREAD]
    hyper = n * [(0.0, 0.0)] + [(*q, 1.0)]
    logs = lambda k: k * [(*log, 1.0)] + k * [(*log, 0.0)]  # noqa: E731
    values = LINEAR * [(1 / 64 / VALUE_SCALE, 1000.0)]  # in two parts: hardly ever clamped
    given = {
        model.h_s[0]: model.h_s[0].in_channels * [(1.0, 1.0)],
        model.base[0]: hyper,
        model.base[1]: hyper + logs(n0),
        model.base[2]: hyper + n1 * [(*log, 0.0)],
        model.s16[0]: model.M * [(*log, 1.0)] + hyper,
        model.s8_in: 192 * [(1 / 255, 1.0)] + [(*q, 1.0)],
    }
    given |= {net.known: logs(n0) + values for net in model.e0 if net.known is not None}
    given |= {net.known: logs(n1 - n0) for net in model.e1 if net.known is not None}
    parts = (model.h_s, model.base, model.e0, model.e1, model.e2, model.s16, model.s8_in, model.s8)
    for part in parts:
        for conv in part.modules():
            if isinstance(conv, nn.Conv2d):
                rows = given.get(conv, conv.in_channels * [(*unsigned, 0.0)])
                conv.inputs = Inputs(*torch.tensor(rows).T)
                conv.forward = MethodType(_forward, conv)
    for trunk, last in ((model.s16, -3), (model.s8, -2)):  # a trunk has one unit a channel
        convs = [block.body[0] for block in trunk if hasattr(block, "body")] + [trunk[last]]
        for conv in convs[1:]:
            conv.inputs = convs[0].inputs
