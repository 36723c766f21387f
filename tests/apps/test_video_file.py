"""roilib.apps.drive.video_file: the frames of a video file, at the rate of the drive."""

import av
import numpy as np
import pandas as pd
import pytest
from conftest import refusal

from roilib.apps.drive.frames import Drive
from roilib.apps.drive.video_file import Video
from roilib.cli import main

SIZE = (64, 96)
REST = "0 0 0 0 0 0 0"


def film(path, frames=12, fps=24, codec="mpeg4", times=None, sizes=(SIZE,)):
    """A video of grey frames: frame n has the grey level 20 n."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for n in range(frames):
            picture = np.full((*sizes[n % len(sizes)], 3), 20 * n, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = times[n] if times else n
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def greys(images):
    return [round(float(image.mean()) / 20) for image in images]


@pytest.mark.parametrize(
    ("fps", "count", "numbers"),
    [
        (None, None, list(range(12))),
        (24, None, list(range(12))),
        (23.976, 3, [0, 1, 2]),
        (12, None, [0, 2, 4, 6, 8, 10]),
        (10, None, [0, 2, 4, 7, 9]),
        (8, 2, [0, 3]),
        (1, None, [0]),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_frames_are_those_at_the_drives_times(tmp_path, suffix, fps, count, numbers):
    video = Video(film(tmp_path / f"clip.{suffix}"), fps, count)
    assert video.names == [tmp_path / "clip" / f"{n:06d}" for n in numbers]
    for _ in range(2):  # it can be watched twice
        assert greys(video) == numbers


def test_a_rate_that_changes_keeps_time(tmp_path):
    times = [0, 1, 2, 3, 12, 13, 14, 15, 16, 17, 18, 19]
    video = Video(film(tmp_path / "phone.mkv", times=times), fps=12)
    assert greys(video) == [0, 2, 3, 3, 3, 3, 4, 6, 8, 10]


def test_frames_have_boxes_by_their_number(tmp_path):
    path = film(tmp_path / "clip.mp4")
    rows = [f"{n} 1 Car 0 0 0 {n} 8 32 40 {REST}" for n in range(12)]
    (tmp_path / "0000.txt").write_text("\n".join(rows))
    frames = list(Drive(path, boxes=tmp_path / "0000.txt", fps=8))
    assert [frame.id for frame in frames] == ["000000", "000003", "000006", "000009"]
    assert [frame.boxes[0, 0] for frame in frames] == [0, 3, 6, 9]
    assert frames[1].image.shape == (*SIZE, 3)


@pytest.mark.slow
def test_a_video_is_driven(tmp_path, capsys):
    path = film(tmp_path / "clip.mp4")
    (tmp_path / "0000.txt").write_text(f"0 1 Car 0 0 0 8 8 32 40 {REST}")
    words = ["drive", path, "--boxes", tmp_path / "0000.txt", "--fps", 8, "--count", 2]
    words += ["--codecs", "x264 ultrafast intra", "--results", tmp_path / "r"]
    assert main([*map(str, words), "--figures", str(tmp_path / "r")]) == 0
    assert "x264 ultrafast intra" in capsys.readouterr().out
    records = pd.read_csv(tmp_path / "r" / "drive_frames.csv", dtype={"image": str})
    assert list(records["image"].unique()) == ["000000", "000003"]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged(path):
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 300
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)


MISTAKES = {
    "cut off": (cut, None, "not a readable video"),
    "text": (lambda path: path.write_text("not a film"), None, "not a readable video"),
    "empty": (lambda path: path.write_bytes(b""), None, "not a readable video"),
    "a playlist": (
        lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n"),
        None,
        "not a readable video",
    ),
    "damaged frames": (damaged, None, "does not decode"),
    "too few frames a second": (lambda path: None, 30, "24 frames a second, fewer than the 30"),
    "no number": (lambda path: None, float("nan"), "fewer than the nan"),
}


@pytest.mark.parametrize(("spoil", "fps", "why"), MISTAKES.values(), ids=MISTAKES)
def test_videos_with_a_mistake(tmp_path, spoil, fps, why):
    path = film(tmp_path / "clip.mp4")
    spoil(path)
    message = refusal(lambda: list(Video(path, fps)))
    assert message.startswith(f"{path}: ")
    assert why in message


def test_a_file_without_pictures_is_named(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert refusal(Video, path) == f"{path}: a file without video"


@pytest.mark.parametrize("name", ["a.png", "list.m3u8", "nothing.mp4"])
def test_what_is_neither_a_folder_nor_a_video(tmp_path, name):
    if name != "nothing.mp4":
        (tmp_path / name).write_bytes(b"?")
    assert refusal(Drive, tmp_path / name).startswith(f"{tmp_path / name}: n")
