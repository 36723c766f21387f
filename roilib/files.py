"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, whose file takes its place when the block ends; when that fails, nothing is left and `path` is as it was.

    Raises what the block and the disk raise.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):  # of a read-only disk, from which nothing can be removed either
            temporary.unlink(missing_ok=True)
