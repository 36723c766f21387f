"""Processes that share the work: how many there may be, and that none outlives the one that started them."""

import multiprocessing
import os
import signal
import threading


def cores() -> int:
    """Processors that this process may use, which in a container, under SLURM or taskset are not all of the machine's."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )  # macOS has no such limits


def end_with_parent() -> None:
    """To be called in a process that multiprocessing started: it ends when the one that started it is killed, which tells a pool nothing."""
    threading.Thread(target=_wait, args=(multiprocessing.parent_process(),), daemon=True).start()


def _wait(parent) -> None:
    parent.join()
    os._exit(1)


def leave_signals_to_parent(_: int) -> None:
    """For data loader processes: Ctrl-C is the parent's to handle, SIGTERM ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
