"""The noise that stands for quantisation in training, keyed by seed, step and sample.

CompressAI's entropy models draw it from the global random state, where it depends on how many pictures a process codes and on
everything drawn before. Here picture i of a step's global batch always gets the same noise: on one process or on many, and after a resume.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable

import torch
from compressai.entropy_models import EntropyBottleneck, EntropyModel
from compressai.models import CompressionModel
from torch import Tensor


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A random source that depends on `key` alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


class QuantisationNoise:
    """Uniform noise in [-0.5, 0.5) for every entropy model of `model`, which it changes in place.

    Call `at(step, samples)` before each training forward: samples are the pictures' places in the step's global batch.
    """

    def __init__(self, model: CompressionModel, seed: int):
        self.seed, self.step, self.samples, self.calls = seed, 0, [], Counter()
        for name, module in model.named_modules():
            if isinstance(module, EntropyModel):
                module.quantize = functools.partial(self._quantize, module, name)

    def at(self, step: int, samples: Iterable[int]) -> None:
        """The next forward is of these samples."""
        self.step, self.samples, self.calls = step, list(samples), Counter()

    @torch.compiler.disable
    def _quantize(
        self,
        module: EntropyModel,
        name: str,
        inputs: Tensor,
        mode: str,
        means: Tensor | None = None,
    ) -> Tensor:
        if mode != "noise":
            return type(module).quantize(module, inputs, mode, means)
        return inputs + self._noise(
            name, inputs, channels_first=isinstance(module, EntropyBottleneck)
        )

    def _noise(self, name: str, like: Tensor, channels_first: bool) -> Tensor:
        """Noise for (B, C, H, W), or for the (C, 1, B·H·W) that an EntropyBottleneck makes of it."""
        shape = (
            (len(like), like.numel() // len(like) // len(self.samples))
            if channels_first
            else like.shape[1:]
        )
        self.calls[name] += 1  # a model may ask one entropy model several times
        noise = torch.empty(len(self.samples), *shape, dtype=like.dtype, device=like.device)
        for part, sample in zip(noise, self.samples, strict=True):
            part.uniform_(
                -0.5,
                0.5,
                generator=generator(
                    like.device, self.seed, self.step, sample, name, self.calls[name]
                ),
            )
        return noise.transpose(0, 1).reshape(like.shape) if channels_first else noise
