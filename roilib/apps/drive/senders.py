"""Senders of a drive: codecs frame by frame, and x264 and x265 as live encoders.

    sender.budget(time)               ──► the bytes that a frame may take
    sender.encode(image, boxes, time) ──► bytes of one frame, or None if it does not fit
    sender.decoder()(bytes)           ──► the picture that a receiver shows, or None

All get the same boxes. A live encoder uses motion compensation; its rate control (VBV) knows the
link's rate and the bucket's size, and starts anew, with a keyframe, when the rate has changed.
Receivers never ask for retransmission.
"""

import contextlib
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np

from roilib.apps.drive.link import Bucket
from roilib.codecs.conventional import PRESETS, ConventionalCodec, without_subsampling
from roilib.codecs.protocol import DoesNotFit, ImageCodec
from roilib.codecs.video import (
    DECODERS,
    WITH_ROI,
    check_size,
    open_encoder,
    padded_to_even,
    picture_of,
    video_frame,
    without_padding,
    without_sei,
)

Decode = Callable[[bytes], np.ndarray | None]
LIVE = {  # one thread, so that rate control gives the same bytes every time
    "x264": "aq-mode=1:aq-strength=0.01:psy=0:threads=1:sliced-threads=0",
    "x265": "aq-mode=1:aq-strength=0.01:psy-rd=0:psy-rdoq=0:info=0:repeat-headers=1:pools=none:"
    "frame-threads=1:log-level=none",
}
WEAKER = (0.5, 0)  # of the ROI strength, until a frame fits
LARGEST_DENOMINATOR = 1001  # of a frame rate


def frame_rate(fps: float) -> Fraction:
    """Return a frame rate as the encoders take it, such as 30000/1001."""
    return Fraction(fps).limit_denominator(LARGEST_DENOMINATOR)


class Intra:
    """A codec that codes every frame by itself, at the best quality that fits.

    setting: the codec's ROI strength, alpha or qoffset. weaker: what to try, one after the other,
    where not even the worst quality fits.
    """

    def __init__(
        self,
        bucket: Bucket,
        codec: ImageCodec,
        name: str,
        setting: dict[str, float],
        weaker: Sequence[dict[str, float]] = (),
    ):
        self.bucket, self.codec, self.name = bucket, codec, name
        self.setting, self.weaker = setting, weaker
        self.budget = bucket.share

    def encode(self, image: np.ndarray, boxes: np.ndarray, time: float) -> bytes | None:
        """Code a frame, or return None if even the smallest stream does not fit."""
        for setting in (self.setting, *self.weaker):
            with contextlib.suppress(DoesNotFit):
                return self.codec.encode_within(image, boxes, self.budget(time), **setting)
        return None

    def decoder(self) -> Decode:
        """Decode every frame by itself."""
        return self.codec.decode


class Live:
    """x264 or x265 as a live encoder: one thread, zero latency, no B-frames, VBV rate control.

    name: codec, preset and "live", as "x265 veryfast live"; with 4:2:0 its chroma is halved.
    keyint: frames from keyframe to keyframe.
    """

    def __init__(self, bucket: Bucket, name: str, qoffset: float, keyint: int):
        self.bucket, self.name = bucket, name
        base, self.subsampled = without_subsampling(name)
        self.codec, self.preset, _ = base.split()
        self.setting = {"qoffset": qoffset, "keyint": keyint}
        self.budget = bucket.space
        self.encoder, self.rate, self.count, self.padding = None, 0.0, 0, 0

    def encode(self, image: np.ndarray, boxes: np.ndarray, time: float) -> bytes:
        """Code the stream's next frame, of a size that the encoder's rate control chooses."""
        check_size(self.codec, *image.shape[:2], padded=self.subsampled)
        if self.subsampled:
            image, (self.padding,) = padded_to_even(image)
        if self.bucket.link.rate(time) != self.rate:
            self.rate = self.bucket.link.rate(time)
            self.encoder = self._open(image.shape[1], image.shape[0])
        frame = video_frame(image, boxes, self.setting["qoffset"], self.subsampled)
        frame.pts, frame.time_base = self.count, self.encoder.time_base
        self.count += 1
        return without_sei(self.encoder.encode(frame), self.codec)

    def _open(self, width: int, height: int) -> av.VideoCodecContext:
        fps = frame_rate(self.bucket.fps)
        format = "yuv420p" if self.subsampled else "yuv444p"
        context = open_encoder(self.codec, width, height, 1 / fps, format)
        context.framerate = fps
        kbit, keyint = self.rate * 8 / 1000, self.setting["keyint"]
        rate, size = max(round(kbit), 1), max(round(kbit * self.bucket.latency_ms / 1000), 1)
        control = f"bitrate={rate}:vbv-maxrate={rate}:vbv-bufsize={size}:vbv-init=1"
        frames = f"keyint={keyint}:min-keyint={keyint}:scenecut=0:bframes=0"
        context.options = {
            "preset": self.preset,
            "tune": "zerolatency",
            f"{self.codec}-params": f"{control}:{frames}:{LIVE[self.codec]}",
        }
        return context

    def decoder(self) -> Decode:
        """Decode with FFmpeg what arrives.

        Where a frame's reference is missing, H.264 gives a best guess and HEVC nothing.
        """
        context = av.CodecContext.create(DECODERS[self.codec], "r")
        context.thread_count = 1

        def decode(data: bytes) -> np.ndarray | None:
            try:
                frames = context.decode(av.Packet(data))
            except av.error.InvalidDataError:
                return None
            return without_padding(picture_of(frames[-1]), self.padding) if frames else None

        return decode


Sender = Intra | Live


def conventional_sender(name: str, bucket: Bucket, qoffset: float, keyint: int) -> Sender:
    """Make the sender called for example "x265 medium intra" or "x264 veryfast live".

    Raises ValueError for another name and for values out of range.
    """
    if not -1 <= qoffset <= 1 or keyint < 1:
        raise ValueError(
            f"qoffset is a number from -1 to 1 and keyint 1 or more, not {qoffset} and {keyint}"
        )
    match without_subsampling(name)[0].split():
        case [codec, preset, "intra"] if codec in WITH_ROI and preset in PRESETS:
            single = ConventionalCodec(name.replace(" intra", ""))
            weaker = [{"qoffset": share * qoffset} for share in WEAKER if qoffset]
            return Intra(bucket, single, name, {"qoffset": qoffset}, weaker)
        case [codec, preset, "live"] if codec in WITH_ROI and preset in PRESETS:
            return Live(bucket, name, qoffset, keyint)
    raise ValueError(
        f"{name}: a codec of a drive is x264 or x265, a preset, and intra or live, as "
        "'x265 veryfast live'; at 4:2:0 'x265 veryfast live 4:2:0'"
    )
