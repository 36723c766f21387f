"""roilib.utils.processes: processes that start and end as they should."""

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from roilib.utils.processes import cores

FORK = """
import multiprocessing
import torch
{call}
torch.set_num_threads(2)

def multiply(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(1, 16, 256, 256, generator=generator) for _ in range(2))
    return float(torch.nn.functional.conv2d(a, b[:, :, :5, :5]).sum()), torch.get_num_threads()

multiply(0)  # starts OpenMP's threads
with multiprocessing.get_context("fork").Pool(2) as pool:
    for total, threads in pool.map(multiply, range(4)):
        print(threads, round(total))
"""


def run(program: str) -> str:
    environment = {name: v for name, v in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no fork on this system")
def test_children_that_are_forked_after_threads_have_begun_compute():
    call = "from roilib.utils.processes import use_one_thread_after_fork as f; f(); f()"
    lines = run(FORK.format(call=call)).split("\n")[:4]
    assert [line.split()[0] for line in lines] == ["1"] * 4
    assert len({line.split()[1] for line in lines}) == 4


CODEC = """
import multiprocessing
import numpy as np
import torch
from conftest import untrained_codec

torch.set_num_threads(2)
codec = untrained_codec(which="roi_vbr", N=16, M=48)
pictures = [np.random.default_rng(i).integers(0, 255, (256, 320, 3), np.uint8) for i in range(3)]
here = [codec.encode(picture) for picture in pictures]
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(codec.encode, pictures) == here)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no fork on this system")
def test_forked_processes_encode_the_same_streams():
    assert run(CODEC).strip() == "True"


def test_the_cores_that_this_process_may_use():
    assert 1 <= cores() <= os.cpu_count()
    if hasattr(os, "sched_setaffinity"):
        program = (
            "import os; from roilib.utils.processes import cores; "
            "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(cores())"
        )
        assert run(program).strip() == "1"
