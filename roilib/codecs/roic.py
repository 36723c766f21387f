"""Pictures to bytes and back: `.roic` streams of a trained model.

    image, boxes, λ, α ──► model ──► strings ─┐
                       header, checksums ─────┴──► .roic ──► model ──► image        (the decoder needs no detector)

Other weights, a damaged file or a diverging entropy model are a ValueError of one line, never a wrong picture.
"""

import functools
import hashlib
import zlib
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from compressai.models import CompressionModel
from torch import Tensor

from roilib import roi
from roilib.codecs.container import MAX_BYTES, MAX_SIDE, Header
from roilib.codecs.rate_search import highest_within
from roilib.models.build import build_model
from roilib.models.detector import HookedDetector, frame_features, pad
from roilib.models.hyperprior import HyperpriorWithObjFeatures, decode_latents
from roilib.models.roi_vbr import RoiVbr
from roilib.models.weights import check_size, check_tables, load_state, read_weights
from roilib.parameters import Parameters
from roilib.roi import MAX_BOXES
from roilib.utils.device import out_of_memory, resolve_device, resolve_precision
from roilib.utils.pretrained import PRETRAINED_WEIGHTS, pretrained

DEFAULT_LMBDA, DEFAULT_ALPHA = 0.012, 0.9
MAX_ATTEMPTS = 3  # streams written to meet a byte cap
CODER_OVERHEAD_BYTES = 8  # what ending the coders of y and z adds at most


class Codec:
    """A trained model ready to code pictures; make it with `load_codec`."""

    def __init__(
        self,
        parameters: Parameters,
        model: CompressionModel,
        id: bytes,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ):
        self.parameters, self.id, self.device, self.passes = parameters, id, torch.device(device), 0
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)
        self.bf16 = (
            isinstance(model, RoiVbr) and resolve_precision(precision, self.device) == "bf16-mixed"
        )  # the paper's entropy models need fp32
        self.one_rate = not isinstance(model, RoiVbr) or parameters.fixed_rate
        self.autocast = functools.partial(
            torch.autocast, self.device.type, torch.bfloat16, enabled=self.bf16
        )

    @functools.cached_property
    def detector(self) -> HookedDetector:
        """The run's detector, loaded when a picture is encoded by a model that listens to it."""
        return HookedDetector(self.parameters.detector_weights).to(self.device)

    @torch.no_grad()
    def encode(
        self,
        image: np.ndarray,
        boxes: Sequence = (),
        *,
        lmbda: float = DEFAULT_LMBDA,
        alpha: float = DEFAULT_ALPHA,
        max_bytes: int | None = None,
    ) -> bytes:
        """As `roilib.codecs.roic.encode`. `self.passes` then says how many times symbols were written to bytes for it."""
        rows, indices = self._knobs(image, boxes, lmbda, alpha)
        if max_bytes is not None and not (isinstance(max_bytes, Real) and max_bytes >= 1):
            raise ValueError(f"max_bytes is at least 1, not {max_bytes}")
        self.passes = 0
        with self.autocast():
            if max_bytes is None:
                return self._pack(
                    image.shape[:2],
                    rows,
                    indices,
                    self.model.compress(*self._inputs(image, rows, indices)),
                )
            return self._encode_within(image, rows, indices, min(max_bytes, MAX_BYTES))

    def _pack(
        self, size: tuple[int, int], rows: np.ndarray, indices: tuple[int, int], packed: dict
    ) -> bytes:
        """A stream of what a model's `compress` returned."""
        self.passes += 1
        strings = [s[0] for s in packed["strings"]]
        symbols = (
            packed["symbols"]
            if "symbols" in packed
            else decode_latents(self.model, packed["strings"], packed["shape"])[0]
        )
        return Header(
            self.id, *size, *indices, rows, tuple(map(len, strings)), _checksum(symbols)
        ).pack(strings)

    def _encode_within(
        self, image: np.ndarray, rows: np.ndarray, indices: tuple[int, int], max_bytes: int
    ) -> bytes:
        """The stream of the highest λ that fits into max_bytes, which the model of the bytes finds without writing them."""
        size, alpha = image.shape[:2], indices[1]
        if self.one_rate:
            stream = self._pack(
                size, rows, indices, self.model.compress(*self._inputs(image, rows, indices))
            )
            if len(stream) > max_bytes:
                raise ValueError(
                    f"max_bytes={max_bytes}: this model has one rate, and needs {len(stream)} bytes for this picture"
                )
            return stream
        x, _ = self._inputs(image, rows, indices)
        y, container = (
            self.model.analysis(x),
            len(Header(self.id, *size, *indices, rows, (0, 0), 0).pack((b"", b""))),
        )

        def maps(quality_index: int) -> Tensor:
            return self._quality(rows, size, x.shape[-2:], (quality_index, alpha))

        best = highest_within(
            lambda index: container + self.model.size(y, maps(index)) + CODER_OVERHEAD_BYTES,
            max_bytes,
            indices[0],
        )
        for index in range(best, max(best - MAX_ATTEMPTS, -1), -1):
            stream = self._pack(size, rows, (index, alpha), self.model.write(y, maps(index)))
            if len(stream) <= max_bytes:
                return stream
        raise ValueError(
            f"max_bytes={max_bytes}: the smallest possible size of this picture is {len(stream)} bytes"
        )

    def estimate(
        self,
        image: np.ndarray,
        boxes: Sequence = (),
        *,
        lmbda: float = DEFAULT_LMBDA,
        alpha: float = DEFAULT_ALPHA,
    ) -> float:
        """Bits that the strings of `encode` should take, by the model's likelihoods."""
        return float(self._cell_bits(image, *self._knobs(image, boxes, lmbda, alpha)).sum())

    def cell_bits(self, image: np.ndarray, stream: bytes) -> np.ndarray:
        """Where the bits of a stream went, by the model's likelihoods: (h, w) float64 of the 16x16 cells of the padded picture, from the top left.

        image: what the stream was made of. A hyper-latent's symbol counts evenly for all cells under it.
        """
        header, _ = Header.unpack(stream)
        if (header.model, header.height, header.width) != (self.id, *image.shape[:2]):
            raise ValueError("not a stream of this picture by these weights")
        return self._cell_bits(image, header.boxes, (header.lmbda, header.alpha))

    @torch.no_grad()
    def _cell_bits(
        self, image: np.ndarray, rows: np.ndarray, indices: tuple[int, int]
    ) -> np.ndarray:
        likelihoods = self.model(*self._inputs(image, rows, indices))["likelihoods"]
        bits = {name: -v[0].double().log2().sum(0).cpu().numpy() for name, v in likelihoods.items()}
        spread = {
            name: np.kron(
                v, np.full(np.floor_divide(bits["y"].shape, v.shape), v.size / bits["y"].size)
            )
            for name, v in bits.items()
        }
        return sum(spread.values())

    def _knobs(
        self, image: np.ndarray, boxes: Sequence, lmbda: float, alpha: float
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Checked: integer boxes, and the indices of λ and α; of models of one rate those of their training."""
        height, width = _checked(image)
        if self.one_rate:
            lmbda, alpha = (
                min(max(self.parameters.lmbda, roi.LMBDA_MIN), roi.LMBDA_MAX),
                self.parameters.alpha,
            )
        rows = roi.integer_boxes(_box_array(boxes), height, width)
        if len(rows) > MAX_BOXES:
            raise ValueError(f"{len(rows)} boxes, but a stream holds at most {MAX_BOXES}")
        return rows, (roi.quality_index(lmbda), roi.alpha_index(alpha))

    @torch.no_grad()
    def decode(self, data: bytes) -> np.ndarray:
        """As `roilib.codecs.roic.decode`."""
        header, _, y_hat, q = self._decode(data)
        with self.autocast():
            x_hat = self.model.g_s(y_hat) if q is None else self.model.reconstruct(y_hat, q)
        return (
            x_hat[0, :, : header.height, : header.width]
            .clamp_(0, 1)
            .mul_(255)
            .round_()
            .byte()
            .permute(1, 2, 0)
            .cpu()
            .numpy()
        )

    def decode_symbols(self, data: bytes) -> list[np.ndarray]:
        """The integers that a stream holds, one array a latent: the same on every machine."""
        return self._decode(data)[1]

    def _decode(self, data: bytes) -> tuple[Header, list[np.ndarray], Tensor, Tensor | None]:
        header, strings = Header.unpack(data)
        if header.model != self.id:
            raise ValueError(
                f"a .roic stream of model {header.model.hex()}, these weights are {self.id.hex()}"
            )
        expected = 3 if isinstance(self.model, HyperpriorWithObjFeatures) else 2
        if len(strings) != expected or any(len(s) % 4 for s in strings):
            raise ValueError(
                f"a .roic stream whose strings are not those of {self.parameters.which}"
            )
        sides = [-(-side // 64) * 64 for side in (header.height, header.width)]
        shape, listed, q = tuple(side // 64 for side in sides), [[s] for s in strings], None
        try:
            if isinstance(self.model, RoiVbr):
                if len(strings[1]) < self.model.least_bytes(
                    shape
                ):  # before anything of the picture's size is made
                    raise ValueError(f"too short for {header.width}x{header.height} pixels")
                q = self._quality(
                    header.boxes,
                    (header.height, header.width),
                    tuple(sides),
                    (header.lmbda, header.alpha),
                )
                symbols, y_hat = self.model.decode_symbols(listed, shape, q)
            else:
                symbols, y_hat = decode_latents(self.model, listed, shape)
        except (ValueError, IndexError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            raise ValueError(
                f"a .roic stream that does not decode ({str(error).splitlines()[0]})"
            ) from None
        if _checksum(symbols) != header.symbols:
            raise ValueError(
                "the symbols of this .roic stream are not those that were encoded: the entropy model of this machine computes otherwise"
            )
        return header, symbols, y_hat, q

    def _inputs(self, image: np.ndarray, rows: np.ndarray, indices: tuple[int, int]) -> tuple:
        """What the model sees of a picture: x, and quality indices or features and mask where it takes them."""
        right, bottom = (-side % self.model.downsampling_factor for side in image.shape[1::-1])
        x = self._tensor(np.pad(image, ((0, bottom), (0, right), (0, 0)), "edge"))
        if isinstance(self.model, RoiVbr):
            return x, self._quality(rows, image.shape[:2], x.shape[-2:], indices)
        if not isinstance(self.model, HyperpriorWithObjFeatures):
            return (x,)
        mask = (
            torch.from_numpy(roi.importance_map(rows, *image.shape[:2]) > 0)
            .float()[None, None]
            .to(self.device)
        )
        features = (
            frame_features(self.detector, self._tensor(image), x.shape[-2:])
            if self.parameters.uses_detector
            else None
        )
        return x, features, pad(mask, self.model.downsampling_factor, value=0)

    def _tensor(self, image: np.ndarray) -> Tensor:
        return (
            torch.from_numpy(np.ascontiguousarray(image))
            .to(self.device)
            .permute(2, 0, 1)[None]
            .float()
            / 255
        )

    def _quality(
        self,
        rows: np.ndarray,
        size: tuple[int, int],
        padded: tuple[int, int],
        indices: tuple[int, int],
    ) -> Tensor:
        return (
            torch.from_numpy(roi.quality_map(rows, size, padded, *indices))
            .float()[None, None]
            .to(self.device)
        )


def _checked(image: np.ndarray) -> tuple[int, int]:
    """Height and width of a picture that can be coded."""
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
    ):
        raise ValueError("an image is a uint8 array (H, W, 3)")
    height, width = image.shape[:2]
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"an image of {width}x{height} pixels; sides are 1 to {MAX_SIDE}")
    return height, width


def _box_array(boxes: Sequence) -> np.ndarray:
    """(K, 4) or (K, 5) float64 of what a caller calls boxes."""
    try:
        array = np.asarray(boxes, np.float64)
    except (
        TypeError,
        ValueError,
        OverflowError,
    ):  # rows of different lengths, words, whole numbers beyond float64
        array = np.full(1, np.nan)
    array = array.reshape(0, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] not in (4, 5) or not np.isfinite(array).all():
        raise ValueError(
            "boxes are (K, 4) finite numbers x0, y0, x1, y1, or (K, 5) with importance"
        )
    if (array[:, 2:4] <= array[:, :2]).any() or (
        array.shape[1] == 5 and not ((array[:, 4] > 0) & (array[:, 4] <= 1)).all()
    ):
        raise ValueError("a box has x0 < x1 and y0 < y1, and an importance in (0, 1]")
    return array


def _checksum(symbols: Sequence[np.ndarray]) -> int:
    return functools.reduce(
        lambda crc, part: zlib.crc32(np.ascontiguousarray(part, "<i4"), crc), symbols, 0
    )


def model_id(state: dict[str, Tensor]) -> bytes:
    """Four bytes that stand for these weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].cpu().contiguous().numpy().tobytes())
    return digest.digest()[:4]


@functools.cache
def shipped_codec() -> Codec:
    """The codec of the weights that ship with this package, loaded once."""
    return load_codec()


def load_codec(
    weights: str | Path | None = None, device: str = "cpu", precision: str = "auto"
) -> Codec:
    """The codec of a weights file that a training wrote; None: the shipped roi_vbr. Raises ValueError naming the file.

    precision (auto, 32, bf16): of roi_vbr's transforms; it changes no symbol that is decoded, and the picture by rounding.
    """
    path = pretrained(PRETRAINED_WEIGHTS) if weights is None else Path(weights)
    state, values = read_weights(path)
    try:
        parameters = Parameters.parse(values)
    except ValueError as error:
        raise ValueError(f"{path}: not a roilib weights file ({error})") from None
    check_size(path, state, parameters)
    model = build_model(parameters)
    load_state(path, model, state, parameters.which)
    check_tables(path, model)
    return Codec(parameters, model, model_id(state), resolve_device(device), precision)


def encode(
    image: np.ndarray,
    boxes: Sequence = (),
    *,
    lmbda: float = DEFAULT_LMBDA,
    alpha: float = DEFAULT_ALPHA,
    max_bytes: int | None = None,
    model: Codec | None = None,
) -> bytes:
    """A picture as a `.roic` stream.

    image: uint8 (H, W, 3), sides 1 to 8192; boxes: (K, 4) x0, y0, x1, y1 in pixels or (K, 5) with importance in (0, 1], at most 255;
    lmbda in [0.0004, 0.12]: larger is better and bigger; alpha in [0, 1]: 1 gives all quality to the boxes, 0.5 treats all alike. max_bytes: the
    stream is at most that long, and lmbda as large as that allows, whatever is given. Models of one rate keep the λ and α they were trained with.
    model: what `load_codec` returns; None: the shipped weights. Raises ValueError with one line for bad input, and with the smallest possible
    size where max_bytes is less.
    """
    return (model or shipped_codec()).encode(
        image, boxes, lmbda=lmbda, alpha=alpha, max_bytes=max_bytes
    )


def decode(data: bytes, *, model: Codec | None = None) -> np.ndarray:
    """The picture of a `.roic` stream, uint8 (H, W, 3). Raises ValueError with one line for a stream that is damaged or of other weights."""
    return (model or shipped_codec()).decode(data)
