"""Entropy models for training: fp32 under autocast, and noise keyed by seed, step and sample.

CompressAI's entropy models draw the noise that stands for quantisation from the global random
state. There it depends on the pictures a process codes and on everything drawn before. Here
picture i of a step's global batch always gets the same noise, on one process or on many, and after
a resume.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
from compressai.models import CompressionModel
from torch import Tensor


class KeyedEntropyModel(EntropyModel):
    """An entropy model that always computes in fp32, because bf16 likelihoods are useless.

    noise: returns the training noise for a tensor; None: CompressAI's own noise.
    """

    noise: Callable[[Tensor], Tensor] | None = None

    def forward(self, *tensors: Tensor, **options) -> tuple[Tensor, Tensor]:
        """Return the quantised latent and its likelihoods, as CompressAI does."""
        with torch.autocast(tensors[0].device.type, enabled=False):
            return super().forward(*(t.float() for t in tensors), **options)

    @torch.compiler.disable
    def quantize(self, inputs: Tensor, mode: str, means: Tensor | None = None) -> Tensor:
        """Add noise, or round, as CompressAI's `quantize`."""
        if mode != "noise" or self.noise is None:
            return super().quantize(inputs, mode, means)
        return inputs + self.noise(inputs)


class KeyedBottleneck(KeyedEntropyModel, EntropyBottleneck):
    """CompressAI's EntropyBottleneck, which models z."""


class KeyedGaussian(KeyedEntropyModel, GaussianConditional):
    """CompressAI's GaussianConditional, which models y."""


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """Return a random source that depends on `key` alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


class QuantisationNoise:
    """Uniform noise in [-0.5, 0.5) for every entropy model of `model`.

    Call `at(step, samples)` before each training forward: samples are the pictures' places in the
    step's global batch.
    """

    def __init__(self, model: CompressionModel, seed: int):
        self.seed, self.step, self.samples, self.calls = seed, 0, [], Counter()
        for name, module in model.named_modules():
            if isinstance(module, KeyedEntropyModel):
                by_channel = isinstance(module, EntropyBottleneck)
                module.noise = functools.partial(self._noise, name, by_channel)

    def at(self, step: int, samples: Iterable[int]) -> None:
        """Say that the next forward codes these samples."""
        self.step, self.samples, self.calls = step, list(samples), Counter()

    def _noise(self, name: str, by_channel: bool, like: Tensor) -> Tensor:
        """Return noise for (B, C, H, W), or for the (C, 1, B·H·W) of an EntropyBottleneck."""
        shape = like.shape[1:]
        if by_channel:
            shape = (len(like), like.numel() // len(like) // len(self.samples))
        self.calls[name] += 1  # a model may use one entropy model several times
        noise = torch.empty(len(self.samples), *shape, dtype=like.dtype, device=like.device)
        for part, sample in zip(noise, self.samples, strict=True):
            key = self.seed, self.step, sample, name, self.calls[name]
            part.uniform_(-0.5, 0.5, generator=generator(like.device, *key))
        return noise.transpose(0, 1).reshape(like.shape) if by_channel else noise
