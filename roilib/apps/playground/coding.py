"""A picture coded on request, by our codec and by a peer: what notebook 07 shows, without its widgets.

    Request ──► Newest (a thread) ──► Coder.answer ──► Result: ours ──► with the bit map ──► with the peer

A newer request takes the place of one that waits, and stops the one at work at its next step.
"""

import functools
import io
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from roilib import roi
from roilib.codecs import conventional
from roilib.codecs.container import Header
from roilib.codecs.registry import CODEC_NAMES, codec_name
from roilib.codecs.roic import DEFAULT_ALPHA, DEFAULT_LMBDA, Codec, load_codec
from roilib.datasets.images import read_picture
from roilib.metrics import psnr_of, regions, squared_errors
from roilib.roi import roi_mask

PEERS = {"jpeg": "JPEG", "x264": "x264 + ROI", "x265": "x265 + ROI"}
QP_PER_OCTAVE, QP_RANGE = 3, 51  # HEVC and H.264 double λ every 3 QP


@dataclass(frozen=True)
class Request:
    """What to code and how; boxes: x0, y0, x1, y1, importance each, or None: what the detector finds; content: the picture's file, if not on disk."""

    picture: Path
    content: bytes | None = None
    boxes: tuple[tuple[float, ...], ...] | None = None
    lmbda: float = DEFAULT_LMBDA
    alpha: float = DEFAULT_ALPHA
    max_bytes: int | None = None
    bit_map: bool = False
    peer: str = ""  # one of PEERS, or none


@dataclass(frozen=True, eq=False)
class Coded:
    """A picture, uint8 (H, W, 3), that a codec made of `bytes` bytes; PSNRs in dB, None without such pixels or without error; seconds."""

    codec: str
    setting: str
    picture: np.ndarray
    bytes: int
    bpp: float
    psnr: float | None
    roi_psnr: float | None
    bg_psnr: float | None
    encode: float
    decode: float

    def record(self) -> dict:
        """What every run of the same gives, for files and tables: neither the picture nor times."""
        return {
            name: getattr(self, name)
            for name in ("codec", "setting", "bytes", "bpp", "psnr", "roi_psnr", "bg_psnr")
        }


@dataclass(frozen=True, eq=False)
class Result:
    """What a request has led to; bits: (h, w) of the 16x16 cells of the padded picture."""

    request: Request
    image: np.ndarray
    boxes: tuple[tuple[float, ...], ...]
    ours: Coded
    bits: np.ndarray | None = None
    peer: Coded | None = None


class Coder:
    """Answers requests; keeps the model, the detector and the latest pictures at hand."""

    def __init__(self, codec: Codec | None = None):
        self.codec = codec or load_codec()
        self.detected = functools.lru_cache(4)(self._detected)

    def _detected(self, picture: Path, content: bytes | None) -> tuple[tuple[float, ...], ...]:
        found = self.codec.detector.regions(read(picture, content))
        return tuple(
            (*map(float, box), 1.0)
            for box in np.concatenate([np.floor(found[:, :2]), np.ceil(found[:, 2:4])], 1)
        )

    def answer(
        self, request: Request, show: Callable[[Result | None], None] = lambda result: None
    ) -> Result:
        """Code the picture, and then what takes longer. Raises ValueError with one line.

        show: called with each state of the result, and with None between them; what it raises ends the work.
        """
        image = read(request.picture, request.content)
        boxes = (
            self.detected(request.picture, request.content)
            if request.boxes is None
            else request.boxes
        )
        knobs = {"lmbda": request.lmbda, "alpha": request.alpha, "max_bytes": request.max_bytes}
        stream, ours = self._coded(image, boxes, knobs)
        show(result := Result(request, image, boxes, ours))
        if request.bit_map:
            show(result := replace(result, bits=self.codec.cell_bits(image, stream)))
        if request.peer:
            show(
                result := replace(
                    result, peer=peer_within(image, boxes, request.peer, stream, lambda: show(None))
                )
            )
        return result

    def compare(self, request: Request) -> list[dict]:
        """Records of our answer and of every peer's at as many bytes."""
        result = self.answer(replace(request, peer=""))
        return [
            result.ours.record(),
            *(self.answer(replace(request, peer=peer)).peer.record() for peer in PEERS),
        ]

    def _coded(self, image: np.ndarray, boxes: Sequence, knobs: dict) -> tuple[bytes, Coded]:
        start = time.perf_counter()
        stream = self.codec.encode(image, boxes, **knobs)
        encoded = time.perf_counter()
        decoded = self.codec.decode(stream)
        seconds = {"encode": encoded - start, "decode": time.perf_counter() - encoded}
        header, _ = Header.unpack(stream)
        setting = f"λ {roi.lmbda_of(header.lmbda):.2g}, α {header.alpha / roi.ALPHA_ONE:.2f}"
        name = CODEC_NAMES[codec_name(self.codec.parameters)]
        return stream, Coded(
            name, setting, decoded, **seconds, **measures(image, decoded, boxes, len(stream))
        )


@functools.lru_cache(4)
def read(picture: Path, content: bytes | None = None) -> np.ndarray:
    """A picture file, or its content, as uint8 (H, W, 3). Raises ValueError naming it."""
    try:
        return (
            read_picture(picture if content is None else io.BytesIO(content))
            .permute(1, 2, 0)
            .contiguous()
            .numpy()
        )
    except ValueError as error:
        raise (
            error if content is None else ValueError(f"{picture}: not a readable picture")
        ) from None


def measures(
    image: np.ndarray, decoded: np.ndarray, boxes: Sequence, size: int
) -> dict[str, float | None]:
    """bytes, bpp and PSNRs of a picture that took `size` bytes."""
    height, width = image.shape[:2]
    mask = roi_mask(np.reshape(boxes, (-1, 5)), height, width)
    psnrs = {
        f"{part}psnr": psnr_of(*error)
        for part, error in squared_errors(image, decoded, regions(mask)).items()
    }
    return {"bytes": size, "bpp": 8 * size / (height * width)} | psnrs


def roi_qoffset(quality_index: int, alpha_index: int) -> float:
    """The `addroi` offset at which a video codec's λ differs between ROI and background as ours does at these indices of λ and α."""
    background, *_, inside = roi.quality_table(quality_index, alpha_index).tolist()
    return -QP_PER_OCTAVE * (inside - background) / roi.STEPS_PER_OCTAVE / QP_RANGE


def peer_within(
    image: np.ndarray,
    boxes: Sequence,
    peer: str,
    stream: bytes,
    check: Callable[[], None] = lambda: None,
) -> Coded:
    """The best that a codec of PEERS makes of as many bytes as our stream has, with our ROI; check: as in `conventional.encode_within`.

    Where even its worst quality takes more, that one. A peer knows no importance: all boxes count as 1.
    """
    header, _ = Header.unpack(stream)
    qoffset = (
        roi_qoffset(header.lmbda, header.alpha)
        if peer in conventional.VIDEO and len(boxes)
        else 0.0
    )
    codec = conventional.ConventionalCodec(f"{peer} medium" if peer in conventional.VIDEO else peer)
    found = codec.search(image, boxes, len(stream), qoffset=qoffset, before_each=check)
    level, data, start = found.quality, found.stream, time.perf_counter()
    decoded = codec.decode(data)
    seconds = {"encode": found.seconds, "decode": time.perf_counter() - start}
    setting = (
        f"crf {level:g}" + (f", ROI {qoffset * QP_RANGE:+.1f}" if qoffset else "")
        if peer in conventional.VIDEO
        else f"quality {level:g}"
    )
    return Coded(
        PEERS[peer], setting, decoded, **seconds, **measures(image, decoded, boxes, len(data))
    )


class Superseded(Exception):
    """A newer request waits."""


class Newest:
    """A thread that works on one request at a time, always on the newest.

    work(request, show) calls show with what it has, or with None to be stopped. From the thread: `show(result)`, `fail(line)` when
    work raised, and `rest()` when nothing is left to do. debounce: seconds that requests are collected before the newest of them is begun.
    """

    def __init__(
        self,
        work: Callable,
        show: Callable,
        fail: Callable[[str], None],
        rest: Callable[[], None],
        debounce: float = 0.03,
    ):
        self.work, self.show, self.fail, self.rest, self.debounce = work, show, fail, rest, debounce
        self._waiting: deque = deque(maxlen=1)
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, daemon=True, name="playground")
        self._thread.start()

    def submit(self, request) -> None:
        """Work on this next; returns at once."""
        with self._changed:
            self._waiting.append(request)
            self._changed.notify()

    @property
    def waiting(self) -> bool:
        """Whether a request has not been begun yet."""
        return bool(self._waiting)

    def close(self) -> None:
        """End the thread, after the step that it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed or self._changed.wait_for(lambda: self._closed, self.debounce):
                    return
                request = self._waiting.pop()
            self._work_on(request)

    def _work_on(self, request) -> None:
        try:
            self.work(request, self._show)
        except Superseded:
            return
        except (
            Exception
        ) as error:  # whatever it is: the next request may be better, and the user is told
            self.fail(
                str(error).splitlines()[0]
                if isinstance(error, ValueError)
                else f"{type(error).__name__}: {error}".splitlines()[0]
            )
        if not self._waiting:
            self.rest()

    def _show(self, result) -> None:
        if self._waiting or self._closed:
            raise Superseded
        if result is not None:
            self.show(result)
