"""roilib.models.layers: as torch does it, and the DCT that roi_vbr starts as."""

import torch
from torch import nn

from roilib.models import layers
from roilib.models.layers import dct_basis, spectrum


def test_pixels_are_unshuffled_as_torch_does_it_with_channels_side_by_side():
    x = torch.randn(2, 3, 32, 48, requires_grad=True)
    for factor in (2, 8, 16):
        got, wanted = layers.PixelUnshuffle(factor)(x), nn.PixelUnshuffle(factor)(x)
        assert torch.equal(got, wanted)
        assert got.is_contiguous(memory_format=torch.channels_last)
        weight = torch.randn_like(wanted)
        assert torch.equal(*(torch.autograd.grad((y * weight).sum(), x)[0] for y in (got, wanted)))


def test_channels_are_put_together_as_torch_does_it():
    parts = [torch.randn(2, n, 4, 6) for n in (5, 1, 3)]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        got = layers.cat_channels([part.contiguous(memory_format=memory_format) for part in parts])
        assert torch.equal(got, torch.cat(parts, 1))
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_the_basis_is_orthonormal():
    basis = dct_basis(768).flatten(1)
    assert torch.allclose(basis @ basis.T, torch.eye(768), atol=1e-5)
    assert torch.equal(dct_basis(48), dct_basis(768)[:48])
    scales = [scale for scale, *_ in spectrum(768)]
    assert scales == sorted(scales, reverse=True)
    assert spectrum(1)[0][1:] == (0, 0, 0)  # luma's mean
