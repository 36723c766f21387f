"""Who sends a drive's frames: our codec, x264 and x265 intra at the best quality that fits, and both as live encoders with motion compensation.

    sender.encode(image, boxes, time) ──► bytes of one frame, or None if it does not fit        sender.budget(time) ──► what it may take
    sender.decoder()(bytes)           ──► the picture a receiver shows, or None

All see the same boxes; x264 and x265 as `roilib.codecs.conventional` sets them up. A live encoder's rate control (VBV) is told the link's rate and the bucket's
size and works on its own; it starts anew, with a keyframe, when the rate has changed. No receiver asks for anything to be sent again.
"""

from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np

from roilib.apps.drive.link import Bucket
from roilib.codecs import conventional
from roilib.codecs.protocol import DoesNotFit
from roilib.codecs.roic import Codec

Decode = Callable[[bytes], np.ndarray | None]
LIVE = {  # each encoder's own names; one thread, so that its rate control gives the same bytes every time
    "x264": "aq-mode=1:aq-strength=0.01:psy=0:threads=1:sliced-threads=0",
    "x265": "aq-mode=1:aq-strength=0.01:psy-rd=0:psy-rdoq=0:info=0:repeat-headers=1:pools=none:frame-threads=1:log-level=none",
}


class Ours:
    """`roilib.codecs.roic` under a byte cap."""

    def __init__(self, bucket: Bucket, codec: Codec, alpha: float):
        self.bucket, self.codec, self.alpha = bucket, codec, alpha
        self.name, self.setting = codec.parameters.which, {"alpha": alpha}
        self.budget = bucket.share

    def encode(self, image: np.ndarray, boxes: np.ndarray, time: float) -> bytes | None:
        """The largest λ that fits."""
        try:
            return self.codec.encode(image, boxes, alpha=self.alpha, max_bytes=self.budget(time))
        except ValueError as error:
            if not str(error).startswith("max_bytes="):  # how the codec says that nothing fits
                raise
            return None

    def decoder(self) -> Decode:
        """Every frame by itself."""
        return self.codec.decode


class Intra:
    """x264 or x265, every frame by itself at the best quality that fits."""

    def __init__(self, bucket: Bucket, codec: str, preset: str, qoffset: float):
        self.bucket, self.qoffset = bucket, qoffset
        self.codec = conventional.ConventionalCodec(f"{codec} {preset}")
        self.name, self.setting = f"{codec} {preset} intra", {"qoffset": qoffset}
        self.budget = bucket.share

    def encode(self, image: np.ndarray, boxes: np.ndarray, time: float) -> bytes | None:
        """Code a frame at the best quality that fits, found by coding it a few times."""
        try:
            return self.codec.encode_within(image, boxes, self.budget(time), qoffset=self.qoffset)
        except DoesNotFit:
            return None

    def decoder(self) -> Decode:
        """Every frame by itself."""
        return self.codec.decode


class Live:
    """x264 or x265 as a live encoder: one thread, zero latency, no B-frames, a keyframe every `keyint` frames, rate control by VBV."""

    def __init__(self, bucket: Bucket, codec: str, preset: str, qoffset: float, keyint: int):
        self.bucket, self.codec, self.preset, self.qoffset, self.keyint = (
            bucket,
            codec,
            preset,
            qoffset,
            keyint,
        )
        self.name, self.setting = f"{codec} {preset} live", {"qoffset": qoffset, "keyint": keyint}
        self.budget = bucket.space
        self.encoder, self.rate, self.count = None, 0.0, 0

    def encode(self, image: np.ndarray, boxes: np.ndarray, time: float) -> bytes:
        """The next frame of the stream, of a size that the encoder's rate control chose."""
        if self.bucket.link.rate(time) != self.rate:
            self.rate = self.bucket.link.rate(time)
            self.encoder = self._open(image.shape[1], image.shape[0])
        frame = conventional.video_frame(image, boxes, self.qoffset)
        frame.pts, frame.time_base = self.count, self.encoder.time_base
        self.count += 1
        return conventional.without_sei(self.encoder.encode(frame), self.codec)

    def _open(self, width: int, height: int) -> av.VideoCodecContext:
        fps = Fraction(self.bucket.fps).limit_denominator(1001)
        kbit = self.rate * 8 / 1000
        context = av.CodecContext.create(f"lib{self.codec}", "w")
        context.width, context.height, context.pix_fmt, context.time_base, context.framerate = (
            width,
            height,
            "yuv444p",
            1 / fps,
            fps,
        )
        context.color_range = av.video.reformatter.ColorRange.JPEG
        rate, size = max(round(kbit), 1), max(round(kbit * self.bucket.latency_ms / 1000), 1)
        control = f"bitrate={rate}:vbv-maxrate={rate}:vbv-bufsize={size}:vbv-init=1"
        frames = f"keyint={self.keyint}:min-keyint={self.keyint}:scenecut=0:bframes=0"
        context.options = {
            "preset": self.preset,
            "tune": "zerolatency",
            f"{self.codec}-params": f"{control}:{frames}:{LIVE[self.codec]}",
        }
        return context

    def decoder(self) -> Decode:
        """FFmpeg's decoder, fed what arrives; for a frame whose reference it misses it gives its best guess (H.264) or nothing (HEVC)."""
        context = av.CodecContext.create(conventional.DECODERS[self.codec], "r")
        context.thread_count = 1

        def decode(data: bytes) -> np.ndarray | None:
            try:
                frames = context.decode(av.Packet(data))
            except av.error.InvalidDataError:
                return None
            return conventional.to_rgb(frames[-1].to_ndarray()) if frames else None

        return decode


Sender = Ours | Intra | Live


def peer(name: str, bucket: Bucket, qoffset: float, keyint: int) -> Intra | Live:
    """The peer called for example "x265 medium intra" or "x264 veryfast live". Raises ValueError for another name and for values out of range."""
    if not -1 <= qoffset <= 1 or keyint < 1:
        raise ValueError(
            f"qoffset is a number from -1 to 1 and keyint 1 or more, not {qoffset} and {keyint}"
        )
    codec, preset, mode = (name.split() + 3 * [""])[:3]
    if (
        name == f"{codec} {preset} {mode}"
        and codec in conventional.VIDEO
        and preset in conventional.PRESETS
        and mode in ("intra", "live")
    ):
        return (
            Intra(bucket, codec, preset, qoffset)
            if mode == "intra"
            else Live(bucket, codec, preset, qoffset, keyint)
        )
    raise ValueError(
        f"{name}: a peer is x264 or x265, a preset, and intra or live, as 'x265 veryfast live'"
    )
