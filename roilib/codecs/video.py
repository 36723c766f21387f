"""Frames of x264, x265 and SVT-AV1, coded and decoded by FFmpeg.

    image ──► full-range BT.709, 4:4:4 or 4:2:0 ─┬───────────► SVT-AV1 ──► key frame ─────► image
    boxes ──► ffmpeg's `addroi` ─────────────────┴► x264, x265 ──► intra frame, no SEI ──► image

SEI units, which hold the encoder's settings as text, are not counted. Adaptive quantisation is on
at almost no strength: x264 and x265 silently ignore regions of interest when it is off. SVT-AV1 has
no ROI here: ffmpeg 8.1 does not pass regions on to it. swscale halves and doubles chroma for 4:2:0
by bicubic filters.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np
import torch
from av.filter import Graph
from compressai.transforms.functional import rgb2ycbcr, ycbcr2rgb

from roilib.roi import integer_boxes

WITH_ROI = ("x264", "x265")  # regions of interest reach these encoders
SVT_AV1 = "svtav1"
PARAMETERS = {
    "x264": "keyint=1:aq-mode=1:aq-strength=0.01:psy=0",
    "x265": "keyint=1:info=0:aq-mode=1:aq-strength=0.01:psy-rd=0:psy-rdoq=0:log-level=none",
    SVT_AV1: "avif=1:tune=1",  # one still picture, tuned for PSNR
}
LEAST_SIDES = {"x265": 16, SVT_AV1: 4}  # pixels of the smallest pictures that they code
DECODERS = {"x264": "h264", "x265": "hevc", SVT_AV1: "libdav1d"}
SEI = {"x264": lambda header: header & 31 == 6, "x265": lambda header: header >> 1 & 63 in (39, 40)}
QPS = 51  # from the best to the worst; a quantiser offset of 1 is so many
BAND = 32  # rows
CHROMA_SHIFT = 127.5  # compressai's chroma is centred on 0.5, 8-bit video's on 128: 128 - 0.5


class TooSmall(ValueError):
    """A picture is smaller than the smallest one that its encoder takes."""


def check_size(codec: str, height: int, width: int, padded: bool = False) -> None:
    """Raise TooSmall for a picture that an encoder does not take.

    padded: the picture passes `padded_to_even` first.
    """
    least = LEAST_SIDES.get(codec, 1) - padded
    if min(height, width) < least:
        raise TooSmall(
            f"{codec} codes pictures of at least {least}x{least} pixels, not of {width}x{height}"
        )


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
    image: np.ndarray,
    boxes: Sequence,
    qoffset: float,
    subsampled: bool = False,
    finer: float = 0.0,
    step: int = 1,
) -> av.VideoFrame:
    """Make a frame whose boxes (K, ≥4) carry the quantiser offset as ffmpeg's side data.

    It is 4:4:4, or 4:2:0 where `subsampled`. finer: share of the picture, in bands of BAND rows,
    whose QP is `step` lower, for rates between those of whole QPs.
    """
    frame = av.VideoFrame.from_ndarray(to_yuv(image), "yuv444p")
    if subsampled:
        frame = frame.reformat(format="yuv420p", interpolation="BICUBIC")
    # addroi moves and enlarges regions that are partly outside, so they are cut here
    given = np.asarray(boxes)[:, :4] if len(boxes) and qoffset else np.zeros((0, 4))
    inside = integer_boxes(given, frame.height, frame.width)
    regions = _regions(inside, qoffset, _bands(finer, frame.height), -step / QPS, frame.width)
    if not regions:
        return frame
    graph = Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
    )
    for left, top, right, bottom, offset in regions:
        offset = Fraction(offset).limit_denominator(1000)
        region = f"x={left}:y={top}:w={right - left}:h={bottom - top}:qoffset={offset}"
        following = graph.add("addroi", region)
        last.link_to(following)
        last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull()


def _bands(share: float, height: int) -> list[tuple[int, int]]:
    """First row and end of bands, spread evenly, that are this share of a picture's rows."""
    return [
        (BAND * i, min(BAND * (i + 1), height))
        for i in range(math.ceil(height / BAND))
        if math.floor((i + 1) * share) > math.floor(i * share)
    ]


def _regions(
    boxes: np.ndarray, qoffset: float, bands: list[tuple[int, int]], finer: float, width: int
) -> list[tuple[int, int, int, int, float]]:
    """Corners and quantiser offsets of boxes and bands; of two that overlap the first counts."""
    regions = []
    for left, top, right, bottom, _ in boxes.tolist():
        for start, end in bands:
            if start < bottom and top < end:
                part = (left, max(top, start), right, min(bottom, end))
                regions.append((*part, max(qoffset + finer, -1)))
        regions.append((left, top, right, bottom, qoffset))
    return regions + [(0, start, width, end, finer) for start, end in bands]


def decode_frame(data: bytes, codec: str, threads: int | None = None) -> np.ndarray:
    """Decode what `encode_frame` returned; threads: None for the decoder's choice."""
    context = av.CodecContext.create(DECODERS[codec], "r")
    context.thread_count = threads or 0
    return picture_of([*context.decode(av.Packet(data)), *context.decode(None)][0])


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
