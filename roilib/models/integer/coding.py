"""Integer coding of roi_vbr: makes, writes and reads symbols slice by slice, pass by pass.

    z ──► h_s_integer ──► h ─┐
    q ───────────────────────┼─► e_integer[slice][pass] ──► scale indices, means ──► symbols ─┐
    y_hat of earlier slices ─┘                                                                │
              ▲                                                                               │
              └───────────────────────────── means + symbols ◄────────────────────────────────┘

Fixed-point formats of the outputs, int32:

    scales   steps of quality: 2^SCALE_SHIFT of them raise the scale index by one
    means    MEAN_UNIT (1/64 of a quantiser step)
"""

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from roilib.entropy_models.gaussian import (
    SCALE_COUNT,
    SCALES,
    SCALES_PER_OCTAVE,
    SKIPPED,
    rdoq,
    reach,
)
from roilib.entropy_models.range_coder import (
    Counter,
    Decoder,
    Encoder,
    Tables,
    joint_checksum,
    tables_of,
)
from roilib.models.context import (
    CONTEXT_UNIT,
    MEAN_UNIT,
    Q_MIDDLE,
    Q_SPREAD,
    Q_UNIT,
    VALUE_SCALE,
    VALUE_UNITS,
    Cells,
    IntegerContext,
    pass_cells,
)
from roilib.models.integer.networks import MAX
from roilib.roi import STEPS_PER_OCTAVE

if TYPE_CHECKING:
    from roilib.models.roi_vbr import RoiVbr

OCTAVES = 4  # of scale for an output of 1 of an entropy network
# 2 to its power: steps of quality that raise the scale index by one. A scale goes with the root of
# lmbda, so an octave of scale is two octaves of quality.
SCALE_SHIFT = (2 * STEPS_PER_OCTAVE // SCALES_PER_OCTAVE).bit_length() - 1
# code(channels, cells, scale_indices, means) → symbols, all (cells, n) integers.
Code = Callable[[slice, Cells, np.ndarray, np.ndarray], np.ndarray]


@torch.no_grad()
def make_integer_networks(model: "RoiVbr", pictures: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Make the integer networks from the trained ones.

    pictures: some (x, q) of the model's `forward`, from which the ranges of activations are
    measured.
    """
    hyper_latents, contexts = [], []
    for x, q in pictures:
        y = model.analysis(x) * model.gain_a(q)
        hyper_latents.append(torch.round(model.hyper(y, q) - model.medians()))
        contexts.append(model.contexts(model.h_s(hyper_latents[-1]), q, torch.round(y)))
    units_h = model.h_s_integer.quantise(model.h_s, hyper_latents, torch.ones(model.N // 2))
    units_own = torch.tensor([CONTEXT_UNIT, *(unit / VALUE_SCALE for unit in VALUE_UNITS)])
    for k, (start, end) in enumerate(model.slices):
        n = end - start
        shared = [units_h, torch.tensor([Q_UNIT / Q_SPREAD]), torch.full((start,), CONTEXT_UNIT)]
        outputs = torch.full((2 * n,), 1 / (OCTAVES * 2 * STEPS_PER_OCTAVE))
        outputs[n:] = MEAN_UNIT
        for number, (integer, net) in enumerate(zip(model.e_integer[k], model.e[k], strict=True)):
            units = torch.cat([*shared, units_own.repeat_interleave(n)] if number else shared)
            integer.quantise(net, [seen[k][number] for seen in contexts], units, outputs)


def tables(model: "RoiVbr") -> tuple[Tables, Tables]:
    """Return the probability tables of y's scales and of z's channels. Do not change them.

    The same objects for the same weights: making them takes as long as a network.
    """
    y_tables = _y_tables(model.y_counts.cpu().numpy().tobytes())
    return y_tables, tables_of(model.entropy_bottleneck, escape=False)


@functools.lru_cache(8)
def _y_tables(counts: bytes) -> Tables:
    ends = np.cumsum([reach(scale) + 1 for scale in SCALES])[:-1]
    return Tables.symmetric(np.split(np.frombuffer(counts, np.int32), ends))


def z_indices(model: "RoiVbr", shape: tuple[int, int]) -> np.ndarray:
    """Return the table index, its channel, of each symbol of a z (*shape, N/2)."""
    return np.tile(np.arange(model.N // 2, dtype=np.uint8), shape[0] * shape[1])


@torch.no_grad()
def code_slices(model: "RoiVbr", z: np.ndarray, q: Tensor, code: Code) -> tuple[np.ndarray, Tensor]:
    """Code y slice by slice and pass by pass, all on integers on the CPU.

    z (h/4, w/4, N/2): symbols; q (1, 1, h, w): quality indices.
    code(channels, cells, scale_indices, means): returns the symbols of these channels at these
    cells, all (cells, n) integers, the means in units of MEAN_UNIT. An encoder makes and writes the
    symbols; a decoder reads them.
    Returns the symbols, and y_hat in units of MEAN_UNIT, both (h, w, M) int32.
    """
    with model.stage("hyper synthesis"):
        h = model.h_s_integer(torch.from_numpy(z.astype(np.int8))[None])[0]
    (height, width), gain = q.shape[-2:], q.cpu().flatten().int() - Q_MIDDLE
    rounding = gain[:, None] + (1 << SCALE_SHIFT - 1)
    q_stored = torch.div(gain + Q_UNIT // 2, Q_UNIT, rounding_mode="floor")
    context = IntegerContext(h, q_stored, model.M)
    for (start, end), nets in zip(model.slices, model.e_integer, strict=True):
        channels = slice(start, end)
        by_pass = zip(nets, pass_cells(len(nets), height, width), strict=True)
        for number, (net, cells) in enumerate(by_pass):
            with model.stage("entropy networks"):
                found = net(context.input(channels, number), cells if len(nets) > 1 else None)
                scales, means = found.view(-1, 2 * (end - start)).chunk(2, 1)
                scale_indices = (
                    (scales + rounding[cells])
                    .bitwise_right_shift_(SCALE_SHIFT)
                    .clamp_(0, SCALE_COUNT - 1)
                    .to(torch.uint8)
                )
            with model.stage("entropy coding"):
                symbols = torch.from_numpy(
                    code(channels, cells, scale_indices.numpy(), means.numpy())
                )
            with model.stage("entropy networks"):
                context.add(channels, cells, symbols, means, more=number + 1 < len(nets))
    shape = height, width, -1
    return context.symbols.view(shape).numpy(), context.y_hat.view(shape)


@torch.no_grad()
def encode_symbols(
    model: "RoiVbr",
    y: Tensor,
    q: Tensor,
    y_coder: Encoder | Counter,
    z_coder: Encoder | Counter,
) -> list[np.ndarray]:
    """Quantise y (1, M, h, w), put all symbols into the coders, and return them.

    Returns y (h, w, M) and z (h/4, w/4, N/2), int32.
    """
    with model.stage("tables"):
        y_tables, z_tables = tables(model)
    y = y * model.gain_a(q)
    with model.stage("hyper analysis"):
        z = _channels_last(torch.round(model.hyper(y, q) - model.medians()))
    z = z.clip(z_tables.low.clip(-MAX), z_tables.high.clip(max=MAX)).astype(np.int32)
    z_coder.put(z.ravel(), z_indices(model, z.shape[:2]), z_tables)
    rows = _channels_last(y).reshape(-1, model.M)

    def code(
        channels: slice, cells: Cells, scale_indices: np.ndarray, means: np.ndarray
    ) -> np.ndarray:
        coded, symbols = scale_indices > SKIPPED, np.zeros(means.shape, np.int32)
        chosen = scale_indices[coded]
        distance = rows[cells, channels][coded] - means[coded] * np.float32(MEAN_UNIT)
        quantised = rdoq(torch.from_numpy(distance), torch.from_numpy(chosen)).numpy()
        most = y_tables.high[chosen]
        values = quantised.astype(np.int32).clip(-most, most)
        y_coder.put(values, chosen, y_tables)
        symbols[coded] = values
        return symbols

    return [code_slices(model, z, q, code)[0], z]


@torch.no_grad()
def decode_symbols(
    model: "RoiVbr", strings: list[list[bytes]], shape: tuple[int, int], q: Tensor
) -> tuple[list[np.ndarray], Tensor, int]:
    """Read what `encode_symbols` wrote.

    Returns the symbols [y (h, w, M), z (h/4, w/4, N/2)], y_hat (h, w, M) int32 in units of
    MEAN_UNIT, and a checksum.
    """
    with model.stage("tables"):
        y_tables, z_tables = tables(model)
    coder, z_coder = (Decoder(string) for (string,) in strings)
    z = z_coder.get(z_indices(model, shape), z_tables).reshape(*shape, -1)

    def code(
        channels: slice, cells: Cells, scale_indices: np.ndarray, means: np.ndarray
    ) -> np.ndarray:
        coded, symbols = scale_indices > SKIPPED, np.zeros(means.shape, np.int32)
        symbols[coded] = coder.get(scale_indices[coded], y_tables)
        return symbols

    y, y_hat = code_slices(model, z, q, code)
    return [y, z], y_hat, joint_checksum([coder, z_coder])


def _channels_last(latent: Tensor) -> np.ndarray:
    """Return (1, C, h, w) as (h, w, C) fp32 on the CPU."""
    return latent[0].float().permute(1, 2, 0).cpu().contiguous().numpy()
