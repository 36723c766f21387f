"""Devices, their precision and their memory."""

import resource

import torch


def resolve_device(device: str) -> torch.device:
    """The device of a name; `auto` is cuda where there is one, else cpu.

    Raises ValueError for a device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(
            f"device {device} cannot be used: {reason} "
            "(device=cpu always can, auto takes what is there)"
        ) from None
    return chosen


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that this machine or its GPU has not enough memory."""
    if isinstance(error, RuntimeError) and "allocate memory" in str(error):
        return True  # torch's CPU allocator has no exception class of its own
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Fabric's name of a precision; `auto` is bf16 where the hardware multiplies it, else fp32.

    Raises ValueError for another name, and for 16 without CUDA.
    """
    names = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    if precision not in ("auto", *names):
        raise ValueError(f"precision is one of auto, {', '.join(names)}, not {precision!r}")
    if precision == "16" and device.type != "cuda":
        raise ValueError(
            f"precision=16 needs a GPU, this is device={device.type} (bf16, 32 and auto run there)"
        )
    if precision == "auto":
        if device.type == "cuda":
            is_native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            is_native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        precision = "bf16" if is_native else "32"
    return names[precision]


def peak_memory_mb() -> dict[str, float]:
    """Peak resident memory of this process, and of the GPU where there is one, in MB."""
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(value, 1) for name, value in peak.items()}
