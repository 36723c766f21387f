"""Files that appear whole or not at all."""

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, whose file takes its place when the block ends; when that fails, nothing is left and `path` is as it was.

    A link stays one, and what it leads to is replaced. Raises what the block and the disk raise, and OSError for a device or pipe, which cannot be.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):  # of a read-only disk, from which nothing can be removed either
            temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """The file's text (UTF-8, byte order mark allowed). Raises ValueError naming the file when it is missing or not text."""
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


def read_json(path: Path) -> Any:
    """The file's JSON. Raises ValueError naming the file when it is missing or not JSON, or none that can be read."""
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{path}: not JSON (nested too deep)") from None
    except ValueError as error:  # of a number of more than 4300 digits too
        raise ValueError(f"{path}: not JSON ({str(error).partition(';')[0]})") from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys, so that no reader sees half a file. Infinity and NaN, which JSON lacks, become null."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(_finite(content), indent=1, sort_keys=True, allow_nan=False) + "\n"
        )


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
