"""Devices, precision and processes: one CPU, one GPU, several GPUs of a machine, several machines.

    one device                    engine.train in this process
    several, nothing started yet  launch ──► torchrun ──► python -m roilib.engines.train, one process a device
    started by torchrun           each process takes its place (RANK, WORLD_SIZE, … are torchrun's)

With N devices, picture i of a step's global batch is coded by process i mod N, so `batch_size` counts the pictures of all processes.
"""

import os
import subprocess
import sys

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from roilib.engines.checkpoints import Interrupt
from roilib.parameters import Parameters
from roilib.utils.device import resolve_device, resolve_precision


def started_by_torchrun() -> bool:
    """Whether this process is one of a group that torchrun started."""
    return torch.distributed.is_torchelastic_launched()


def rank() -> int:
    """This process's number in its group; 0 alone. Only number 0 writes files."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def process_count(p: Parameters) -> int:
    """Processes that a run takes on this machine: `devices`, else one for every GPU. Raises ValueError for more GPUs than there are."""
    device = resolve_device(p.device)
    if device.type != "cuda":
        return p.devices or 1
    there = 1 if device.index is not None else torch.cuda.device_count()
    if (p.devices or 1) > there:
        raise ValueError(
            f"devices={p.devices}, but device={p.device} is {there} GPU{'s' * (there > 1)}"
        )
    return p.devices or there


def make_fabric(p: Parameters) -> Fabric:
    """Fabric on one device of the asked kind and precision, or in this process's place among those that torchrun started."""
    device = resolve_device(p.device)
    settings = {"accelerator": device.type, "precision": resolve_precision(p.precision, device)}
    if started_by_torchrun():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        settings |= {
            "devices": local,
            "num_nodes": world // local,
            "strategy": DDPStrategy(broadcast_buffers=False),
        }
    else:
        settings["devices"] = [device.index or 0] if device.type == "cuda" else 1
    fabric = Fabric(**settings)
    fabric.strategy.precision.convert_input = lambda data: (
        data
    )  # pictures and quality indices stay exact; autocast casts where it pays
    fabric.launch()
    return fabric


def agree(fabric: Fabric, flag: bool) -> bool:
    """Whether `flag` is set in any process, so that all of them do the same."""
    if fabric.world_size == 1:
        return flag
    return bool(fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum"))


def launch(p: Parameters, processes: int) -> None:
    """Run `python -m roilib.engines.train` with these parameters on so many processes under torchrun, and print what they say.

    Ctrl-C and SIGTERM reach all of them, so that they stop together with their state saved: KeyboardInterrupt. ValueError when one of them failed.
    """
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "roilib.engines.train",
        *p.arguments(),
    ]
    pipe = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "start_new_session": True,
    }
    with subprocess.Popen(command, **pipe) as group, Interrupt(group.terminate) as stop:
        for line in group.stdout:
            print(line, end="", flush=True)
    if stop.requested:
        raise KeyboardInterrupt(f"{p.folder}: stopped; see the lines above")
    if group.returncode:
        raise ValueError(
            f"{p.folder}: one of its {processes} processes failed; see the lines above"
        )
