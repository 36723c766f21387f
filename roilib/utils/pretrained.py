"""Pretrained weights: files of data/weights, in the repository or in an installed wheel."""

import functools
from pathlib import Path

from roilib.utils.files import content_hash

PRETRAINED_CODECS = {  # by what their training counted as an error: tune → file
    "rgb": "roi_vbr.safetensors",  # red, green and blue alike
    "yuv": "roi_vbr_yuv.safetensors",  # luma more than chroma, at 4:2:0
}
PRETRAINED_BASELINE = "hyperprior_small.safetensors"  # where the sample profile's models start
PRETRAINED_DETECTOR = "yolov8n_kitti.pt"
PACKAGE = Path(__file__).parent.parent
FOLDERS = (  # of a wheel, of the repository
    PACKAGE / "pretrained",
    PACKAGE.parent / "data" / "weights",
)
SUMS = "SHA256SUMS"


@functools.cache
def pretrained(name: str) -> Path:
    """The path of a pretrained file.

    Raises ValueError naming a file that is missing or whose SHA-256 is not that of SHA256SUMS.
    """
    folder = _folder()
    path = folder / name
    try:
        sums, found = _sums(folder), content_hash(path)
    except OSError as error:
        raise ValueError(
            f"{error.filename}: {error.strerror}; data/weights comes with the repository "
            "and with the wheel"
        ) from None
    if sums.get(name) != found:
        raise ValueError(f"{path}: not the pretrained file (its SHA-256 is not that of {SUMS})")
    return path


def is_pretrained(path: Path) -> bool:
    """Whether a file has the content of a pretrained one, wherever it lies."""
    return content_hash(path) in _sums(_folder()).values()


def _folder() -> Path:
    return next((folder for folder in FOLDERS if (folder / SUMS).is_file()), FOLDERS[-1])


def _sums(folder: Path) -> dict[str, str]:
    return {line.split()[1]: line.split()[0] for line in (folder / SUMS).read_text().splitlines()}
