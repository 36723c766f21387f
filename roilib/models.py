"""Image codecs, all CompressAI `CompressionModel`s: the scale hyperprior and the paper's extension by detector features.

`hyperprior` is CompressAI's `ScaleHyperprior` (Ballé et al. 2018) as it is. `build_model` makes a model from parameters,
`save_weights`/`load_weights` keep it with what it was built and trained with.
"""

import functools
import json
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
from compressai.layers import GDN
from compressai.models import CompressionModel, ScaleHyperprior
from compressai.models.google import get_scale_table
from compressai.models.utils import conv, deconv
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from roilib import rans
from roilib.detector import CODEC_CHANNELS, CODEC_STRIDES
from roilib.entropy import TOTAL
from roilib.integer import IntegerConv
from roilib.parameters import Parameters
from roilib.roi_vbr import RoiVbr, TailedGaussian


class Projection(nn.Module):
    """A hook's way into the codec: 1x1 convolution, then bilinear resize to where it joins."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hook: Tensor, size: torch.Size) -> Tensor:
        """hook (B, in, h, w) → (B, out, *size)."""
        return F.interpolate(self.conv(hook), size, mode="bilinear", align_corners=False)


class HyperpriorWithObjFeatures(CompressionModel):
    """Scale hyperprior whose encoder also sees a detector's features, with one hyperprior for the image and one for the objects.

                 hook 15     hook 18    hook 21          hooks 15, 18, 21
                    ▼           ▼          ▼                    ▼
        x ──►─ cat ─┴─g_a.0─ cat┴─g_a.2─cat┴─g_a.4─g_a.6─┬─►─ cat ─ |·| ─ h_a_obj ─►─ w ─ Q · EB ─ h_s_obj ─►─┐
                                                       y │                                                  ├─ scales_hat
                                                         ├─►─ |·| ─ h_a_image ───►─── z ─ Q · EB ─ h_s_image ►┘     │
                                                         ▼                                                         ▼
        x_hat ──◄─────────────── g_s ──────────◄──────── Q ─────────────────────────◄──────────────────────────── GC

    y has 2M channels; each hyperprior gives the scales of M of them. The decoder needs no detector.

    Args:
        N, M: channels of the transforms, half the channels of the latent.
        zero_hooks: features replaced by zeros (a model of the same size that sees no objects).
        mask_hooks: features replaced by the ROI mask.
    Source: Gorriz Viudez, "ROI-Aware Neural Image Compression for Teleoperation".
    """

    def __init__(self, N: int = 128, M: int = 192, zero_hooks: bool = False, mask_hooks: bool = False):
        super().__init__()
        self.N, self.M, self.zero_hooks, self.mask_hooks = N, M, zero_hooks, mask_hooks
        c15, c18, c21 = CODEC_CHANNELS
        self.g_a_hooks = nn.ModuleList([Projection(c15, 32), Projection(c18, 64), Projection(c21, 256)])
        self.g_a = nn.Sequential(conv(3 + 32, N), GDN(N), conv(N + 64, N), GDN(N), conv(N + 256, N), GDN(N), conv(N, 2 * M))
        self.g_s = nn.Sequential(
            deconv(2 * M, N), GDN(N, inverse=True), deconv(N, N), GDN(N, inverse=True), deconv(N, N), GDN(N, inverse=True), deconv(N, 3)
        )
        self.h_a_hooks = nn.ModuleList([Projection(c15, 128), Projection(c18, 256), Projection(c21, 512)])
        self.h_a_image, self.h_a_obj = hyper_analysis(2 * M, N), hyper_analysis(2 * M + 128 + 256 + 512, N)
        self.h_s_image, self.h_s_obj = hyper_synthesis(N, M), hyper_synthesis(N, M)
        self.entropy_bottleneck_image, self.entropy_bottleneck_obj = EntropyBottleneck(N), EntropyBottleneck(N)
        self.gaussian_conditional = GaussianConditional(None)

    @property
    def downsampling_factor(self) -> int:
        """Sides of x must be multiples of this."""
        return 64

    def hooks(self, x: Tensor, features: list[Tensor] | None, roi_mask: Tensor | None) -> list[Tensor]:
        """What the projections see: the features, zeros, or the ROI's share of each feature cell in every channel."""
        sizes = [(x.shape[-2] // s, x.shape[-1] // s) for s in CODEC_STRIDES]
        if self.zero_hooks:
            return [x.new_zeros(len(x), c, *size) for c, size in zip(CODEC_CHANNELS, sizes, strict=True)]
        if self.mask_hooks:
            if roi_mask is None:
                raise ValueError("this model was built with mask_hooks: it needs roi_mask")
            return [F.adaptive_avg_pool2d(roi_mask, size).expand(-1, c, -1, -1) for c, size in zip(CODEC_CHANNELS, sizes, strict=True)]
        if features is None:
            raise ValueError("this model needs the detector's features of layers 15, 18 and 21")
        return features

    def analysis(self, x: Tensor, hooks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, 3, H, W), H and W multiples of 64 → y (B, 2M, H/16, W/16), z and w (B, N, H/64, W/64)."""
        y = x
        for i, (projection, hook) in enumerate(zip(self.g_a_hooks, hooks, strict=True)):
            y = self.g_a[2 * i : 2 * i + 2](torch.cat([y, projection(hook, y.shape[-2:])], 1))
        y = self.g_a[6](y)
        objects = [projection(hook, y.shape[-2:]) for projection, hook in zip(self.h_a_hooks, hooks, strict=True)]
        return y, self.h_a_image(y.abs()), self.h_a_obj(torch.cat([y, *objects], 1).abs())

    def scales(self, z_hat: Tensor, w_hat: Tensor) -> Tensor:
        """scales_hat (B, 2M, H/16, W/16) of y."""
        return torch.cat([self.h_s_image(z_hat), self.h_s_obj(w_hat)], 1)

    def forward(self, x: Tensor, features: list[Tensor] | None = None, roi_mask: Tensor | None = None) -> dict:
        """x (B, 3, H, W) in [0, 1], sides multiples of 64; features: the detector's `codec_features`; roi_mask: (B, 1, H, W)."""
        y, z, w = self.analysis(x, self.hooks(x, features, roi_mask))
        z_hat, z_likelihoods = self.entropy_bottleneck_image(z)
        w_hat, w_likelihoods = self.entropy_bottleneck_obj(w)
        y_hat, y_likelihoods = self.gaussian_conditional(y, self.scales(z_hat, w_hat))
        return {"x_hat": self.g_s(y_hat), "likelihoods": {"y": y_likelihoods, "z": z_likelihoods, "w": w_likelihoods}}

    def compress(self, x: Tensor, features: list[Tensor] | None = None, roi_mask: Tensor | None = None) -> dict:
        """`strings` [y, z, w], each a list with one bytes a picture, and the `shape` of z and w. Call `update()` before."""
        y, z, w = self.analysis(x, self.hooks(x, features, roi_mask))
        z_strings, w_strings = self.entropy_bottleneck_image.compress(z), self.entropy_bottleneck_obj.compress(w)
        indexes = self._indexes(z_strings, w_strings, z.shape[-2:])
        return {"strings": [self.gaussian_conditional.compress(y, indexes), z_strings, w_strings], "shape": z.shape[-2:]}

    def decompress(self, strings: list[list[bytes]], shape: tuple[int, int]) -> dict:
        """`x_hat` (B, 3, H, W) in [0, 1] from what `compress` returned."""
        return {"x_hat": self.g_s(decode_latents(self, strings, shape)[1]).clamp_(0, 1)}

    def _indexes(self, z_strings: list[bytes], w_strings: list[bytes], shape: tuple[int, int]) -> Tensor:
        z_hat = self.entropy_bottleneck_image.decompress(z_strings, shape)
        w_hat = self.entropy_bottleneck_obj.decompress(w_strings, shape)
        return self.gaussian_conditional.build_indexes(self.scales(z_hat, w_hat))

    @classmethod
    def from_state_dict(cls, state_dict: dict, zero_hooks: bool = False, mask_hooks: bool = False) -> "HyperpriorWithObjFeatures":
        """A model of the sizes in `state_dict`, with its weights."""
        model = cls(state_dict["g_a.0.weight"].size(0), state_dict["g_a.6.weight"].size(0) // 2, zero_hooks, mask_hooks)
        model.load_state_dict(state_dict)
        return model


@torch.no_grad()
def decode_latents(model: CompressionModel, strings: list[list[bytes]], shape: tuple[int, int]) -> tuple[list[np.ndarray], Tensor]:
    """What a scale hyperprior (the baseline or the extended one) reads before its synthesis: the symbols of each latent, and y_hat.

    Raises ValueError for strings that its encoder did not write.
    """
    if isinstance(model, HyperpriorWithObjFeatures):
        bottlenecks, scales = (model.entropy_bottleneck_image, model.entropy_bottleneck_obj), model.scales
    else:
        bottlenecks, scales = (model.entropy_bottleneck,), model.h_s
    hyper, hyper_hat = [], []
    for bottleneck, own in zip(bottlenecks, strings[1:], strict=True):
        channels = np.arange(bottleneck.channels)[:, None, None]
        hyper.append(_read_symbols(bottleneck, own, np.broadcast_to(channels, (len(own), bottleneck.channels, *shape))))
        medians = bottleneck.quantiles[:, 0, 1, None, None]
        hyper_hat.append(torch.from_numpy(hyper[-1]).to(medians) + medians)
    y = _read_symbols(model.gaussian_conditional, strings[0], model.gaussian_conditional.build_indexes(scales(*hyper_hat)).cpu().numpy())
    return [y, *hyper], torch.from_numpy(y).to(hyper_hat[0])


def _read_symbols(entropy_model: EntropyModel, strings: list[bytes], indexes: np.ndarray) -> np.ndarray:
    """Symbols int32 (B, C, h, w) of one string a picture; indexes: the table of each."""
    values = (v.cpu().numpy() for v in (entropy_model._quantized_cdf, entropy_model._cdf_length, entropy_model._offset))
    tables = rans.Tables(*values)
    return np.stack([tables.read(s, own.ravel()).reshape(own.shape) for s, own in zip(strings, indexes, strict=True)])


def hyper_analysis(channels: int, N: int) -> nn.Sequential:
    """The scale hyperprior's h_a: `channels` at y's size → N at a quarter of it."""
    return nn.Sequential(conv(channels, N, 3, 1), nn.ReLU(inplace=True), conv(N, N), nn.ReLU(inplace=True), conv(N, N))


def hyper_synthesis(N: int, channels: int) -> nn.Sequential:
    """The scale hyperprior's h_s: N at z's size → `channels` at four times it."""
    return nn.Sequential(deconv(N, N), nn.ReLU(inplace=True), deconv(N, N), nn.ReLU(inplace=True), conv(N, channels, 3, 1), nn.ReLU(inplace=True))


def build_model(p: Parameters) -> CompressionModel:
    """The untrained model that `p.which` names."""
    if p.which == "roi_vbr":
        return RoiVbr(p.N, p.M)
    if p.which == "hyperprior_with_obj_features":
        return HyperpriorWithObjFeatures(p.N, p.M, p.zero_hooks, p.mask_hooks)
    return ScaleHyperprior(p.N, p.M)


def keep_entropy_models_in_fp32(model: CompressionModel) -> CompressionModel:
    """Make the model's entropy models compute in fp32 under autocast too: bf16 likelihoods are useless. In place."""
    for module in model.modules():
        if isinstance(module, EntropyModel):
            module.forward = functools.partial(_in_fp32, module.forward)
    return model


def _in_fp32(forward, *tensors: Tensor, **options):
    with torch.autocast(tensors[0].device.type, enabled=False):
        return forward(*(t.float() for t in tensors), **options)


SCALE_LEVELS = 256  # with CompressAI's 64 real bytes exceed the estimate by up to 4 %


def update_tables(model: CompressionModel) -> None:
    """Make the model's CDF tables for real coding, with a finer table of scales than CompressAI's own."""
    model.update(get_scale_table(levels=SCALE_LEVELS), force=True)


TABLES = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")  # made from the weights by update_tables
PICKLED = (".pt", ".pth", ".ckpt", ".tar")
STRUCTURE = ("which", "N", "M", "zero_hooks", "mask_hooks")  # parameters that weights must agree on
PLAIN = ("hyperprior", "hyperprior_eval_with_objs")  # engines of one and the same model


def save_weights(path: Path, model: CompressionModel, p: Parameters, step: int, half: bool = False, **more: str) -> None:
    """Write a safetensors file whose metadata holds the parameters, the step and `more`; atomically, and the same bytes each time.

    half: floats as fp16.
    """
    metadata = {"parameters": json.dumps(p.model_dump(), sort_keys=True), "step": str(step)} | more
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    state = {k: v.half() if half and v.is_floating_point() else v for k, v in state.items()}
    temporary = Path(path).with_suffix(".tmp")
    try:
        temporary.write_bytes(_in_order(save(state, metadata)))
    except OSError:  # a full disk, for example
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


def _in_order(file: bytes) -> bytes:
    """A safetensors file with its header's entries sorted: safetensors writes those of the metadata in another order each time."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + file[end:]


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """State dict and training parameters of a weights file. Raises ValueError naming the file."""
    if Path(path).suffix in PICKLED:
        raise ValueError(
            f"{path}: pickled weights can run code and are not read; give a run's weights.safetensors, or make it of a run's newest checkpoint: "
            "python -m roilib.ship RUN_FOLDER OUT.safetensors"
        )
    try:
        with safe_open(path, "pt") as file:
            parameters = dict(json.loads(file.metadata()["parameters"]))
            return {name: file.get_tensor(name) for name in file.keys()}, parameters  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such weights file") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a roilib weights file ({type(error).__name__}: {error})") from None


def check_size(path: str | Path, state: dict[str, Tensor], p: Parameters) -> None:
    """Raise ValueError for a file that says of itself that its model is larger than what it holds, before such a model is made.

    The paper's models have 5x5 convolutions from N to N and M channels; roi_vbr's N and M are bounded by its parameters.
    """
    if p.which != "roi_vbr" and 25 * p.N * max(p.N, p.M) > sum(v.numel() for v in state.values()):
        raise ValueError(f"{path}: too small for a {p.which} of N={p.N} and M={p.M}, which it says it is")


def load_state(path: str | Path, model: CompressionModel, state: dict[str, Tensor], which: str) -> None:
    """Give `model` the weights of a file. Raises ValueError when they are another model's, not finite, or integers that would not be exact."""
    try:
        model.load_state_dict(state)
    except (RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not weights of a {which} ({str(error).splitlines()[-1].strip()})") from None
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{path}: {name} has values that are not finite")
    try:
        for module in model.modules():
            if isinstance(module, IntegerConv):
                module.check()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_tables(path: str | Path, model: CompressionModel) -> None:
    """Raise ValueError unless the probability tables that came with a model's weights are some: the coder would not survive others."""
    for module in model.modules():
        if isinstance(module, EntropyModel) and not isinstance(module, TailedGaussian) and not _are_tables(module):
            raise ValueError(f"{path}: its probability tables are none")
    if isinstance(model, RoiVbr) and not ((model.y_counts > 0) & (model.y_counts <= TOTAL)).all():
        raise ValueError(f"{path}: its probability tables are none")


def _are_tables(model: EntropyModel) -> bool:
    """Whether each of an entropy model's tables rises from 0 to all of the coder's range."""
    cdfs, lengths = model._quantized_cdf.cpu().numpy(), model._cdf_length.cpu().numpy()
    if cdfs.ndim != 2 or not len(cdfs) == len(lengths) == model._offset.numel() > 0:
        return False
    rows = zip(cdfs, lengths, strict=True)
    return all(3 <= n <= len(cdf) and cdf[0] == 0 and cdf[n - 1] == 1 << rans.PRECISION and (np.diff(cdf[:n]) > 0).all() for cdf, n in rows)


def load_weights(path: str | Path, model: CompressionModel, p: Parameters) -> None:
    """Load a weights file into `model`. Raises ValueError when it was trained as another model than `p` describes.

    Training of the extended model may also start from a baseline of the same N and M.
    """
    state, trained = read_weights(path)
    from_baseline = p.what == "train" and p.which == "hyperprior_with_obj_features" and trained.get("which") in PLAIN
    for name in ("N", "M") if from_baseline else STRUCTURE:
        asked = getattr(p, name)
        if trained.get(name) != asked and not (name == "which" and {trained.get(name), asked} <= set(PLAIN)):
            raise ValueError(f"{path}: trained with {name}={trained.get(name)}, but the parameters say {name}={asked}")
    if from_baseline:
        baseline = ScaleHyperprior(p.N, p.M)
        load_state(path, baseline, state, trained["which"])
        start_from_baseline(model, baseline.state_dict())
    else:
        load_state(path, model, state, p.which)
    if not isinstance(model, RoiVbr):  # whose tables are in the file
        update_tables(model)


@torch.no_grad()
def start_from_baseline(model: HyperpriorWithObjFeatures, baseline: dict[str, Tensor]) -> None:
    """Give the extended model a ScaleHyperprior's weights, so that it decodes to the baseline's pictures before its first step.

    What only it has (hooks, the second M channels of y, the object hyperprior) keeps its initial weights, but nothing reads it yet: the weights by
    which the old channels depend on the new ones are zero, and grow in training.
    """
    own = model.state_dict()
    for name, value in baseline.items():
        if name.endswith(TABLES):
            continue
        mine = own[re.sub(r"^(h_a|h_s|entropy_bottleneck)\.", r"\1_image.", name)]
        if value.dim() == 4:
            inputs = 0 if name.startswith("g_s") else 1  # of a transposed convolution they come first
            mine.narrow(inputs, value.shape[inputs], mine.shape[inputs] - value.shape[inputs]).zero_()
        mine[tuple(map(slice, value.shape))] = value
