"""A video file as the frames of a drive: as many frames a second as the drive has.

    file ──► times of all frames ──► chosen: the last one at or before k / fps ──► RGB

A frame is named by its number in the file, counted from 0, such as `clip/000012`. Box files and
KITTI tracking labels refer to that number.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg")
OPTIONS = {  # of FFmpeg: no playlist, and nothing but the file itself
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg",
}
TOLERANCE = 0.01  # share by which a file's rate may lie below the drive's, as 29.97 below 30


class Video:
    """The frames of a video file, taken at `fps` frames a second; None: all of them.

    count: number of frames, from the first; None: all. Raises ValueError naming a file
    that is no video, or has fewer frames a second than the drive.
    """

    def __init__(self, path: Path, fps: float | None = None, count: int | None = None):
        self.path = path
        try:
            with av.open(str(path), options=OPTIONS) as container:
                if not container.streams.video:
                    raise ValueError(f"{path}: a file without video")
                stream = container.streams.video[0]
                self.size = stream.height, stream.width
                packets = container.demux(stream)
                found = sorted(p.pts for p in packets if p.pts is not None and p.size)
                times = np.array(found) * float(stream.time_base or 1)
        except av.error.FFmpegError as error:
            raise ValueError(f"{path}: not a readable video ({error.strerror})") from None
        if not found:
            raise ValueError(f"{path}: a video without frames")
        chosen = np.arange(len(found))
        if fps and len(found) > 1:
            seconds = times[-1] - times[0]
            rate = (len(found) - 1) / seconds
            if not rate >= fps * (1 - TOLERANCE):
                raise ValueError(
                    f"{path}: {rate:g} frames a second, fewer than the {fps:g} of the drive"
                )
            moments = np.arange(int(seconds * fps + 1 + TOLERANCE)) / fps + times[0]
            chosen = np.searchsorted(times, moments + TOLERANCE / fps, "right") - 1
        chosen = chosen[:count].tolist()
        self.names = [path.with_suffix("") / f"{number:06d}" for number in chosen]
        self.stamps = Counter(found[number] for number in chosen)  # how often each is shown

    def __iter__(self) -> Iterator[np.ndarray]:
        """Decode the chosen frames in order, uint8 (H, W, 3). Raises ValueError naming the file."""
        left = Counter(self.stamps)
        try:
            with av.open(str(self.path), options=OPTIONS) as container:
                for frame in container.decode(video=0):
                    if (frame.height, frame.width) != self.size:
                        raise ValueError(f"{self.path}: frames of more than one size")
                    if frame.rotation and left == self.stamps:
                        text = f"{self.path}: its rotation by {frame.rotation}° is not applied"
                        warnings.warn(text, stacklevel=2)
                    if repeats := left.pop(frame.pts, 0):
                        yield from [frame.to_ndarray(format="rgb24")] * repeats
                    if not left:
                        return
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.path}: does not decode ({error.strerror})") from None
        raise ValueError(f"{self.path}: {left.total()} of its frames do not decode")
