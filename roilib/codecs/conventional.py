"""Conventional codecs: x264 and x265 with ROI, SVT-AV1, JPEG, WebP, AVIF and JPEG XL.

    image, boxes ──► roilib.codecs.video: x264, x265, SVT-AV1 ──► image
    image ─────────► Pillow: JPEG, WebP, AVIF, JPEG XL ─────────► image

A preset is one of the encoder's own, or one with the tune of a live link: "ultrafast+zerolatency".
Chroma has full resolution, 4:4:4, unless a name ends with 4:2:0, the format of real links. SVT-AV1
has 4:2:0 alone.
"""

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pillow_jxl  # noqa: F401 (registers JPEG XL with Pillow)
from PIL import Image

from roilib.codecs.protocol import DoesNotFit
from roilib.codecs.rate_search import highest_within
from roilib.codecs.video import (
    SVT_AV1,
    WITH_ROI,
    check_size,
    decode_frame,
    encode_frame,
    padded_to_even,
    video_frame,
    without_padding,
)

STILL = ("jpeg", "webp", "avif", "jxl")
SUBSAMPLED = "4:2:0"
PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
)
SVT_AV1_PRESETS = tuple(map(str, range(14)))
TUNES = ("", "zerolatency")  # the tunes psnr and ssim turn regions of interest off
CRFS = [51 - i / 8 for i in range(401)]  # worst first; x264's crf 0 is a lossless codec
QP_STEPS = {"x264": 2, "x265": 1}  # of bands of rows between two crf; x264 ignores a step of 1
SVT_AV1_CRFS = range(63, 0, -1)  # worst first; ffmpeg hands on whole numbers
QUALITIES = range(1, 101)  # worst first
VIDEO_RANGES = {"x264": (0, 51), "x265": (0, 51), SVT_AV1: (1, 63)}  # of crf
STILL_RANGE = (0, 100)
OCTAVES_PER_STEP = 0.04  # of the stream's size, from one of CRFS or QUALITIES to the next
SVT_AV1_OCTAVES_PER_STEP = 0.12
STILL_OPTIONS = {  # 4:4:4 where the format has it; otherwise Pillow's defaults
    "jpeg": {"subsampling": 0, "optimize": True},
    "webp": {"method": 6},
    "avif": {"subsampling": "4:4:4"},
    "jxl": {},
}


@dataclass(frozen=True)
class Found:
    """The best quality within a byte budget, as a search found it; seconds: of its encoding."""

    quality: float
    stream: bytes
    seconds: float


class ConventionalCodec:
    """A codec by its name: "x265 medium", "x264 ultrafast+zerolatency 4:2:0", "svtav1 6 4:2:0",
    "jpeg", "webp", "avif", "avif 4:2:0", "jxl".

    quality is the crf (small is good) of x264 and x265, 0 to 51, and of svtav1, 1 to 63, else 0 to
    100. x264 and x265 quantise in whole steps, so at 42.25 some bands of rows have a finer step.
    qoffset is ffmpeg's ROI offset of x264 and x265, from -1 (best) to 1 (worst) in units of the
    quantiser's whole range; other codecs have no ROI. Importances are ignored: every box counts
    as 1. threads: of video encoders and decoders, and of AVIF's encoder. None: the decoder's and
    x265's own choice, else one, since bytes of x264 and AVIF depend on it.

    Raises ValueError for an unknown name.
    """

    def __init__(self, name: str, threads: int | None = None):
        self.name, self.threads = name, threads
        base, self.subsampled = without_subsampling(name)
        self.format, _, self.preset = base.partition(" ")
        self.has_roi = self.format in WITH_ROI
        self.is_video = self.has_roi or self.format == SVT_AV1
        self.is_padded = self.has_roi and self.subsampled
        known = self.format in (*STILL, *WITH_ROI, SVT_AV1) and self.is_video == bool(self.preset)
        if not known or (self.subsampled and self.format not in (*WITH_ROI, SVT_AV1, "avif")):
            raise ValueError(
                f"{name}: a conventional codec is x264 or x265 with a preset, as 'x265 medium', "
                f"or one of {', '.join(STILL)}; at 4:2:0 'x265 medium 4:2:0', 'svtav1 6 4:2:0' "
                "or 'avif 4:2:0'"
            )
        if self.format == SVT_AV1 and not self.subsampled:
            raise ValueError(f"{name}: SVT-AV1 codes 4:2:0 alone; name it '{name} 4:2:0'")
        speed, _, tune = self.preset.partition("+")
        presets, tunes = (PRESETS, TUNES) if self.has_roi else (SVT_AV1_PRESETS, ("",))
        if self.is_video and (speed not in presets or tune not in tunes):
            tuned = ", or one with +zerolatency" if self.has_roi else ""
            raise ValueError(f"{name}: a preset is one of {', '.join(presets)}{tuned}")

    @property
    def qualities(self) -> Sequence[float]:
        """Return the qualities that a search tries, the worst first."""
        if self.format == SVT_AV1:
            return SVT_AV1_CRFS
        return CRFS if self.is_video else QUALITIES

    @property
    def quality_range(self) -> tuple[int, int]:
        """Return the least and the largest quality that can be asked for."""
        return VIDEO_RANGES.get(self.format, STILL_RANGE)

    def encode(
        self, image: np.ndarray, boxes: Sequence = (), *, quality: float, qoffset: float = 0.0
    ) -> bytes:
        """Code a picture, uint8 (H, W, 3), at this quality. Raises TooSmall as `check_size`."""
        if self.is_video:
            self.check_size(*image.shape[:2])
            prefix = b""
            if self.is_padded:
                image, prefix = padded_to_even(image)
            crf, step = math.ceil(quality), QP_STEPS.get(self.format, 0)
            frame = video_frame(
                image,
                boxes if self.has_roi else (),
                qoffset,
                self.subsampled,
                finer=(crf - quality) / step if step else 0,
                step=step,
            )
            return prefix + encode_frame(frame, self.format, self.preset, crf, self.threads)
        options = STILL_OPTIONS[self.format]
        if self.format == "avif":
            chroma = {"subsampling": SUBSAMPLED} if self.subsampled else {}
            options = options | chroma | {"max_threads": self.threads or 1}
        file = io.BytesIO()
        Image.fromarray(image).save(file, self.format, quality=quality, **options)
        return file.getvalue()

    def check_size(self, height: int, width: int) -> None:
        """Raise TooSmall, a ValueError, for a picture that the encoder does not take."""
        check_size(self.format, height, width, self.is_padded)

    def decode(self, data: bytes) -> np.ndarray:
        """Decode a stream that `encode` returned."""
        if not self.is_video:
            return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        picture = decode_frame(data[1:] if self.is_padded else data, self.format, self.threads)
        return without_padding(picture, data[0]) if self.is_padded else picture

    def encode_within(
        self, image: np.ndarray, boxes: Sequence, max_bytes: int, *, qoffset: float = 0.0
    ) -> bytes:
        """Code a picture at the best quality that takes at most `max_bytes`.

        Raises DoesNotFit where even the worst quality takes more.
        """
        stream = self.search(image, boxes, max_bytes, qoffset=qoffset).stream
        if len(stream) > max_bytes:
            raise DoesNotFit(max_bytes, len(stream))
        return stream

    def search(
        self,
        image: np.ndarray,
        boxes: Sequence,
        max_bytes: int,
        *,
        qoffset: float = 0.0,
        before_each: Callable[[], None] = lambda: None,
    ) -> Found:
        """Find the quality for `max_bytes` as `highest_within`, or the worst where none fits.

        before_each: called before each encoding; an exception that it raises ends the search.
        """
        qualities, tries = self.qualities, {}
        slope = SVT_AV1_OCTAVES_PER_STEP if self.format == SVT_AV1 else OCTAVES_PER_STEP

        def size(index: int) -> int:
            before_each()
            start = time.perf_counter()
            stream = self.encode(image, boxes, quality=qualities[index], qoffset=qoffset)
            tries[index] = Found(qualities[index], stream, time.perf_counter() - start)
            return len(stream)

        middle, top = len(qualities) // 2, len(qualities) - 1
        return tries[highest_within(size, max_bytes, middle, top, slope)]


def without_subsampling(name: str) -> tuple[str, bool]:
    """Return a codec's name without its 4:2:0, and whether it had that."""
    base = name.removesuffix(f" {SUBSAMPLED}")
    return base, base != name
