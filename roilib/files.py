"""Files that appear whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
