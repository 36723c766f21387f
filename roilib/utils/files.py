"""Files: which are pictures; text and JSON read with errors that name the file, written whole."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".avif"),
    *(".bmp", ".tif", ".tiff", ".ppm", ".pgm"),
)


def picture_files(folder: Path, below: bool = False) -> list[Path]:
    """The pictures of a folder, or also `below` it, in natural order; hidden files are none."""
    return visible_files(folder, PICTURE_SUFFIXES, below)


def visible_files(folder: Path, suffixes: tuple[str, ...], below: bool = False) -> list[Path]:
    """The files of a folder with these endings in natural order, without hidden ones.

    macOS leaves a hidden `._name` beside each file that it copies to other disks.
    """
    folder = Path(folder)
    if folder.is_dir():
        os.scandir(folder).close()  # raises for a folder that cannot be read: glob finds nothing
    found = [
        path
        for path in (folder.rglob("*") if below else folder.glob("*"))
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.is_dir()
    ]
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def natural_key(name: str) -> tuple:
    """A key that sorts numbers within names by value: frame_2 before frame_10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def content_hash(path: str | Path) -> str:
    """The SHA-256 of a file's content, as hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary name beside `path`.

    When the block ends, the temporary file replaces `path`; when it fails, `path` stays as it was.
    Symlinks are kept; their target is replaced. A file that is replaced passes on its permissions.
    Raises OSError for a device or pipe.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # The name of `path` may itself be as long as the file system takes.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        if path.is_file() and temporary.is_file():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    finally:
        with suppress(OSError):  # a disk that became read-only
            temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Read UTF-8 text, with or without a byte order mark. Raises ValueError naming the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    if "\0" in text:  # UTF-16 without a byte order mark
        raise ValueError(f"{path}: not UTF-8 text")
    return text


def read_lines(path: Path) -> list[str]:
    """Read the lines of UTF-8 text, without blanks at their ends and without empty lines.

    Raises ValueError naming the file.
    """
    return [line for line in map(str.strip, read_text(path).splitlines()) if line]


def read_json(path: Path) -> Any:
    """Read JSON. Raises ValueError naming the file."""
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{path}: not JSON (nested too deep)") from None
    except ValueError as error:  # also for a number of more than 4300 digits
        raise ValueError(f"{path}: not JSON ({str(error).partition(';')[0]})") from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys, whole or not at all; infinity and NaN become null."""
    text = json.dumps(_finite(content), indent=1, sort_keys=True, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
