"""Conventional codecs: x264 and x265 with ROI, JPEG, WebP, AVIF and JPEG XL.

    image ──► full-range BT.709 4:4:4 ─┐
    boxes ──► ffmpeg's `addroi` ───────┴──► x264, x265 ──► intra frame without SEI ──► image
    image ──► Pillow: JPEG, WebP, AVIF, JPEG XL ───────────────────────────────────► image

SEI units, which hold the encoder's settings as text, are not counted. Adaptive quantisation is on
at almost zero strength, because both video encoders silently ignore regions of interest when it is
off. A preset is one of the encoder's own, or has the tune of a live link: "ultrafast+zerolatency".
"""

import io
import time
from collections.abc import Callable, Sequence
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
STILL = ("jpeg", "webp", "avif", "jxl")
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
TUNES = ("", "zerolatency")  # the tunes psnr and ssim turn regions of interest off
WORST_CRF = 51
CRFS = [WORST_CRF - i / 4 for i in range(201)]  # worst first; x264's crf 0 is a lossless codec
QUALITIES = range(1, 101)  # worst first
OCTAVES_PER_STEP = 0.04  # of the stream's size, from one entry of CRFS or QUALITIES to the next
PARAMETERS = {
    "x264": "keyint=1:aq-mode=1:aq-strength=0.01:psy=0",
    "x265": "keyint=1:info=0:aq-mode=1:aq-strength=0.01:psy-rd=0:psy-rdoq=0:log-level=none",
}
STILL_OPTIONS = {  # 4:4:4 where the format has it, and the encoder's best effort
    "jpeg": {"subsampling": 0, "optimize": True},
    "webp": {"method": 6},
    "avif": {"subsampling": "4:4:4"},
    "jxl": {},
}
DECODERS = {"x264": "h264", "x265": "hevc"}
SEI = {"x264": lambda header: header & 31 == 6, "x265": lambda header: header >> 1 & 63 in (39, 40)}
CHROMA_SHIFT = 127.5  # compressai's chroma is centred on 0.5, 8-bit video's on 128: 128 - 0.5


@dataclass(frozen=True)
class Found:
    """The best quality within a byte budget, as a search found it; seconds: of its encoding."""

    quality: float
    stream: bytes
    seconds: float


class ConventionalCodec:
    """A codec by its name: "x265 medium", "x264 ultrafast+zerolatency", "jpeg", "webp", "avif".

    quality is the crf (0 to 51, small is best) of x264 and x265, else 0 to 100. qoffset is ffmpeg's
    ROI offset, from -1 (best) to 1 (worst) in units of the quantiser's whole range; still codecs
    have no ROI. Importances are ignored: every box counts as 1.

    Raises ValueError for an unknown name.
    """

    def __init__(self, name: str):
        self.name = name
        self.format, _, self.preset = name.partition(" ")
        self.is_video = self.format in VIDEO
        if self.format not in VIDEO + STILL or self.is_video != bool(self.preset):
            raise ValueError(
                f"{name}: a conventional codec is x264 or x265 with a preset, as 'x265 medium', "
                f"or one of {', '.join(STILL)}"
            )
        speed, _, tune = self.preset.partition("+")
        if self.is_video and (speed not in PRESETS or tune not in TUNES):
            raise ValueError(
                f"{name}: a preset is one of {', '.join(PRESETS)}, or one with +zerolatency"
            )

    def encode(
        self, image: np.ndarray, boxes: Sequence = (), *, quality: float, qoffset: float = 0.0
    ) -> bytes:
        """Code a picture, uint8 (H, W, 3), at this quality."""
        if self.is_video:
            return encode_frame(image, self.format, self.preset, quality, boxes, qoffset)
        file = io.BytesIO()
        Image.fromarray(image).save(
            file, self.format, quality=quality, **STILL_OPTIONS[self.format]
        )
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        """Decode a stream that `encode` returned."""
        if not self.is_video:
            return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        context = av.CodecContext.create(DECODERS[self.format], "r")
        frames = [*context.decode(av.Packet(data)), *context.decode(None)]
        return to_rgb(frames[0].to_ndarray())

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
        qualities, tries = CRFS if self.is_video else QUALITIES, {}

        def size(index: int) -> int:
            before_each()
            start = time.perf_counter()
            stream = self.encode(image, boxes, quality=qualities[index], qoffset=qoffset)
            tries[index] = Found(qualities[index], stream, time.perf_counter() - start)
            return len(stream)

        middle, top = len(qualities) // 2, len(qualities) - 1
        return tries[highest_within(size, max_bytes, middle, top, OCTAVES_PER_STEP)]


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


def video_frame(image: np.ndarray, boxes: Sequence, qoffset: float) -> av.VideoFrame:
    """Make a 4:4:4 frame whose boxes (K, ≥4) carry the quantiser offset as ffmpeg's side data."""
    frame = av.VideoFrame.from_ndarray(to_yuv(image), "yuv444p")
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


def open_encoder(codec: str, width: int, height: int, time_base: Fraction) -> av.VideoCodecContext:
    """Make x264's or x265's encoder of full-range 4:4:4 frames; its options are still to be set."""
    context = av.CodecContext.create(f"lib{codec}", "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv444p"
    context.time_base = time_base
    context.color_range = av.video.reformatter.ColorRange.JPEG
    return context


def encode_frame(
    image: np.ndarray, codec: str, preset: str, crf: float, boxes: Sequence, qoffset: float
) -> bytes:
    """Code one picture as an intra frame of x264 or x265: Annex B bytes without SEI."""
    preset, _, tune = preset.partition("+")
    frame = video_frame(image, boxes, qoffset)
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    context = open_encoder(codec, frame.width, frame.height, frame.time_base)
    context.thread_count = 1  # zerolatency makes as many slices as there are threads
    context.options = ({"tune": tune} if tune else {}) | {
        "preset": preset,
        "crf": str(crf),
        f"{codec}-params": PARAMETERS[codec],
    }
    return without_sei([*context.encode(frame), *context.encode(None)], codec)


def without_sei(packets: Sequence[av.Packet], codec: str) -> bytes:
    """Join packets to Annex B bytes, SEI units left out."""
    stream = b"".join(map(bytes, packets)).replace(b"\0\0\0\1", b"\0\0\1")
    units = stream.split(b"\0\0\1")[1:]
    return b"".join(b"\0\0\1" + unit for unit in units if not SEI[codec](unit[0]))
