"""Devices, precision and processes: one CPU, one GPU, several GPUs of a machine, several machines.

    one device                    engine.train in this process
    several, nothing started yet  launch ──► torchrun ──► python -m roilib.train, one process a device
    started by torchrun           each process takes its place (RANK, WORLD_SIZE, … are torchrun's)

With N devices, picture i of a step's global batch is coded by process i mod N, so `batch_size` counts the pictures of all processes.
"""

import os
import subprocess
import sys

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from roilib.checkpoints import Interrupt
from roilib.parameters import Parameters


def resolve_device(device: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu. Raises ValueError for a device that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {device} cannot be used: {str(error).splitlines()[0][:200]} (device=cpu always can, auto takes what is there)"
        ) from None
    return chosen


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, of this machine or of its GPU."""
    said = isinstance(error, RuntimeError) and "allocate memory" in str(error)  # torch's CPU allocator has no class of its own
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Fabric's name of a precision; `auto` is bf16 mixed where the hardware multiplies bf16, else fp32. Raises ValueError for 16 without CUDA."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if precision == "16" and device.type != "cuda":
        raise ValueError(f"precision=16 needs a GPU, this is device={device.type} (bf16, 32 and auto run there)")
    if precision == "auto":
        precision = "bf16" if native else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]


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
        raise ValueError(f"devices={p.devices}, but device={p.device} is {there} GPU{'s' * (there > 1)}")
    return p.devices or there


def make_fabric(p: Parameters) -> Fabric:
    """Fabric on one device of the asked kind and precision, or in this process's place among those that torchrun started."""
    device = resolve_device(p.device)
    settings = {"accelerator": device.type, "precision": resolve_precision(p.precision, device)}
    if started_by_torchrun():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        settings |= {"devices": local, "num_nodes": world // local, "strategy": DDPStrategy(broadcast_buffers=False)}
    else:
        settings["devices"] = [device.index or 0] if device.type == "cuda" else 1
    fabric = Fabric(**settings)
    fabric.strategy.precision.convert_input = lambda data: data  # pictures and quality indices stay exact; autocast casts where it pays
    fabric.launch()
    return fabric


def agree(fabric: Fabric, flag: bool) -> bool:
    """Whether `flag` is set in any process, so that all of them do the same."""
    if fabric.world_size == 1:
        return flag
    return bool(fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum"))


def launch(p: Parameters, processes: int) -> None:
    """Run `python -m roilib.train` with these parameters on so many processes under torchrun, and print what they say.

    Ctrl-C and SIGTERM reach all of them, so that they stop together with their state saved: KeyboardInterrupt. ValueError when one of them failed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "roilib.train", *p.arguments()]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **pipe) as group, Interrupt(group.terminate) as stop:
        for line in group.stdout:
            print(line, end="", flush=True)
    if stop.requested:
        raise KeyboardInterrupt(f"{p.folder}: stopped; see the lines above")
    if group.returncode:
        raise ValueError(f"{p.folder}: one of its {processes} processes failed; see the lines above")
