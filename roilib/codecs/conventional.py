"""What a user would pick instead: x264 and x265 with ROI, JPEG, WebP, AVIF and JPEG XL, as bytes of one picture and back.

The video codecs get the picture as full-range BT.709 4:4:4, converted here, and the boxes as ffmpeg's `addroi` side data; what is counted is the
coded picture, so SEI messages (encoder settings as text) are cut out. Adaptive quantisation stays on, at next to no strength, since with it
off both encoders silently ignore regions of interest. A preset is one of theirs, or one with the tune of a live link: "ultrafast+zerolatency".
"""

import io
import time
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np
import pillow_jxl  # noqa: F401 (teaches PIL the format)
from av.filter import Graph
from PIL import Image

from roilib.codecs.rate_search import highest_within
from roilib.roi import integer_boxes

VIDEO, STILL = ("x264", "x265"), ("jpeg", "webp", "avif", "jxl")
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
TUNES = ("", "zerolatency")  # of the others, psnr and ssim turn regions of interest off
KR, KB = 0.2126, 0.0722  # BT.709
FAIR = {
    "x264": "keyint=1:aq-mode=1:aq-strength=0.01:psy=0",
    "x265": "keyint=1:info=0:aq-mode=1:aq-strength=0.01:psy-rd=0:psy-rdoq=0:log-level=none",
}
CRFS, QUALITIES = (
    [51 - i / 4 for i in range(201)],
    range(1, 101),
)  # of VIDEO and STILL, worst first; x264's crf 0 is another codec: lossless
DECODERS = {"x264": "h264", "x265": "hevc"}  # of VIDEO
SEI = {"x264": lambda header: header & 31 == 6, "x265": lambda header: header >> 1 & 63 in (39, 40)}


def to_yuv(image: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) → uint8 full-range BT.709 YCbCr, planes first (3, H, W)."""
    rgb = image.astype(np.float32)
    y = rgb @ np.array([KR, 1 - KR - KB, KB], np.float32)
    cb, cr = 128 + (rgb[..., 2] - y) / (2 - 2 * KB), 128 + (rgb[..., 0] - y) / (2 - 2 * KR)
    return np.rint(np.stack([y, cb, cr])).clip(0, 255).astype(np.uint8)


def to_rgb(yuv: np.ndarray) -> np.ndarray:
    """The inverse of `to_yuv`."""
    y, cb, cr = (
        yuv[0].astype(np.float32),
        yuv[1].astype(np.float32) - 128,
        yuv[2].astype(np.float32) - 128,
    )
    red, blue = y + (2 - 2 * KR) * cr, y + (2 - 2 * KB) * cb
    green = (y - KR * red - KB * blue) / (1 - KR - KB)
    return np.rint(np.stack([red, green, blue], -1)).clip(0, 255).astype(np.uint8)


def with_regions(frame: av.VideoFrame, boxes: Sequence, qoffset: float) -> av.VideoFrame:
    """The frame with ffmpeg's ROI side data: boxes (K, ≥4) xyxy get the quantiser offset, -1 … 1 in units of the codec's whole range."""
    if not len(boxes) or not qoffset:
        return frame
    graph = Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
    )
    cut = integer_boxes(
        np.asarray(boxes)[:, :4], frame.height, frame.width
    )  # addroi moves what is partly outside, and grows it
    for left, top, right, bottom, _ in cut.tolist():
        region = graph.add(
            "addroi",
            f"x={left}:y={top}:w={right - left}:h={bottom - top}:qoffset={Fraction(qoffset).limit_denominator(1000)}",
        )
        last.link_to(region)
        last = region
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull()


def encode_video(
    image: np.ndarray,
    codec: str,
    crf: float,
    boxes: Sequence = (),
    qoffset: float = 0.0,
    preset: str = "medium",
) -> bytes:
    """One picture, uint8 (H, W, 3), as an intra frame of x264 or x265: Annex B bytes without SEI. Raises ValueError for an unknown preset."""
    preset, _, tune = preset.partition("+")
    if preset not in PRESETS or tune not in TUNES:
        raise ValueError(
            f"{codec} {preset}{tune and '+' + tune}: a preset is one of {', '.join(PRESETS)}, or one with +zerolatency"
        )
    frame = av.VideoFrame.from_ndarray(to_yuv(image), "yuv444p")
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    context = av.CodecContext.create(f"lib{codec}", "w")
    context.width, context.height, context.pix_fmt, context.time_base = (
        frame.width,
        frame.height,
        "yuv444p",
        Fraction(1, 25),
    )
    context.color_range = av.video.reformatter.ColorRange.JPEG
    context.thread_count = (
        1  # zerolatency cuts the picture into as many slices as there are threads
    )
    context.options = ({"tune": tune} if tune else {}) | {
        "preset": preset,
        "crf": str(crf),
        f"{codec}-params": FAIR[codec],
    }
    packets = [*context.encode(with_regions(frame, boxes, qoffset)), *context.encode(None)]
    return without_sei(b"".join(map(bytes, packets)), codec)


def without_sei(stream: bytes, codec: str) -> bytes:
    """Annex B bytes with the SEI units left out."""
    units = stream.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:]
    return b"".join(b"\0\0\1" + unit for unit in units if not SEI[codec](unit[0]))


def decode_video(data: bytes, codec: str) -> np.ndarray:
    """The picture of what `encode_video` returned."""
    context = av.CodecContext.create(DECODERS[codec], "r")
    frames = [*context.decode(av.Packet(data)), *context.decode(None)]
    return to_rgb(frames[0].to_ndarray())


def encode(
    image: np.ndarray,
    codec: str,
    quality: float,
    boxes: Sequence = (),
    qoffset: float = 0.0,
    preset: str = "medium",
) -> bytes:
    """A picture, uint8 (H, W, 3), by any codec of VIDEO (quality: its crf) or STILL (its quality; neither ROI nor preset)."""
    return (
        encode_video(image, codec, quality, boxes, qoffset, preset)
        if codec in VIDEO
        else encode_still(image, codec, quality)
    )


def decode(data: bytes, codec: str) -> np.ndarray:
    """The picture of what `encode` returned, uint8 (H, W, 3)."""
    return decode_video(data, codec) if codec in VIDEO else decode_still(data)


def encode_still(image: np.ndarray, codec: str, quality: float) -> bytes:
    """One picture as JPEG, WebP, AVIF or JPEG XL, all 4:4:4 where the format can."""
    file, options = (
        io.BytesIO(),
        {
            "jpeg": {"subsampling": 0, "optimize": True},
            "webp": {"method": 6},
            "avif": {"subsampling": "4:4:4"},
            "jxl": {},
        },
    )
    Image.fromarray(image).save(file, codec, quality=quality, **options[codec])
    return file.getvalue()


def decode_still(data: bytes) -> np.ndarray:
    """The picture of what `encode_still` returned."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def encode_within(
    image: np.ndarray,
    codec: str,
    max_bytes: int,
    boxes: Sequence = (),
    qoffset: float = 0.0,
    preset: str = "medium",
    check: Callable[[], None] = lambda: None,
) -> tuple[float, bytes, float]:
    """(quality, stream, seconds) of `encode` at the best quality that takes at most max_bytes, or next to it; at the worst one where none does.

    check: called before each try; what it raises ends the search.
    """
    qualities, tries = CRFS if codec in VIDEO else QUALITIES, {}

    def size(i: int) -> int:
        check()
        start = time.perf_counter()
        stream = encode(image, codec, qualities[i], boxes, qoffset, preset)
        tries[i] = stream, time.perf_counter() - start
        return len(stream)

    best = highest_within(size, max_bytes, len(qualities) // 2, len(qualities) - 1, slope=0.04)
    return qualities[best], *tries[best]
