"""The playground's engine: codes a picture on request, with our codec and a conventional one.

    Request ──► Newest (a thread) ──► Coder.answer ──► Result: ours
                                                           └─► with the bit map
                                                           └─► with a conventional codec

A newer request replaces a waiting one, and stops the one being coded at its next step.
"""

import functools
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from roilib import roi
from roilib.apps import transcode
from roilib.codecs import roic
from roilib.codecs.codec import DEFAULT_ALPHA, DEFAULT_LMBDA, Codec
from roilib.codecs.container import Header
from roilib.codecs.conventional import ConventionalCodec
from roilib.codecs.registry import codec_label
from roilib.codecs.roic import checked, pretrained_codec
from roilib.codecs.video import TooSmall
from roilib.metrics import psnr_of, regions, squared_errors, yuv_psnrs
from roilib.roi import roi_mask

CONVENTIONAL = {  # what the playground compares with: codec → label
    "jpeg": "JPEG",
    "avif": "AVIF",
    "x264 medium": "x264 + ROI",
    "x265 medium": "x265 + ROI",
}
AT_420 = {  # what weights tuned for YUV are compared with
    "avif 4:2:0": "AVIF 4:2:0",
    "x264 medium 4:2:0": "x264 4:2:0 + ROI",
    "x265 medium 4:2:0": "x265 4:2:0 + ROI",
}
LABELS = CONVENTIONAL | AT_420
QP_PER_OCTAVE = 3  # H.264 and HEVC double λ every 3 QP
QP_RANGE = 51  # what `addroi` calls 1


@dataclass(frozen=True)
class Request:
    """What to code, and how.

    picture: its file, or its name where `content` holds the file's bytes. boxes: x0, y0, x1, y1,
    importance each; None: what the detector finds. against: a codec of CONVENTIONAL, or "".
    """

    picture: Path
    content: bytes | None = None
    boxes: tuple[tuple[float, ...], ...] | None = None
    lmbda: float = DEFAULT_LMBDA
    alpha: float = DEFAULT_ALPHA
    max_bytes: int | None = None
    bit_map: bool = False
    against: str = ""


@dataclass(frozen=True, eq=False)
class Coded:
    """A picture coded by a codec: decoded uint8 (H, W, 3), bytes, PSNRs in dB, seconds.

    A PSNR is None where there are no such pixels or no error. yuv: the YUV-PSNRs, as of
    `metrics.yuv_psnrs`, where weights tuned for them are compared.
    """

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
    yuv: Mapping[str, float | None] = field(default_factory=dict)

    def record(self) -> dict:
        """Return the reproducible fields for files and tables: neither the picture nor times."""
        names = ("codec", "setting", "bytes", "bpp", "psnr", "roi_psnr", "bg_psnr")
        return {name: getattr(self, name) for name in names} | dict(self.yuv)


@dataclass(frozen=True, eq=False)
class Result:
    """The answer to a request; bits: (h, w), bits of each 16x16 cell of the padded picture."""

    request: Request
    image: np.ndarray
    boxes: tuple[tuple[float, ...], ...]
    ours: Coded
    bits: np.ndarray | None = None
    other: Coded | None = None


class Coder:
    """Answers requests; keeps the model, the detector and the latest detections in memory."""

    def __init__(self, codec: Codec | None = None):
        self.codec = pretrained_codec() if codec is None else checked(codec)
        self.detected = functools.lru_cache(4)(self._detected)

    def _detected(self, picture: Path, content: bytes | None) -> tuple[tuple[float, ...], ...]:
        found = self.codec.detector.regions(read(picture, content))
        whole = np.concatenate([np.floor(found[:, :2]), np.ceil(found[:, 2:4])], 1)
        return tuple((*box, 1.0) for box in whole.tolist())

    def answer(
        self, request: Request, show: Callable[[Result | None], None] = lambda result: None
    ) -> Result:
        """Code a picture, then its bit map and the other codec's. Raises ValueError with one line.

        show: called with each state of the result, and with None between them; an exception that it
        raises ends the work.
        """
        image, boxes = self._seen(request)
        stream, ours = self._coded(image, boxes, request)
        show(result := Result(request, image, boxes, ours))
        if request.bit_map:
            show(result := replace(result, bits=self.codec.cell_bits(image, stream)))
        if request.against:
            other = code_within(image, boxes, request.against, stream, lambda: show(None))
            show(result := replace(result, other=other))
        return result

    def compare(self, request: Request) -> list[Coded]:
        """Code a picture by our codec, and by every conventional one at no more bytes.

        Weights tuned for YUV are compared with codecs at 4:2:0 and by YUV-PSNR, too. Warns of a
        codec for which the picture is too small, and leaves it out.
        """
        image, boxes = self._seen(request)
        stream, ours = self._coded(image, boxes, request)
        coded, by_yuv = [ours], self.codec.parameters.metric == "yuv"
        for name, label in (AT_420 if by_yuv else CONVENTIONAL).items():
            try:
                coded.append(code_within(image, boxes, name, stream))
            except TooSmall as error:
                warnings.warn(f"{label} is left out: {error}", stacklevel=2)
        if not by_yuv:
            return coded
        mask = roi_mask(np.reshape(boxes, (-1, 5)), *image.shape[:2])
        return [replace(c, yuv=yuv_psnrs(image, c.picture, mask)) for c in coded]

    def _seen(self, request: Request) -> tuple[np.ndarray, Sequence]:
        """Return a request's picture and its boxes."""
        file = request.picture, request.content
        return read(*file), self.detected(*file) if request.boxes is None else request.boxes

    def _coded(self, image: np.ndarray, boxes: Sequence, request: Request) -> tuple[bytes, Coded]:
        knobs = {"lmbda": request.lmbda, "alpha": request.alpha, "max_bytes": request.max_bytes}
        start = time.perf_counter()
        stream = roic.encode(image, boxes, model=self.codec, **knobs)
        encoded = time.perf_counter()
        decoded = self.codec.decode(stream)
        seconds = {"encode": encoded - start, "decode": time.perf_counter() - encoded}
        header, _ = Header.unpack(stream)
        setting = f"λ {roi.lmbda_of(header.lmbda):.2g}, α {header.alpha / roi.ALPHA_ONE:.2f}"
        name = codec_label(self.codec.name)
        measured = measure(image, decoded, boxes, len(stream))
        return stream, Coded(name, setting, decoded, **seconds, **measured)


@functools.lru_cache(4)
def read(picture: Path, content: bytes | None = None) -> np.ndarray:
    """Read a picture file, or its content, as `transcode.read`; the latest ones are kept."""
    return transcode.read(picture, content=content)


def measure(
    image: np.ndarray, decoded: np.ndarray, boxes: Sequence, size: int
) -> dict[str, float | None]:
    """Return bytes, bpp and PSNRs of a picture that took `size` bytes."""
    height, width = image.shape[:2]
    parts = regions(roi_mask(np.reshape(boxes, (-1, 5)), height, width))
    errors = squared_errors(image, decoded, parts)
    psnrs = {f"{part}psnr": psnr_of(*error) for part, error in errors.items()}
    return {"bytes": size, "bpp": 8 * size / (height * width)} | psnrs


def matching_qoffset(quality_index: int, alpha_index: int) -> float:
    """Return the `addroi` offset that divides a video codec's λ as α divides ours.

    The ratio of λ inside and outside the ROI is then the same at these indices of λ and α.
    """
    background, *_, inside = roi.quality_table(quality_index, alpha_index).tolist()
    return -QP_PER_OCTAVE * (inside - background) / roi.STEPS_PER_OCTAVE / QP_RANGE


def code_within(
    image: np.ndarray,
    boxes: Sequence,
    name: str,
    stream: bytes,
    before_each: Callable[[], None] = lambda: None,
) -> Coded:
    """Code a picture by a codec of LABELS at no more bytes than our `stream`, with our ROI.

    If even the worst quality takes more, that one is returned. Importances are ignored: every box
    counts as 1. before_each: as for `ConventionalCodec.search`.
    """
    header, codec = Header.unpack(stream)[0], ConventionalCodec(name)
    qoffset = 0.0
    if codec.is_video and len(boxes):
        qoffset = matching_qoffset(header.lmbda, header.alpha)
    found = codec.search(image, boxes, len(stream), qoffset=qoffset, before_each=before_each)
    start = time.perf_counter()
    decoded = codec.decode(found.stream)
    seconds = {"encode": found.seconds, "decode": time.perf_counter() - start}
    setting = f"{'crf' if codec.is_video else 'quality'} {found.quality:g}"
    if qoffset:
        setting += f", ROI {qoffset * QP_RANGE:+.1f}"
    measured = measure(image, decoded, boxes, len(found.stream))
    return Coded(LABELS[name], setting, decoded, **seconds, **measured)


class Superseded(Exception):
    """A newer request waits."""


class Newest:
    """A thread that works on one request at a time, always on the newest.

    work(request, show) calls show with what it has, or with None where it can be stopped.
    The thread calls show(result), fail(line) when work raised, and rest() when nothing is left to
    do. debounce: seconds in which requests are collected before the newest is begun.
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
        """Whether a request waits to be begun."""
        return bool(self._waiting)

    def close(self) -> None:
        """End the thread after its present step."""
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
        except Exception as error:  # of any kind: the user is told, and the next request may work
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            self.fail(f"{kind}{error}".splitlines()[0])
        if not self._waiting:
            self.rest()

    def _show(self, result) -> None:
        if self._waiting or self._closed:
            raise Superseded
        if result is not None:
            self.show(result)
