"""Conventional codecs: x264 and x265 with ROI, SVT-AV1, JPEG, WebP, AVIF and JPEG XL.

    image ──► full-range BT.709, 4:4:4 or 4:2:0 ─┬───────────► SVT-AV1 ──► key frame ─────► image
    boxes ──► ffmpeg's `addroi` ─────────────────┴► x264, x265 ──► intra frame, no SEI ──► image
    image ──► Pillow: JPEG, WebP, AVIF, JPEG XL ─────────────────────────────────────────► image

SEI units, which hold the encoder's settings as text, are not counted. Adaptive quantisation is on
at almost no strength: x264 and x265 silently ignore regions of interest when it is off. SVT-AV1 has
no ROI here: ffmpeg 8.1 does not pass regions on to it. A preset is one of the encoder's own, or one
with the tune of a live link: "ultrafast+zerolatency".

Chroma has full resolution, 4:4:4, unless a name ends with 4:2:0, the format of real links. swscale
halves and doubles it there by bicubic filters. SVT-AV1 has 4:2:0 alone.
"""

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import pillow_jxl  # noqa: F401 (registers JPEG XL with Pillow)
import torch
from av.filter import Graph
from compressai.transforms.functional import rgb2ycbcr, ycbcr2rgb
from PIL import Image

from roilib.codecs.protocol import DoesNotFit
from roilib.codecs.rate_search import highest_within
from roilib.roi import integer_boxes

VIDEO = ("x264", "x265")
SVT_AV1 = "svtav1"
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
CRFS = [51 - i / 4 for i in range(201)]  # worst first; x264's crf 0 is a lossless codec
SVT_AV1_CRFS = range(63, 0, -1)  # worst first; ffmpeg hands on whole numbers
QUALITIES = range(1, 101)  # worst first
VIDEO_RANGES = {"x264": (0, 51), "x265": (0, 51), SVT_AV1: (1, 63)}  # of crf
STILL_RANGE = (0, 100)
OCTAVES_PER_STEP = 0.04  # of the stream's size, from one of CRFS or QUALITIES to the next
SVT_AV1_OCTAVES_PER_STEP = 0.12
PARAMETERS = {
    "x264": "keyint=1:aq-mode=1:aq-strength=0.01:psy=0",
    "x265": "keyint=1:info=0:aq-mode=1:aq-strength=0.01:psy-rd=0:psy-rdoq=0:log-level=none",
    SVT_AV1: "avif=1:tune=1",  # one still picture, tuned for PSNR
}
STILL_OPTIONS = {  # 4:4:4 where the format has it, and the encoder's best effort
    "jpeg": {"subsampling": 0, "optimize": True},
    "webp": {"method": 6},
    "avif": {"subsampling": "4:4:4"},
    "jxl": {},
}
DECODERS = {"x264": "h264", "x265": "hevc", SVT_AV1: "libdav1d"}
SEI = {"x264": lambda header: header & 31 == 6, "x265": lambda header: header >> 1 & 63 in (39, 40)}
CHROMA_SHIFT = 127.5  # compressai's chroma is centred on 0.5, 8-bit video's on 128: 128 - 0.5


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
    100. qoffset is ffmpeg's ROI offset of x264 and x265, from -1 (best) to 1 (worst) in units of
    the quantiser's whole range; other codecs have no ROI. Importances are ignored: every box counts
    as 1. threads: of video encoders and decoders, and of AVIF's encoder. None: the decoder's and
    x265's own choice, else one, since bytes of x264 and AVIF depend on it.

    Raises ValueError for an unknown name.
    """

    def __init__(self, name: str, threads: int | None = None):
        self.name, self.threads = name, threads
        base, self.subsampled = without_subsampling(name)
        self.format, _, self.preset = base.partition(" ")
        self.has_roi = self.format in VIDEO
        self.is_video = self.has_roi or self.format == SVT_AV1
        self.is_padded = self.has_roi and self.subsampled
        known = self.format in (*STILL, *VIDEO, SVT_AV1) and self.is_video == bool(self.preset)
        if not known or (self.subsampled and self.format not in (*VIDEO, SVT_AV1, "avif")):
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
        """Code a picture, uint8 (H, W, 3), at this quality."""
        if self.is_video:
            prefix = b""
            if self.is_padded:
                image, prefix = padded_to_even(image)
            frame = video_frame(image, boxes if self.has_roi else (), qoffset, self.subsampled)
            threads = self.threads
            return prefix + encode_frame(frame, self.format, self.preset, quality, threads)
        options = STILL_OPTIONS[self.format]
        if self.format == "avif":
            chroma = {"subsampling": SUBSAMPLED} if self.subsampled else {}
            options = options | chroma | {"max_threads": self.threads or 1}
        file = io.BytesIO()
        Image.fromarray(image).save(file, self.format, quality=quality, **options)
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        """Decode a stream that `encode` returned."""
        if not self.is_video:
            return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        context = av.CodecContext.create(DECODERS[self.format], "r")
        context.thread_count = self.threads or 0  # 0: the decoder's choice
        packet = av.Packet(data[1:] if self.is_padded else data)
        picture = picture_of([*context.decode(packet), *context.decode(None)][0])
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
        """Find the best quality that takes at most `max_bytes`, or the worst where none does.

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


def to_yuv(image: np.ndarray) -> np.ndarray:
    """Convert uint8 RGB (H, W, 3) to uint8 full-range BT.709 YCbCr, planes first (3, H, W)."""
    yuv = rgb2ycbcr(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float())
    yuv[1:] += CHROMA_SHIFT
    return yuv.round_().clamp_(0, 255).byte().numpy()


def to_rgb(yuv: np.ndarray) -> np.ndarray:
    """Invert `to_yuv`."""
    planes = torch.from_numpy(np.ascontiguousarray(yuv)).float()
    planes[1:] -= CHROMA_SHIFT
    rgb = ycbcr2rgb(planes).round_().clamp_(0, 255).byte()
    return rgb.permute(1, 2, 0).contiguous().numpy()


def padded_to_even(image: np.ndarray) -> tuple[np.ndarray, bytes]:
    """Repeat the last row and column of odd sides; return the picture and a byte that says so.

    H.264 and HEVC at 4:2:0 have even sides alone.
    """
    bottom, right = (side % 2 for side in image.shape[:2])
    padded = np.pad(image, ((0, bottom), (0, right), (0, 0)), "edge")
    return padded, bytes([2 * bottom + right])


def without_padding(picture: np.ndarray, padding: int) -> np.ndarray:
    """Undo `padded_to_even`; padding: the value of its byte."""
    bottom, right = divmod(padding, 2)
    return picture[: len(picture) - bottom, : picture.shape[1] - right]


def picture_of(frame: av.VideoFrame) -> np.ndarray:
    """Return the picture of a decoded frame, 4:4:4 or 4:2:0."""
    if frame.format.name not in ("yuv444p", "yuvj444p"):
        frame = frame.reformat(format="yuv444p", interpolation="BICUBIC")
    return to_rgb(frame.to_ndarray())


def video_frame(
    image: np.ndarray, boxes: Sequence, qoffset: float, subsampled: bool = False
) -> av.VideoFrame:
    """Make a frame whose boxes (K, ≥4) carry the quantiser offset as ffmpeg's side data.

    It is 4:4:4, or 4:2:0 where `subsampled`.
    """
    frame = av.VideoFrame.from_ndarray(to_yuv(image), "yuv444p")
    if subsampled:
        frame = frame.reformat(format="yuv420p", interpolation="BICUBIC")
    if not len(boxes) or not qoffset:
        return frame
    graph = Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
    )
    # addroi moves and enlarges regions that are partly outside, so they are cut here
    cut = integer_boxes(np.asarray(boxes)[:, :4], frame.height, frame.width)
    offset = Fraction(qoffset).limit_denominator(1000)
    for left, top, right, bottom, _ in cut.tolist():
        region = f"x={left}:y={top}:w={right - left}:h={bottom - top}:qoffset={offset}"
        following = graph.add("addroi", region)
        last.link_to(following)
        last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull()


def open_encoder(
    codec: str, width: int, height: int, time_base: Fraction, format: str = "yuv444p"
) -> av.VideoCodecContext:
    """Make an encoder of full-range frames; its options are still to be set."""
    context = av.CodecContext.create(f"lib{codec}", "w")
    context.width, context.height, context.pix_fmt = width, height, format
    context.time_base = time_base
    context.color_range = av.video.reformatter.ColorRange.JPEG
    return context


def encode_frame(
    frame: av.VideoFrame, codec: str, preset: str, crf: float, threads: int | None = None
) -> bytes:
    """Code one frame as an intra frame of x264, x265 or SVT-AV1.

    Returns Annex B bytes without SEI, or AV1's open bitstream units.
    """
    preset, _, tune = preset.partition("+")
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    size, format = (frame.width, frame.height), frame.format.name
    context = open_encoder(codec, *size, frame.time_base, format)
    context.thread_count = threads or 1  # zerolatency makes as many slices as there are threads
    pools = f"pools={threads}:" if codec == "x265" and threads else ""
    context.options = ({"tune": tune} if tune else {}) | {
        "preset": preset,
        "crf": str(crf),
        f"{codec}-params": pools + PARAMETERS[codec],
    }
    if codec == SVT_AV1:
        os.environ.setdefault("SVT_LOG", "1")  # errors only: it writes to stderr by itself
    with _kept_priority():
        packets = [*context.encode(frame), *context.encode(None)]
    return b"".join(map(bytes, packets)) if codec == SVT_AV1 else without_sei(packets, codec)


@contextmanager
def _kept_priority() -> Iterator[None]:
    """SVT-AV1 gives root's calling thread real-time priority, which starves others: undo it."""
    if not hasattr(os, "sched_getscheduler"):  # not Linux
        yield
        return
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, param)


def without_sei(packets: Sequence[av.Packet], codec: str) -> bytes:
    """Join packets to Annex B bytes, SEI units left out."""
    stream = b"".join(map(bytes, packets)).replace(b"\0\0\0\1", b"\0\0\1")
    units = stream.split(b"\0\0\1")[1:]
    return b"".join(b"\0\0\1" + unit for unit in units if not SEI[codec](unit[0]))
