"""A trained model as a codec: pictures to the bytes of a `.roic` stream and back.

    image, boxes, λ, α ──► model ──► strings ─┐
                       header, checksums ─────┴──► .roic ──► model ──► image

The decoder needs no detector. Other weights, a damaged file or a diverging entropy model are a
ValueError of one line, never a wrong picture.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from compressai.models import CompressionModel
from torch import Tensor

from roilib import roi
from roilib.codecs.container import MAX_BYTES, Header, box_array, picture_size
from roilib.codecs.protocol import DoesNotFit
from roilib.codecs.rate_search import highest_within
from roilib.codecs.registry import codec_name
from roilib.models.detector import HookedDetector, frame_features, pad
from roilib.parameters import Parameters
from roilib.roi import MAX_BOXES
from roilib.utils.device import out_of_memory, resolve_precision
from roilib.utils.processes import use_one_thread_after_fork

DEFAULT_LMBDA = 0.012
DEFAULT_ALPHA = 0.9
MAX_ATTEMPTS = 3  # streams written to meet a byte cap
CODER_OVERHEAD_BYTES = 8  # what ending the coders of y and z adds at most


class Codec:
    """A trained model ready to code pictures: an ImageCodec. Make it with `load_codec`."""

    def __init__(
        self,
        parameters: Parameters,
        model: CompressionModel,
        id: bytes,
        device: torch.device | str = "cpu",
        precision: str = "auto",
        find_detector: Callable[[], Path | None] | None = None,
    ):
        use_one_thread_after_fork()
        self.parameters, self.id, self.device = parameters, id, torch.device(device)
        self.name = codec_name(parameters)
        self.find_detector = find_detector
        self.attempts = 0  # streams written for the latest picture
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)
        self.bf16 = model.portable and resolve_precision(precision, self.device) == "bf16-mixed"
        self.variable_rate = model.variable_rate and not parameters.fixed_rate
        self.autocast = functools.partial(
            torch.autocast, self.device.type, torch.bfloat16, enabled=self.bf16
        )

    @functools.cached_property
    def detector(self) -> HookedDetector:
        """The model's detector, loaded when a model that needs its features encodes a picture."""
        return HookedDetector(self.find_detector and self.find_detector()).to(self.device)

    @torch.no_grad()
    def encode(
        self,
        image: np.ndarray,
        boxes: Sequence = (),
        *,
        lmbda: float = DEFAULT_LMBDA,
        alpha: float = DEFAULT_ALPHA,
        max_bytes: float | None = None,
    ) -> bytes:
        """Code a picture, as `roilib.codecs.roic.encode`."""
        if max_bytes is not None:
            return self.encode_within(image, boxes, max_bytes, lmbda=lmbda, alpha=alpha)
        header = self._header(image, boxes, lmbda, alpha)
        with self.autocast():
            self.attempts = 1
            return self._pack(header, self.model.compress(*self._inputs(image, header)))

    @torch.no_grad()
    def encode_within(
        self,
        image: np.ndarray,
        boxes: Sequence,
        max_bytes: float,
        *,
        lmbda: float = DEFAULT_LMBDA,
        alpha: float = DEFAULT_ALPHA,
    ) -> bytes:
        """Code a picture in at most `max_bytes`.

        λ is one whose stream takes about 99 % of `max_bytes` or more, or where none does, the
        largest that fits. lmbda: where the search begins. It computes the bytes of a λ from the
        probability tables, without coding. Raises DoesNotFit where even the smallest stream is
        larger.
        """
        if not (isinstance(max_bytes, Real) and max_bytes >= 1):
            raise ValueError(f"max_bytes is at least 1, not {max_bytes!r}")
        if not self.variable_rate:
            stream = self.encode(image, boxes)
            if len(stream) > max_bytes:
                reason = "this model has one rate, and this picture needs"
                raise DoesNotFit(max_bytes, len(stream), reason)
            return stream
        header, self.attempts = self._header(image, boxes, lmbda, alpha), 0
        with self.autocast():
            x, _ = self._inputs(image, header)
            y = self.model.analysis(x)

            def quality(lmbda_index: int) -> Tensor:
                return self._quality(replace(header, lmbda=lmbda_index))

            overhead = len(replace(header, lengths=(0, 0)).pack((b"", b""))) + CODER_OVERHEAD_BYTES
            best = highest_within(
                lambda index: overhead + self.model.size(y, quality(index)),
                min(max_bytes, MAX_BYTES),
                header.lmbda,
            )
            for index in range(best, max(best - MAX_ATTEMPTS, -1), -1):
                self.attempts += 1
                coded = self.model.write(y, quality(index))
                stream = self._pack(replace(header, lmbda=index), coded)
                if len(stream) <= max_bytes:
                    return stream
        raise DoesNotFit(max_bytes, len(stream))

    def _pack(self, header: Header, coded: dict) -> bytes:
        """Return the stream of what a model's `compress` returned."""
        strings = [string for (string,) in coded["strings"]]
        lengths = tuple(map(len, strings))
        return replace(header, lengths=lengths, symbols=coded["checksum"]).pack(strings)

    def estimate(
        self,
        image: np.ndarray,
        boxes: Sequence = (),
        *,
        lmbda: float = DEFAULT_LMBDA,
        alpha: float = DEFAULT_ALPHA,
    ) -> float:
        """Return the bits that the strings of `encode` should take, by the model's likelihoods."""
        return float(self._cell_bits(image, self._header(image, boxes, lmbda, alpha)).sum())

    def cell_bits(self, image: np.ndarray, stream: bytes) -> np.ndarray:
        """Return the bits of each cell of a stream's picture, by the model's likelihoods.

        image: the picture that was coded. Returns (h, w) float64, one number a 16x16 cell of the
        padded picture. The bits of a hyper-latent's symbol are spread over all cells under it.
        """
        header, _ = Header.unpack(stream)
        if (header.model, header.height, header.width) != (self.id, *image.shape[:2]):
            raise ValueError("not a stream of this picture by these weights")
        return self._cell_bits(image, header)

    @torch.no_grad()
    def _cell_bits(self, image: np.ndarray, header: Header) -> np.ndarray:
        likelihoods = self.model.likelihoods(*self._inputs(image, header))
        bits = {name: -v[0].double().log2().sum(0).cpu().numpy() for name, v in likelihoods.items()}
        cells = bits["y"]
        return sum(
            np.kron(v, np.full(np.floor_divide(cells.shape, v.shape), v.size / cells.size))
            for v in bits.values()
        )

    def _header(self, image: np.ndarray, boxes: Sequence, lmbda: float, alpha: float) -> Header:
        """Check the input; return a header without lengths and checksum.

        A model of one rate keeps the λ and α of its training.
        """
        height, width = picture_size(image)
        if not self.variable_rate:
            lmbda = min(max(self.parameters.lmbda, roi.LMBDA_MIN), roi.LMBDA_MAX)
            alpha = self.parameters.alpha
        given = box_array(boxes)
        rows = roi.integer_boxes(given, height, width)
        if len(given) and not len(rows):
            text = f"all boxes lie outside the picture of {width}x{height} pixels"
            warnings.warn(text, stacklevel=4)
        if len(rows) > MAX_BOXES:
            raise ValueError(f"{len(rows)} boxes, but a stream holds at most {MAX_BOXES}")
        indices = roi.quality_index(lmbda), roi.alpha_index(alpha)
        return Header(self.id, height, width, *indices, rows, (), 0)

    @torch.no_grad()
    def decode(self, data: bytes) -> np.ndarray:
        """Return the picture of a stream, as `roilib.codecs.roic.decode`."""
        header, _, y_hat, q = self._decode(data)
        picture = self.model.picture(y_hat, q)[:, : header.height, : header.width]
        return picture.permute(1, 2, 0).cpu().numpy()

    def decode_symbols(self, data: bytes) -> list[np.ndarray]:
        """Return the integers of a stream, one array a latent: the same on every machine."""
        return self._decode(data)[1]

    def _decode(self, data: bytes) -> tuple[Header, list[np.ndarray], Tensor, Tensor | None]:
        header, strings = Header.unpack(data)
        if header.model != self.id:
            raise ValueError(
                f"a .roic stream of model {header.model.hex()}, these weights are {self.id.hex()}"
            )
        symbols, y_hat, checksum, q = self.read(header, strings)
        if checksum != header.symbols:
            raise ValueError(
                "the symbols of this .roic stream are not those that were encoded: the entropy "
                "model computes differently on this machine"
            )
        return header, symbols, y_hat, q

    def read(
        self, header: Header, strings: list[bytes]
    ) -> tuple[list[np.ndarray], Tensor, int, Tensor | None]:
        """Return a stream's symbols, y_hat, the symbols' checksum, and quality indices if any.

        Raises ValueError with one line for strings that the model's encoder did not write.
        """
        tables = self.model.tables()
        if len(strings) != len(tables) or any(len(s) % 4 for s in strings):
            raise ValueError(f"a .roic stream with strings that {self.parameters.which} never has")
        factor = self.model.downsampling_factor
        shape = -(-header.height // factor), -(-header.width // factor)  # of the hyper-latents
        try:
            # Implausibly short streams are rejected before image-sized memory is allocated.
            for string, table in zip(strings[1:], tables[1:], strict=True):
                if len(string) < table.least_bytes(shape[0] * shape[1]):
                    raise ValueError(f"too short for {header.width}x{header.height} pixels")
            q = self._knowledge(header)
            return *self.model.decode_symbols([[s] for s in strings], shape, q), q
        except (ValueError, IndexError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            raise ValueError(f"a .roic stream that does not decode ({reason})") from None

    def inputs(
        self,
        image: np.ndarray,
        boxes: Sequence = (),
        *,
        lmbda: float = DEFAULT_LMBDA,
        alpha: float = DEFAULT_ALPHA,
    ) -> tuple:
        """Return the arguments of the model's `forward` and `compress` for a picture."""
        return self._inputs(image, self._header(image, boxes, lmbda, alpha))

    def _inputs(self, image: np.ndarray, header: Header) -> tuple:
        factor = self.model.downsampling_factor
        right, bottom = (-side % factor for side in image.shape[1::-1])
        x = self._tensor(np.pad(image, ((0, bottom), (0, right), (0, 0)), "edge"))
        return self.model.inputs(
            x,
            quality=lambda: self._quality(header),
            roi_mask=lambda: self._roi_mask(header),
            features=lambda: frame_features(self.detector, self._tensor(image), x.shape[-2:]),
        )

    def _tensor(self, image: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(image)).to(self.device)
        return x.permute(2, 0, 1)[None].float() / 255

    def _knowledge(self, header: Header) -> Tensor | None:
        """Return what the decoder derives from the header: quality indices, ROI mask or None."""
        if self.model.variable_rate:
            return self._quality(header)
        return self._roi_mask(header) if self.parameters.decoder_roi else None

    def _roi_mask(self, header: Header) -> Tensor:
        """Return the ROI mask of the padded picture, (1, 1, H, W)."""
        importance = roi.importance_map(header.boxes, header.height, header.width)
        mask = torch.from_numpy(importance > 0).float()[None, None].to(self.device)
        return pad(mask, self.model.downsampling_factor, value=0)

    def _quality(self, header: Header) -> Tensor:
        """Return the quality indices of the padded picture's cells, (1, 1, H/16, W/16)."""
        size, factor = (header.height, header.width), self.model.downsampling_factor
        padded = tuple(side + -side % factor for side in size)
        cells = roi.quality_map(header.boxes, size, padded, header.lmbda, header.alpha)
        return torch.from_numpy(cells).float()[None, None].to(self.device)
