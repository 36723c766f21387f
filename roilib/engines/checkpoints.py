"""Checkpoints that are complete or absent, and graceful interruption.

checkpoints/step-00001234.pt   the newest two
            epoch-0050.pt      milestones, kept
            *.pt.damaged       unreadable files, set aside
"""

import fcntl
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from roilib.utils.files import replacing

KEPT = 2  # newest checkpoints


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` with torch.save to a temporary file, flush it to the disk, then replace `path`.

    Raises ValueError when it cannot be written, for example to a full disk; `path` stays as it was.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch.save makes RuntimeErrors of some failed writes
        reason = (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: cannot be written ({reason}); make room, then the same command goes on from "
            "the checkpoint before it"
        ) from None


def load_checkpoint(path: Path) -> dict:
    """A checkpoint's content. Raises ValueError naming the file when a byte of it is wrong.

    The archive's checksums are tested first, because torch.load ignores them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is corrupt")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # whatever a damaged file makes zipfile or unpickling raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: a damaged checkpoint ({reason})") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder. Raises ValueError when another process has locked it."""
    path = folder / "lock"
    with path.open("w") as file:
        try:
            # Not flock: loader processes that outlive a killed training would keep such a lock.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"{folder}: another process is training this run") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path):
        self.folder = folder

    def recent(self) -> list[Path]:
        """The step-*.pt files, newest first."""
        return sorted(self.folder.glob("step-*.pt"), reverse=True)

    def all(self) -> list[Path]:
        """Every checkpoint, in the order in which to try them."""
        return [*self.recent(), *sorted(self.folder.glob("epoch-*.pt"), reverse=True)]

    def save(self, state: dict[str, Any], step: int) -> None:
        """Save the state after `step` steps; delete all but the newest two."""
        save_checkpoint(self.folder / f"step-{step:08d}.pt", state)
        # A process that was killed while writing leaves its .tmp.
        for old in [*self.recent()[KEPT:], *self.folder.glob("*.tmp")]:
            old.unlink()

    def save_milestone(self, state: dict[str, Any], epoch: int) -> None:
        """Save the state after `epoch` epochs, and keep it."""
        save_checkpoint(self.folder / f"epoch-{epoch:04d}.pt", state)

    def newest(self) -> dict[str, Any] | None:
        """The newest readable state, or None. Damaged files are named and set aside."""
        for path in self.all():
            try:
                return load_checkpoint(path)
            except ValueError as error:
                aside = path.with_suffix(".pt.damaged")
                path.replace(aside)
                print(f"{error}; kept as {aside.name}, going on from the one before it")
        return None


class Interrupt:
    """Within `with Interrupt() as stop:` Ctrl-C and SIGTERM set `stop.requested` and call `then`.

    A second Ctrl-C acts as usual. Outside the main thread, where Python handles no signals, nothing
    changes.
    """

    def __init__(self, then: Callable[[], None] = lambda: None):
        self.requested, self.then = False, then
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._request)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _request(self, *_) -> None:
        if not self.requested:
            self.requested = True
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
            self.then()
