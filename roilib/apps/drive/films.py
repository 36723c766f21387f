"""Films of a drive: what each receiver shows, and what is in it enlarged."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from roilib.apps.compare import caption, with_crop
from roilib.apps.drive.frames import Frame
from roilib.apps.drive.senders import frame_rate

FILM = {
    "crf": "23",
    "preset": "fast",
    "x264-params": "cpu-independent=1",  # the same bytes on every machine
}
ENLARGED = 3  # times, of what a film shows beside each picture
ASPECT = 4 / 3  # width by height of what is enlarged
FOLLOW = 0.2  # of the way to the largest box, that what is enlarged moves in a frame


class Film:
    """An MP4 of the original and what receivers on `network` showed of the codecs `names`.

    The pictures stand one under the other, each with a part that follows the largest box enlarged
    beside it. The file appears when it is complete.
    """

    def __init__(self, path: Path, network: str, names: Sequence[str], fps: float):
        self.path, self.network, self.names = path, network, names
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.container = av.open(
            str(self.temporary), "w", format="mp4", options={"movflags": "faststart"}
        )
        self.stream = self.container.add_stream("libx264", rate=frame_rate(fps), options=FILM)
        self.stream.pix_fmt = "yuv420p"
        self.middle: np.ndarray | None = None

    def add(self, frame: Frame, shown: Mapping[str, np.ndarray]) -> None:
        """Add what the receivers show of a frame; shown: codec → picture."""
        window = self._window(frame)
        rows = [caption(with_crop(frame.image, window), "original")]
        rows += [caption(with_crop(shown[name], window), name) for name in self.names]
        stack = np.concatenate(rows)
        height, width = stack.shape[:2]  # 4:2:0 has even sides
        stack = np.pad(stack, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        video = av.VideoFrame.from_ndarray(stack, "rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        if not self.stream.codec_context.is_open:
            self.stream.width, self.stream.height = video.width, video.height
        self.container.mux(self.stream.encode(video))

    def _window(self, frame: Frame) -> tuple[int, int, int, int]:
        """Return x0, y0, x1, y1 of what is enlarged: it moves towards the largest box."""
        sides = np.array(frame.image.shape[1::-1])
        size = np.minimum(sides, max(sides[1] // ENLARGED, 1) * np.array([ASPECT, 1])).astype(int)
        boxes = frame.boxes[:, :4]
        middle = sides / 2 if self.middle is None else self.middle
        if len(boxes):
            x0, y0, x1, y1 = boxes[np.prod(boxes[:, 2:] - boxes[:, :2], 1).argmax()]
            goal = np.array([x0 + x1, y0 + y1]) / 2
            middle = goal if self.middle is None else middle + FOLLOW * (goal - middle)
            self.middle = middle
        start = np.clip(np.round(middle - size / 2), 0, sides - size).astype(int)
        return (*start.tolist(), *(start + size).tolist())

    def close(self, complete: bool) -> None:
        """Finish the file, or leave none."""
        try:
            if complete:
                self.container.mux(self.stream.encode(None))
            self.container.close()
            if complete:
                self.temporary.replace(self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def films(
    folder: str | Path, codecs: Sequence[str], networks: Sequence[str], fps: float
) -> Iterator[list[Film]]:
    """Make a film `drive_NETWORK.mp4` for each network: the original, our codec and another one.

    The other one is the first live encoder, or else the first conventional codec.
    """
    names = [codecs[0], *sorted(codecs[1:], key=lambda name: " live" not in name)[:1]]
    made = [
        Film(Path(folder) / f"drive_{network}.mp4", network, names, fps) for network in networks
    ]
    complete = False
    with contextlib.ExitStack() as closing:
        for film in made:
            closing.callback(lambda film=film: film.close(complete))
        yield made
        complete = True


def film_frame(path: str | Path, seconds: float) -> np.ndarray:
    """Return the first frame of a film from `seconds` on, or its last one, uint8 (H, W, 3)."""
    with av.open(str(path)) as film:
        for frame in film.decode(video=0):
            if frame.time >= seconds:
                break
        return frame.to_ndarray(format="rgb24")
