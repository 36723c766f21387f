"""Code pictures as `.roic` streams and decode them, by the pretrained weights or by others.

weights file or tune ──► load_codec ──► Codec ──► encode, decode
"""

import functools
import reprlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from roilib.codecs.codec import DEFAULT_ALPHA, DEFAULT_LMBDA, Codec
from roilib.codecs.container import Header
from roilib.datasets.images import rgb_pixels
from roilib.models.weights import (
    build_model,
    check_size,
    check_tables,
    detector_of,
    load_state,
    model_id,
    read_weights,
)
from roilib.parameters import Parameters
from roilib.utils.device import resolve_device
from roilib.utils.pretrained import PRETRAINED_CODECS, pretrained


def pretrained_codec(tune: str = "rgb", device: str = "cpu") -> Codec:
    """Return a codec of the pretrained weights, loaded once."""
    return _pretrained_codec(tune, device)


@functools.cache
def _pretrained_codec(tune: str, device: str) -> Codec:
    return load_codec(device=device, tune=tune)


def codec_of(header: Header, device: str = "cpu") -> Codec:
    """Return the pretrained codec whose id a stream carries; ValueError where none has it."""
    for tune in PRETRAINED_CODECS:
        if header.model == _pretrained_id(tune):
            return pretrained_codec(tune, device)
    raise ValueError(
        f"a .roic stream of model {header.model.hex()}, which is none of the pretrained ones; "
        "decode it with the weights that made it"
    )


@functools.cache
def _pretrained_id(tune: str) -> bytes:
    return model_id(read_weights(pretrained(PRETRAINED_CODECS[tune]))[0])


def load_codec(
    weights: str | Path | None = None,
    device: str = "cpu",
    precision: str = "auto",
    tune: str = "rgb",
    detector: str | Path | None = None,
) -> Codec:
    """Return the codec of a weights file that a training wrote; None: a pretrained roi_vbr.

    precision (auto, 32, bf16): of roi_vbr's analysis, so of what an encoder chooses to write. What
    a stream decodes to does not depend on it. tune: which pretrained weights; those for the squared
    error of RGB, or of luma and of chroma at 4:2:0 (yuv). detector: the YOLOv8 file that the
    weights were trained with, where it is not the pretrained one; only an encoder that needs its
    features opens it. Raises ValueError naming the file.
    """
    if tune not in PRETRAINED_CODECS:
        raise ValueError(f"tune is one of {', '.join(PRETRAINED_CODECS)}, not {tune!r}")
    if weights is not None and tune != "rgb":
        raise ValueError(f"{weights}: tune chooses among the pretrained weights, not for a file")
    path = pretrained(PRETRAINED_CODECS[tune]) if weights is None else Path(weights)
    state, values = read_weights(path)
    try:
        parameters = Parameters.parse(values)
    except ValueError as error:
        raise ValueError(f"{path}: not a roilib weights file ({error})") from None
    check_size(path, state, parameters)
    model = build_model(parameters)
    load_state(path, model, state, parameters.which)
    check_tables(path, model)
    find = functools.partial(detector_of, path, parameters, detector)
    return Codec(parameters, model, model_id(state), resolve_device(device), precision, find)


def encode(
    image: np.ndarray | Image.Image,
    boxes: Sequence | None = (),
    *,
    lmbda: float = DEFAULT_LMBDA,
    alpha: float = DEFAULT_ALPHA,
    max_bytes: int | None = None,
    model: Codec | None = None,
    tune: str = "rgb",
) -> bytes:
    """Code a picture as a `.roic` stream.

    image: uint8 (H, W, 3), or a Pillow picture, sides 1 to 8192. boxes: at most 255, None for none;
    (K, 4) x0, y0, x1, y1 in pixels, or (K, 5) with importance in (0, 1].
    lmbda in [0.0004, 0.12]: larger is better and bigger. alpha in [0, 1]: 1 gives all quality to
    the boxes, 0.5 treats all pixels alike. Models of one rate keep the λ and α of their training.
    max_bytes: the largest size of the stream. Whatever `lmbda` says, λ is chosen: one whose stream
    takes about 99 % of max_bytes or more, or where none does, the largest that fits.
    model: a codec made by `load_codec`; None: the pretrained weights that `tune` names (rgb, yuv).

    Raises ValueError with one line for bad input, and DoesNotFit with the smallest possible size
    where max_bytes is less.
    """
    if model is not None and tune != "rgb":
        raise ValueError("tune chooses among the pretrained weights, but a model is given")
    codec = pretrained_codec(tune) if model is None else checked(model)
    if isinstance(image, Image.Image):
        try:
            image = rgb_pixels(image).permute(1, 2, 0).numpy()
        except OSError as error:  # Pillow reads a file when its pixels are asked for
            raise ValueError(f"not a readable picture ({error})") from None
    boxes = () if boxes is None else boxes
    return codec.encode(image, boxes, lmbda=lmbda, alpha=alpha, max_bytes=max_bytes)


def decode(data: bytes, *, model: Codec | None = None) -> np.ndarray:
    """Return the picture of a `.roic` stream, uint8 (H, W, 3).

    model: None: the pretrained weights that made the stream. The picture of a roi_vbr is the same
    on every machine, bit by bit.

    Raises ValueError with one line for a stream that is damaged or of other weights.
    """
    codec = codec_of(Header.unpack(data)[0]) if model is None else checked(model)
    return codec.decode(data)


def checked(model: Codec) -> Codec:
    """Return a codec; ValueError for anything else."""
    if not isinstance(model, Codec):
        raise ValueError(f"model is a codec, made by load_codec(FILE), not {reprlib.repr(model)}")
    return model
