"""The frames of a drive: pictures, the boxes that encoders get, and the ROI that is measured."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roilib.apps.drive.video_file import SUFFIXES, Video
from roilib.apps.transcode import boxes_of
from roilib.datasets.folder import LABEL_SUFFIXES
from roilib.datasets.images import picture_size, read_picture
from roilib.models.detector import HookedDetector
from roilib.roi import roi_mask
from roilib.utils.files import PICTURE_SUFFIXES, picture_files


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a drive.

    image: uint8 (H, W, 3). boxes: (K, ≥4), what encoders get. roi: bool (H, W), of the true boxes.
    detect_ms: the time that the detector took; None where boxes come from files.
    """

    id: str
    image: np.ndarray
    boxes: np.ndarray
    roi: np.ndarray
    detect_ms: float | None


class Drive:
    """The frames of a folder in natural order of their names, of a KITTI root, or of a video file.

    boxes: what encoders get: a folder of box files named as the pictures, or a file of KITTI
    tracking labels; None: what the pretrained detector finds. truth: the same for the ROI that is
    measured; None: the root's labels, or those beside the pictures, or else what encoders get.
    count: number of frames, from the first; None: all. fps: the rate at which frames of a video
    are taken.

    Raises ValueError naming the folder or file that is wrong, before anything is coded.
    """

    def __init__(
        self,
        folder: str | Path,
        boxes: str | Path | None = None,
        truth: str | Path | None = None,
        count: int | None = None,
        fps: float | None = None,
    ):
        folder, self.video = Path(folder), None
        if (folder / "training" / "image_2").is_dir():
            labels, folder = folder / "training" / "label_2", folder / "training" / "image_2"
            truth = labels if truth is None and labels.is_dir() else truth
        elif truth is None and _has_labels(folder):
            truth = folder
        if count is not None and count < 1:
            raise ValueError(f"a drive has 1 frame or more, not {count}")
        if folder.is_file() and folder.suffix.lower() in SUFFIXES:
            self.video = Video(folder, fps, count)
            self.pictures, self.files, size = self.video.names, [folder], self.video.size
        elif not folder.is_dir():
            kind = "neither a folder nor a video" if folder.exists() else "no such folder or video"
            raise ValueError(f"{folder}: {kind} ({', '.join(SUFFIXES)})")
        else:
            self.pictures = self.files = picture_files(folder)[:count]
            size = self._common_size(folder)
        self.boxes, self.truth = (
            None if given is None else self._boxes(Path(given), size) for given in (boxes, truth)
        )
        self.detector = HookedDetector() if boxes is None else None
        self.inputs = [*self.files, *(Path(given) for given in (boxes, truth) if given)]

    def _common_size(self, folder: Path) -> tuple[int, int]:
        """Return the height and width of a folder's pictures.

        Raises ValueError for a picture of another size, or with the name of another one.
        """
        if not self.pictures:
            raise ValueError(f"{folder}: no pictures here ({', '.join(PICTURE_SUFFIXES)})")
        first, *others = map(picture_size, self.pictures)
        names = {self.pictures[0].stem}
        for path, (height, width) in zip(self.pictures[1:], others, strict=True):
            if (height, width) != first:
                raise ValueError(
                    f"{path}: {width}x{height} pixels, the frames before it have "
                    f"{first[1]}x{first[0]}"
                )
            if path.stem in names:
                raise ValueError(f"{path}: a second picture of the name {path.stem}")
            names.add(path.stem)
        return first

    def _boxes(self, given: Path, size: tuple[int, int]) -> list[np.ndarray]:
        found = boxes_of(self.pictures, given)
        return [found(path, size) for path in self.pictures]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def roi(self) -> str:
        """Say in which boxes quality is measured."""
        return "labelled boxes" if self.truth else "boxes that the encoders get"

    def __iter__(self) -> Iterator[Frame]:
        images = self.video or (read_picture(p).permute(1, 2, 0).numpy() for p in self.pictures)
        for i, (path, image) in enumerate(zip(self.pictures, images, strict=True)):
            start = time.perf_counter()
            boxes = self.boxes[i] if self.boxes else self.detector.regions(image)
            detect_ms = None if self.boxes else 1000 * (time.perf_counter() - start)
            roi = roi_mask(self.truth[i] if self.truth else boxes, *image.shape[:2])
            yield Frame(path.stem, image, boxes, roi, detect_ms)


def _has_labels(folder: Path) -> bool:
    """Whether a box file stands beside one of the pictures of a folder."""
    return folder.is_dir() and any(
        path.with_suffix(suffix).is_file()
        for path in picture_files(folder)
        for suffix in LABEL_SUFFIXES
    )
