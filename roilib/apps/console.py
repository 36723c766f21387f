"""Output of commands: one line on stderr for a failure, results on stdout."""

import json as json_format
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from roilib.apps import files as io
from roilib.apps.files import Job

Item = TypeVar("Item")


def fail(command: str, why: object, code: int = 2) -> int:
    """Print in one line on stderr why a command failed, and return the exit code."""
    print(f"{command}:", *str(why).splitlines(), file=sys.stderr)  # a file's name may have several
    return code


def note(command: str, text: str) -> None:
    """Print on stderr what a user may not expect."""
    print(f"roilib {command}: {text}", file=sys.stderr)


def show(text: str) -> None:
    """Print to standard output. Raises ValueError when it cannot be written."""
    with io.writing_standard_output() as out:
        print(text, file=out, flush=True)


def each(command: str, jobs: Sequence[Job], work: Callable[[Job], dict], json: bool) -> int:
    """Do all jobs, print a summary or a JSON record of each, and return the exit code."""
    records = []
    for record in successes(command, progress(jobs), work):
        records.append(record)
        if json:
            show(json_format.dumps(record))
    if jobs[0].out != io.STANDARD and not json and records:
        show(io.summary_line(records))
    return exit_code(command, len(jobs), len(records))


def successes(command: str, items: Iterable[Item], work: Callable[[Item], dict]) -> Iterator[dict]:
    """Yield what `work` makes of each item; report an item that fails in one line, and go on."""
    for item in items:
        try:
            made = work(item)
        except ValueError as error:
            fail(f"roilib {command}", error)
            continue
        yield made


def exit_code(command: str, total: int, succeeded: int) -> int:
    """Say how many of several files failed, and return the exit code."""
    failed = total - succeeded
    if failed and total > 1:
        note(command, f"{failed} of {total} files failed")
    return 2 if failed else 0


def progress(jobs: Sequence[Job]) -> Iterator[Job]:
    """Iterate over jobs with a progress bar, where there are several and stderr is a terminal."""
    if len(jobs) == 1:
        return iter(jobs)
    from tqdm import tqdm

    return tqdm(jobs, unit="picture", disable=not sys.stderr.isatty())
