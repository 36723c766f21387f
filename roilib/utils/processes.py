"""Processes that share the work: how many there may be, and how they start and end."""

import functools
import multiprocessing
import os
import signal
import threading


def cores() -> int:
    """Processors that this process may use: containers, SLURM and taskset allow only some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no such limits


def end_with_parent() -> None:
    """End this process, which multiprocessing started, when its parent is killed."""
    threading.Thread(target=_wait, args=(multiprocessing.parent_process(),), daemon=True).start()


def _wait(parent) -> None:
    parent.join()
    os._exit(1)


def leave_signals_to_parent(_: int) -> None:
    """For data loader processes: the parent handles Ctrl-C, SIGTERM ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@functools.cache
def use_one_thread_after_fork() -> None:
    """Make processes that are forked from now on compute with one thread.

    OpenMP's threads do not survive a fork: a child that multiplies with as many as its parent
    waits for them forever (github.com/pytorch/pytorch/issues/17199).
    """
    import torch

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
