"""The settings of a drive: its links, codecs and losses."""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from cyclopts import Parameter

Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], Parameter(consume_multiple=True)]
CODECS = ("x265 medium intra", "x264 medium intra", "x265 veryfast live", "x264 veryfast live")
CODECS_AT_420 = tuple(f"{name} 4:2:0" for name in CODECS)  # for weights tuned for YUV


@Parameter(name="*")
@dataclass(frozen=True)
class Plan:
    """The settings of a drive, which are also options of `roilib drive`.

    Args:
        mbit: bandwidths in Mbit/s; each is a link of its own; default 1
        trace: file of a bandwidth that changes, instead of --mbit: CSV with the header
            time_s,mbit_s (or time_ms, kbit_s, bit_s), columns of seconds and Mbit/s, Mahimahi's
            milliseconds, or HSDPA and 4G logs
        fps: frames a second; default 10
        latency_ms: longest delay of a frame on the link in ms, which limits the queue; default 200
        alpha: our ROI strength: 0.5 treats all pixels alike, 1 gives all quality to the boxes;
            default 0.9
        qoffset: ROI strength of conventional codecs: quantiser offset from -1, the whole range,
            to 0, none; default -0.2. Intra codecs halve it, then drop it, where a frame does not
            fit
        keyint: frames from keyframe to keyframe of a live encoder; default 20
        loss: probability that a packet is lost, except those of the first frame that is sent; 0
            simulates no losses; default 0.01
        burst: mean number of packets lost in a row; default: losses are independent
        seeds: random seeds of the losses; each has a receiver of its own; default 0 1 2
        tune: which pretrained weights, as for `roilib encode`; default rgb
        weights: a trained model's weights.safetensors; default: the pretrained ones of --tune
        codecs: conventional codecs, such as 'x265 medium intra' or 'x265 veryfast live 4:2:0';
            default: x264 and x265, medium intra and veryfast live; at 4:2:0 for weights tuned for
            YUV
    """

    mbit: Many[float] = (1.0,)
    trace: str | None = None
    fps: float = 10.0
    latency_ms: float = 200.0
    alpha: float = 0.9
    qoffset: float = -0.2
    keyint: int = 20
    loss: float = 0.01
    burst: float | None = None
    seeds: Many[int] = (0, 1, 2)
    tune: Literal["rgb", "yuv"] = "rgb"
    weights: str | None = None
    codecs: Many[str] | None = None
