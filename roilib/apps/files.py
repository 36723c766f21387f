"""Which file a command reads, which it writes, and which files it must not overwrite.

    a.png a.roic             one file to one file
    a.png b.png FOLDER out   several files, or folders of them, into the folder `out`
    a.png out/               one file into the folder `out`, which may not be there yet
    - -                      standard input to standard output

A command overwrites only what this package made: a .roic stream, a PNG that says so in its
Software field, an executed notebook, a report. `--force` overwrites other files too, but never an
input of the same command.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from roilib.codecs.container import MAGIC, MAX_BYTES, Header
from roilib.utils.files import replacing, visible_files

STANDARD = Path("-")  # standard input or output
STREAMS = (".roic",)
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
PICTURES = {  # what `decode` writes: suffix → Pillow's options
    ".png": {"format": "PNG"},
    ".bmp": {"format": "BMP"},
    ".tif": {"format": "TIFF"},
    ".tiff": {"format": "TIFF"},
    ".ppm": {"format": "PPM"},
    ".webp": {"format": "WEBP", "lossless": True},
    ".jpg": JPEG,
    ".jpeg": JPEG,
}
SOFTWARE = "roilib"  # of the PNG files that this package writes
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_MARK = b"tEXtSoftware\0" + SOFTWARE.encode()
HEAD_BYTES = 512  # of a file; Pillow writes a PNG's text before the pixels


@dataclass(frozen=True)
class Job:
    """One file to make from another; in_folder: make the folder of `out` first."""

    source: Path
    out: Path
    in_folder: bool = False

    def write(self, data: bytes) -> None:
        """Write the output. Raises ValueError naming it when it cannot be written."""
        if self.in_folder:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.out, data)


def pair(words: Sequence[str], suffixes: tuple[str, ...], made: str) -> list[Job]:
    """Return a Job for each input that `words` name; the last word is the output.

    An output that ends in a slash is a folder.
    suffixes: endings of the files that are taken from folders; made: the suffix of outputs in a
    folder. Raises ValueError where no output is named, and for two inputs with the same output.
    """
    if len(words) < 2:
        raise ValueError("an input and an output are needed, in this order")
    *named, out = map(Path, words)
    sources = expand(named, suffixes)
    ends_in_slash = words[-1].endswith("/")
    if len(named) == 1 and not named[0].is_dir() and not out.is_dir() and not ends_in_slash:
        return [Job(sources[0], out)]
    if out == STANDARD or STANDARD in sources:
        raise ValueError("-: only one input can be coded from standard input or to standard output")
    if out.is_file() or (out.suffix and not out.is_dir() and not ends_in_slash):
        kind = "is a file" if out.exists() else "is the name of a file"
        reason = "a / at the end means" if ends_in_slash else "several outputs need"
        raise ValueError(f"{out}: {kind}, but {reason} a folder")
    jobs: dict[Path, Job] = {}
    for source in sources:
        job = Job(source, out / f"{source.stem}{made}", in_folder=True)
        if job.out in jobs:
            raise ValueError(f"{source}: has the same output as {jobs[job.out].source}, {job.out}")
        jobs[job.out] = job
    return list(jobs.values())


def expand(named: Iterable[Path], suffixes: tuple[str, ...]) -> list[Path]:
    """Return the named files; a folder stands for the files in it, in natural order.

    Raises ValueError for a folder without any, and for standard input named twice.
    """
    found = []
    for path in named:
        if not path.is_dir():
            found.append(path)
            continue
        if not (inside := visible_files(path, suffixes)):
            raise ValueError(f"{path}: no files ending in {', '.join(suffixes)} here")
        found += inside
    if found.count(STANDARD) > 1:
        raise ValueError("-: standard input can be read only once")
    return found


def protect(outputs: Iterable[Path], inputs: Iterable[Path], force: bool = False) -> None:
    """Raise ValueError for an output that would overwrite an input, or a file made by others."""
    inputs = [path for path in inputs if path != STANDARD and path.exists()]
    for out in outputs:
        if out == STANDARD or not out.exists():
            continue
        if any(out.samefile(path) for path in inputs):
            raise ValueError(f"{out}: is an input of this command, and is not overwritten")
        if out.is_dir():
            raise ValueError(f"{out}: cannot be written (Is a directory)")
        if out.is_file() and not force and not made_here(out):
            raise ValueError(
                f"{out}: exists, and does not say that roilib made it; --force overwrites it"
            )


def check_picture_name(path: Path) -> None:
    """Raise ValueError for a name whose suffix is none of PICTURES."""
    if path != STANDARD and path.suffix.lower() not in PICTURES:
        raise ValueError(f"{path}: a picture's name ends in {', '.join(PICTURES)}")


def made_here(path: Path) -> bool:
    """Return whether this package made a file, judged by its content."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            rest = file.read() if path.suffix.lower() in (".ipynb", ".pdf") else b""
    except OSError:
        return False
    if head.startswith(PNG_START):
        return PNG_MARK in head
    if path.suffix.lower() == ".ipynb":
        return b'"papermill"' in head + rest
    if head.startswith(b"%PDF"):
        return b"Typst" in head + rest
    return head.startswith(MAGIC)


def name_of(path: Path) -> str:
    """Return what messages call an input."""
    return "standard input" if path == STANDARD else str(path)


def opened(path: Path) -> AbstractContextManager[BinaryIO]:
    """Open an input; standard input stays open. Raises ValueError where that is closed."""
    if path != STANDARD:
        return path.open("rb")
    if sys.stdin is None:
        raise ValueError("standard input: is closed")
    return nullcontext(sys.stdin.buffer)


def read_stream(path: Path) -> tuple[bytes, Header]:
    """Read a stream and its header. Raises ValueError naming the file.

    Only a part is read of a file that is no stream or longer than any stream.
    """
    try:
        with opened(path) as file:
            start = file.read(len(MAGIC))
            data = start + (file.read(MAX_BYTES) if start == MAGIC else b"")
    except OSError as error:
        raise ValueError(f"{name_of(path)}: {error.strerror}") from None
    try:
        return data, Header.unpack(data)[0]
    except ValueError as error:
        raise ValueError(f"{name_of(path)}: {error}") from None


def describe(header: Header, data: bytes) -> dict:
    """Return the fields of a stream's header, with its size in bytes and bpp."""
    bpp = 8 * len(data) / (header.height * header.width)
    return header.describe() | {"bytes": len(data), "bpp": round(bpp, 5)}


def summary_line(records: Sequence[dict]) -> str:
    """Sum up coded files in one line; records: those of `describe`, with source and out."""
    total, boxes = sum(r["bytes"] for r in records), sum(len(r["boxes"]) for r in records)
    pixels = sum(r["height"] * r["width"] for r in records)
    size = f"{total:,} bytes, {8 * total / pixels:.3f} bpp, {boxes} box{'' if boxes == 1 else 'es'}"
    if len(records) == 1:
        out = Path(records[0]["out"])
        return f"{out}: {'decoded from ' * (out.suffix.lower() in PICTURES)}{size}"
    seconds = sum(r["seconds"] for r in records)
    each = f"{seconds:.1f} s, {seconds / len(records):.2f} s each"
    return f"{Path(records[0]['out']).parent}: {len(records)} pictures, {size}, {each}"


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """`replacing`, whose failure is a ValueError that names `path`."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror or error})") from None


@contextmanager
def writing_standard_output() -> Iterator[TextIO]:
    """Yield standard output. A failure is a ValueError, unless its reader has seen enough."""
    if sys.stdout is None:
        raise ValueError("standard output: is closed")
    try:
        yield sys.stdout
    except BrokenPipeError:
        raise
    except OSError as error:
        silence_stdout()
        raise ValueError(f"standard output: cannot be written ({error.strerror})") from None


def silence_stdout() -> None:
    """Discard what Python still has to write at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, or standard output. Raises ValueError naming what cannot be written."""
    if path == STANDARD:
        with writing_standard_output() as out:
            out.buffer.write(data)
            out.buffer.flush()
        return
    with writing(path) as temporary:
        temporary.write_bytes(data)
