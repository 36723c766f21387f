"""Devices and processes: one CPU, one GPU, several GPUs of a machine, several machines.

    one device                    the training runs in this process
    several, nothing started yet  launch ──► torchrun ──► python -m roilib train, once per device
    started by torchrun           each process takes its place (RANK, WORLD_SIZE, … are torchrun's)

With N devices, process i mod N codes picture i of a step's global batch: `batch_size` counts the
pictures of all processes.
"""

import os
import subprocess
import sys

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor

from roilib.engines.checkpoints import Interrupt
from roilib.engines.meters import term_share
from roilib.parameters import Parameters
from roilib.utils.device import resolve_device, resolve_precision

ENTRY = ("-m", "roilib", "train")  # what each process runs


class ExactInputs(MixedPrecision):
    """Mixed precision that leaves a model's inputs as they are.

    Fabric would round pictures and quality indices to bf16; autocast casts where it pays.
    """

    def convert_input(self, data):
        """`data`, unchanged."""
        return data


def started_by_torchrun() -> bool:
    """Whether torchrun started this process, as one of a group."""
    return torch.distributed.is_torchelastic_launched()


def rank() -> int:
    """This process's number in its group, 0 without one. Only process 0 writes files."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def process_count(p: Parameters) -> int:
    """Processes of a run on this machine: `devices`, else one for every GPU.

    Raises ValueError for more GPUs than there are.
    """
    device = resolve_device(p.device)
    if device.type != "cuda":
        return p.devices or 1
    available = 1 if device.index is not None else torch.cuda.device_count()
    if (p.devices or 1) > available:
        plural = "s" * (available > 1)
        raise ValueError(f"devices={p.devices}, but device={p.device} is {available} GPU{plural}")
    return p.devices or available


def make_fabric(p: Parameters) -> Fabric:
    """Fabric on one device, or in this process's place in the group that torchrun started."""
    device = resolve_device(p.device)
    precision = resolve_precision(p.precision, device)
    settings = {"accelerator": device.type}
    if precision.endswith("-mixed"):
        settings["plugins"] = ExactInputs(precision, device.type)
    if started_by_torchrun():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        settings |= {"devices": local, "num_nodes": world // local}
        settings["strategy"] = DDPStrategy(broadcast_buffers=False)
    else:
        settings["devices"] = [device.index or 0] if device.type == "cuda" else 1
    fabric = Fabric(**settings)
    fabric.launch()
    return fabric


def any_process(fabric: Fabric, flag: bool) -> bool:
    """Whether `flag` is set in any process, so that all of them do the same."""
    if fabric.world_size == 1:
        return flag
    return bool(fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum"))


def over_processes(
    fabric: Fabric, terms: dict[str, Tensor], pictures: int, roi_mask: Tensor | None
) -> tuple[dict[str, float], int, float | None]:
    """Loss terms, pictures and ROI share of a global batch, from each process's part of it.

    terms: means over this process's `pictures`. Returns the terms as numbers, the number of
    pictures, and the mean of the mask (None without one).
    """
    has_roi = roi_mask is not None
    share = roi_mask.mean() if has_roi else torch.zeros((), device=fabric.device)
    values = torch.stack([v.detach().double() for v in (*terms.values(), share)])
    *values, roi_share = values.tolist()
    if fabric.world_size > 1:
        weights = [pictures * term_share(name, roi_share if has_roi else None) for name in terms]
        sums = [v * w for v, w in zip(values, weights, strict=True)]
        local = [pictures, pictures * roi_share, *weights, *sums]
        local = torch.tensor(local, dtype=torch.float64, device=fabric.device)
        pictures, roi_sum, *rest = fabric.all_reduce(local, reduce_op="sum").tolist()
        pictures, roi_share = round(pictures), roi_sum / pictures
        weights, sums = rest[: len(terms)], rest[len(terms) :]
        values = [s / w if w else 0.0 for w, s in zip(weights, sums, strict=True)]
    return dict(zip(terms, values, strict=True)), pictures, roi_share if has_roi else None


def launch(p: Parameters, processes: int) -> None:
    """Train or test with torchrun in so many processes, and print what they print.

    Ctrl-C and SIGTERM stop all of them, with their state saved. Raises KeyboardInterrupt then, and
    ValueError when a process failed.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc-per-node={processes}", *ENTRY, *p.arguments()]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with (
        subprocess.Popen(command, start_new_session=True, **pipe) as group,
        Interrupt(group.terminate) as stop,
    ):
        for line in group.stdout:
            print(line, end="", flush=True)
    if stop.requested:
        raise KeyboardInterrupt(f"{p.folder}: stopped; see the lines above")
    if group.returncode:
        raise ValueError(
            f"{p.folder}: one of its {processes} processes failed; see the lines above"
        )
