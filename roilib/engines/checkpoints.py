"""What a training can go on from: checkpoints that are whole or not there, and ends that do not come at a bad moment.

checkpoints/step-00001234.pt   the newest two
            epoch-0050.pt      milestones, kept
            *.pt.damaged       files that could not be read, set aside
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

KEPT = 2


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` with torch.save through a temporary name, flushed to the disk before it takes the old one's place.

    Raises ValueError with one line when it cannot be written, for example to a full disk; what was there stays.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch.save makes RuntimeErrors of some failed writes
        reason = (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: cannot be written ({reason}); make room, then the same command goes on from the checkpoint before it"
        ) from None


def load_checkpoint(path: Path) -> dict:
    """A checkpoint's content. Raises ValueError naming the file when a byte of it is wrong: torch.load itself checks no checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is corrupt")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # whatever a damaged file makes zipfile or unpickling raise
        raise ValueError(
            f"{path}: a damaged checkpoint ({str(error).partition(chr(10))[0]})"
        ) from None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While it lasts no other process gets past it for the same folder of checkpoints. Raises ValueError when one is there."""
    path = folder.parent / "lock"
    with path.open("w") as file:
        try:
            fcntl.lockf(
                file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # not flock, which loader processes would keep that outlive a killed training
        except (BlockingIOError, PermissionError):
            raise ValueError(f"{folder.parent}: another process is training this run") from None
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
        """Save the state after `step` steps and drop all but the newest two."""
        save_checkpoint(self.folder / f"step-{step:08d}.pt", state)
        for old in [
            *self.recent()[KEPT:],
            *self.folder.glob("*.tmp"),
        ]:  # a process killed while it wrote leaves its .tmp
            old.unlink()

    def save_milestone(self, state: dict[str, Any], epoch: int) -> None:
        """Save the state after `epoch` epochs, to be kept."""
        save_checkpoint(self.folder / f"epoch-{epoch:04d}.pt", state)

    def newest(self) -> dict[str, Any] | None:
        """The newest state that can be read, None without one. A damaged file is named and set aside."""
        for path in self.all():
            try:
                return load_checkpoint(path)
            except ValueError as error:
                aside = path.with_suffix(".pt.damaged")
                path.replace(aside)
                print(f"{error}; kept as {aside.name}, going on from the one before it")
        return None


class Interrupt:
    """Within `with Interrupt() as stop:` Ctrl-C and SIGTERM only set `stop.requested` (and call `then`); a second Ctrl-C acts as usual.

    Outside the main thread, where Python takes no signals, it changes nothing.
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
