"""One picture to a `.roic` file and back: what `roilib encode` and `roilib decode` do to each file.

Job ──► picture ──► boxes: a file's, a detector's or none ──► codec ──► stream ──► file
Job ──► stream ──► codec ──► picture ──► file
"""

import functools
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from roilib.apps.files import (
    PICTURES,
    SOFTWARE,
    STANDARD,
    Job,
    describe,
    name_of,
    opened,
    write_bytes,
)
from roilib.codecs import roic
from roilib.codecs.codec import Codec
from roilib.codecs.container import Header
from roilib.datasets.boxes import box_file, by_frame, is_tracking, read_boxes, read_tracking
from roilib.datasets.images import read_picture
from roilib.models.detector import HookedDetector

Regions = Callable[[Path, np.ndarray], Sequence]  # picture's file and pixels → its boxes
FindBoxes = Callable[[Path, tuple[int, int]], np.ndarray]  # file, height and width → its boxes


def regions_of(
    pictures: Sequence[Path],
    boxes: Path | None,
    box_format: str | None,
    detect: bool,
    detector: Path | None,
    confidence: float | None,
    classes: str | None,
) -> Regions:
    """Return a function that finds each picture's boxes, from files or a detector, or none.

    boxes, box_format: as for `boxes_of`. detector: a YOLOv8 file; None with `detect`: the
    pretrained one. confidence, classes (names separated by commas): which detections count.
    Raises ValueError naming what is missing.
    """
    if boxes:
        find = boxes_of(pictures, boxes, box_format)
        return lambda path, image: find(path, image.shape[:2])
    if detect or detector:
        options = {"classes": [name.strip() for name in classes.split(",")] if classes else ()}
        if confidence is not None:
            if not 0 <= confidence <= 1:
                raise ValueError(f"confidence is a number from 0 to 1, not {confidence}")
            options["confidence"] = confidence
        found_by = HookedDetector(detector)
        return lambda path, image: found_by.regions(image, **options)
    return lambda path, image: ()


def boxes_of(pictures: Sequence[Path], boxes: Path, box_format: str | None = None) -> FindBoxes:
    """Return a function that reads a picture's boxes, given its file and its height and width.

    boxes: a box file of one picture, a folder of box files named like the pictures, or a file of
    KITTI tracking labels, whose frame numbers are those at the end of the pictures' names.
    box_format: as for `read_boxes`. Raises ValueError naming what is missing.
    """
    if boxes.is_dir():
        files = {picture: box_file(boxes, picture) for picture in pictures}
        return lambda path, size: read_boxes(files[path], size, box_format)
    if not boxes.is_file():
        raise ValueError(f"{boxes}: no such file or folder")
    if is_tracking(boxes):
        return _tracked_boxes(pictures, boxes)
    if len(pictures) > 1:
        raise ValueError(f"{boxes}: boxes of one picture, but there are {len(pictures)}")
    return lambda path, size: read_boxes(boxes, size, box_format)


def _tracked_boxes(pictures: Sequence[Path], labels: Path) -> FindBoxes:
    """Return a function that finds a picture's boxes in KITTI tracking labels, as `boxes_of`."""
    frames = {
        path: frame for frame, path in by_frame(labels, {p: p.stem for p in pictures}).items()
    }
    for path in pictures:
        if path not in frames:
            raise ValueError(f"{path}: no frame number at the end of its name, as {labels} needs")
    if read_tracking(labels).keys().isdisjoint(frames.values()):
        others = " or the others" if len(pictures) > 1 else ""
        raise ValueError(f"{labels}: no frame of {pictures[0]}{others} is in these labels")
    tracked = functools.cache(functools.partial(read_tracking, labels))  # by a picture's size
    nothing = ([], np.zeros((0, 4), np.float32))
    return lambda path, size: tracked(size).get(frames[path], nothing)[1]


def read(path: Path, depth: int | None = None, content: bytes | None = None) -> np.ndarray:
    """Read a picture, or standard input, as uint8 (H, W, 3). Raises ValueError naming it.

    depth: as for `read_picture`. content: the bytes of a file that is not on this machine.
    """
    if content is None and path == STANDARD:
        with opened(path) as file:
            content = file.read()
    try:
        pixels = read_picture(path if content is None else io.BytesIO(content), depth)
    except ValueError:
        if content is None:
            raise
        raise ValueError(f"{name_of(path)}: not a readable picture") from None
    return pixels.permute(1, 2, 0).contiguous().numpy()


def picture_bytes(path: Path, image: np.ndarray) -> bytes:
    """Encode a picture in the format of its file's suffix, or as PNG for standard output."""
    options = PICTURES[".png" if path == STANDARD else path.suffix.lower()]
    if options["format"] == "PNG":
        mark = PngInfo()
        mark.add_text("Software", SOFTWARE)
        options = options | {"pnginfo": mark}
    file = io.BytesIO()
    Image.fromarray(image).save(file, **options)
    return file.getvalue()


def encode(
    job: Job,
    codec: Codec,
    regions: Regions,
    setting: dict,
    depth: int | None = None,
    preview: Path | None = None,
) -> dict:
    """Code a picture file, and return a record of it. Raises ValueError naming the file.

    setting: lmbda, alpha and max_bytes; depth: as for `read_picture`; preview: where to write the
    decoded picture.
    """
    image = read(job.source, depth)
    boxes = regions(job.source, image)
    start = time.perf_counter()
    try:
        stream = roic.encode(image, boxes, model=codec, **setting)
    except ValueError as error:
        raise ValueError(f"{name_of(job.source)}: {error}") from None
    seconds = time.perf_counter() - start
    job.write(stream)
    if preview:
        write_bytes(preview, picture_bytes(preview, codec.decode(stream)))
    return _record(job, Header.unpack(stream)[0], stream, seconds)


def decode(job: Job, stream: bytes, header: Header, codec: Codec) -> dict:
    """Decode a stream to a file, and return a record of it. Raises ValueError naming the file."""
    start = time.perf_counter()
    try:
        image = codec.decode(stream)
    except ValueError as error:
        raise ValueError(f"{name_of(job.source)}: {error}") from None
    seconds = time.perf_counter() - start
    job.write(picture_bytes(job.out, image))
    return _record(job, header, stream, seconds)


def _record(job: Job, header: Header, stream: bytes, seconds: float) -> dict:
    about = {"source": name_of(job.source), "out": str(job.out), "seconds": round(seconds, 3)}
    return about | describe(header, stream)
