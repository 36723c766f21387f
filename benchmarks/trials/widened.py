"""Today's roi_vbr with two additions that begin at zero, to go on from its shipped weights.

x ─┬─► a_lin ──────────────► (+) ─► y              the learned analysis adds to all channels
   └─► g_a ─► all 768 ────────┘
y_hat ─┬─► · gain_s ─► s_lin ─┬──────────────────────────────► (+) ─► x_hat
       │                      └─► first layer ─► (+) ─► blocks ─┘
       └─► signed log ─► 1x1 ─► shuffled to 1/8 ──┘          g_s sees y_hat itself
"""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from structures import signed_log
from torch import Tensor, nn

from roilib.models.context import condition
from roilib.models.layers import cat_channels, pixel_unshuffle
from roilib.models.roi_vbr import RoiVbr


class Widened(RoiVbr):
    """roi_vbr whose learned parts see and add to everything.

    both: with the additions; without them it is today's structure, for comparison.
    """

    def __init__(self, N: int = 96, M: int = 768, both: bool = True):
        super().__init__(N, M)
        self.both = both
        if both:
            self.g_a[-1] = nn.Conv2d(N, M, 4, 2, 1)
            self.of_symbols = nn.Sequential(nn.Conv2d(M + 1, 4 * N, 1), nn.PixelShuffle(2))

    def synthesis(self, v: Tensor, q: Tensor) -> Tensor:
        """Transform y_hat after its gain to x_hat."""
        if not self.both:
            return super().synthesis(v, q)
        x, quality = self.s_lin(v), condition(q)
        fine = F.interpolate(quality, scale_factor=2, mode="nearest")
        first = self.g_s[0](cat_channels([pixel_unshuffle(x, 8), fine]))
        logs = signed_log(v / self.gain_s(q))
        return self.g_s[1:](first + self.of_symbols(cat_channels([logs, quality]))) + x + 0.5

    @torch.no_grad()
    def start_from(self, path: str) -> None:
        """Take the weights of a trained roi_vbr; what it lacks begins at zero."""
        old, own = load_file(path), self.state_dict()
        for name, value in own.items():
            if name.startswith("of_symbols"):
                value.zero_()
            elif name not in old:
                continue
            elif old[name].shape == value.shape:
                value.copy_(old[name])
            elif name.startswith("g_a"):
                value.zero_()[: len(old[name])] = old[name]
        self.load_state_dict(own)
