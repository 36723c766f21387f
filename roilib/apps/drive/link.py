"""A simulated thin link: when bytes arrive, how large a frame may be, which packets are lost.

    bandwidth ──► Link ──► Bucket ──► budget of a frame ──► Delivery: queue, transmission, late
    seed ───────► Loss ──► whether all packets of a frame arrive

Bytes leave in order, at the link's rate; those that wait are in the bucket. Times are in seconds
from the first frame. Sizes are in bytes of payload. Neither the headers of lower protocols nor
propagation delay are counted.
"""

import itertools
import math
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roilib.utils.files import read_text

BYTES_PER_MBIT = 125_000
MOST_MBIT = 100_000
MOST_PLAUSIBLE_MBIT = 1000  # of a trace that does not name its units
TIMES = {"time_s": 1.0, "time_ms": 1e-3}  # columns that a header may name, in seconds
RATES = {"mbit_s": 1.0, "kbit_s": 1e-3, "bit_s": 1e-6}  # in Mbit/s
LOG_COLUMNS = 6  # timestamp, ms, latitude, longitude, bytes and ms since the line before
MAHIMAHI_BYTES = 1500  # that get through at each of its milliseconds (mm-link's manual)
MAHIMAHI_BIN_MS = 500  # over which its bandwidth is averaged, as mm-throughput-graph does
MAHIMAHI_REPEATED_MS = 3_600_000  # mm-link repeats a trace for ever
MOST_MILLISECONDS = 1_000_000_000  # 11 days
PACKET = 1200  # bytes of payload; with headers below the usual 1,500, as in video conferences
ROUNDING = 1e-6  # bytes or milliseconds by which floating point may be off


@dataclass(frozen=True)
class Link:
    """Bandwidth over time: `rates[i]` bytes a second from `times[i]` seconds on.

    The last rate holds for ever. Made by `constant` or `read_trace`.
    """

    times: np.ndarray
    rates: np.ndarray

    def rate(self, time: float) -> float:
        """Return the bytes a second at `time`."""
        return float(self.rates[np.searchsorted(self.times, time, "right") - 1])

    def through(self, start: float, end: float) -> float:
        """Return the bytes that arrive from `start` to `end`: the rate's integral."""
        edges = np.concatenate(
            [[start], self.times[(self.times > start) & (self.times < end)], [end]]
        )
        return sum(self.rate(a) * (b - a) for a, b in itertools.pairwise(edges))

    def finish(self, start: float, size: float) -> float:
        """Return when the last of `size` bytes has arrived, sent from `start` on."""
        for edge in self.times[self.times > start]:
            step = self.rate(start) * (edge - start)
            if step >= size:
                break
            start, size = float(edge), size - step
        return start + size / self.rate(start) if size else start


def constant(mbit: float) -> Link:
    """Make a link of constant `mbit` Mbit/s. Raises ValueError for an impossible bandwidth."""
    if not 0 < mbit <= MOST_MBIT:
        raise ValueError(
            f"a bandwidth is a number of Mbit/s above 0 and at most {MOST_MBIT}, not {mbit}"
        )
    return Link(np.array([0.0]), np.array([mbit * BYTES_PER_MBIT]))


def read_trace(path: str | Path) -> Link:
    """Read a link from a text file of one of these formats; the last bandwidth holds for ever.

        CSV        the header time_s,mbit_s, then the bandwidth from each time on, from time 0 on;
                   the header may also name time_ms, and kbit_s or bit_s
        columns    the same without a header, like Pensieve's: seconds, Mbit/s; from any time on
        logs       six columns, of which bytes and milliseconds are last: Riiser et al.'s HSDPA logs
                   (MMSys 2013), and 4G/LTE logs of Ghent
        Mahimahi   one millisecond per line, at which 1500 bytes arrive; repeats for an hour

    Raises ValueError naming the line.
    """
    lines = enumerate(read_text(Path(path)).splitlines(), 1)
    rows = [
        (f"line {n}", re.split(r"\s*,\s*|\s+", line.strip())) for n, line in lines if line.split()
    ]
    try:
        if not rows:
            raise ValueError("an empty trace")
        if all(len(row) == 1 and row[0].isdecimal() for _, row in rows):
            return _mahimahi([int(row[0]) for _, row in rows])
        columns = [cell.strip('"') for cell in rows[0][1]]
        has_header = len(columns) == 2 and columns[0] in TIMES and columns[1] in RATES
        units = (TIMES[columns[0]], RATES[columns[1]]) if has_header else (1.0, 1.0)
        points = [_point(*row, units) for row in rows[has_header:]]
        return _steps(points, has_header)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _point(place: str, row: list[str], units: tuple[float, float]) -> tuple[float, float]:
    """Seconds and Mbit/s of a line."""
    shown = reprlib.repr(",".join(row))
    try:
        values = [float(cell) for cell in row]
        if len(values) == LOG_COLUMNS:
            _, end, _, _, received, elapsed = values
            values = [(end - elapsed) / 1000, 8 * received / elapsed / 1000]
        time, rate = (value * unit for value, unit in zip(values, units, strict=True))
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"{place}: two numbers, time_s,mbit_s, or one whole number of milliseconds a line, as "
            f"Mahimahi's, not {shown}"
        ) from None
    if not (math.isfinite(time) and 0 <= rate <= MOST_MBIT):
        raise ValueError(
            f"{place}: a finite time and a bandwidth from 0 to {MOST_MBIT}, not {shown}"
        )
    return time, rate


def _steps(points: list[tuple[float, float]], has_header: bool) -> Link:
    """Make a link of times and bandwidths; without a header, check units and shift times."""
    times, rates = np.array(points).reshape(-1, 2).T
    if has_header and (not len(times) or times[0] != 0):
        raise ValueError("a trace starts at time 0")
    if not has_header and np.median(rates) > MOST_PLAUSIBLE_MBIT:
        raise ValueError(
            f"bandwidths of {np.median(rates):g} Mbit/s look like other units; a header, such as "
            "time_s,kbit_s or time_s,mbit_s, names them"
        )
    if (np.diff(times) <= 0).any():
        raise ValueError(f"times must rise, but {times[1:][np.diff(times) <= 0][0]:g} does not")
    if rates[-1] == 0:
        raise ValueError("the last bandwidth holds for ever and must be above 0")
    return Link(times - times[0], rates * BYTES_PER_MBIT)


def _mahimahi(milliseconds: list[int]) -> Link:
    """Make a link of mean bandwidths over about MAHIMAHI_BIN_MS each, repeated."""
    end = max(milliseconds)
    if not 0 < end <= MOST_MILLISECONDS or milliseconds != sorted(milliseconds):
        raise ValueError(
            "whole numbers are Mahimahi's milliseconds, which rise from line to line, to between 1 "
            f"and {MOST_MILLISECONDS} at the end"
        )
    count = max(round(end / MAHIMAHI_BIN_MS), 1)
    edges = np.linspace(0, end, count + 1)
    packets_in, _ = np.histogram(milliseconds, edges)
    repeats = math.ceil(MAHIMAHI_REPEATED_MS / end) if count > 1 else 1
    times = (end * np.arange(repeats)[:, None] + edges[:-1]).ravel() / 1000
    rates = MAHIMAHI_BYTES * packets_in / (edges[1] / 1000)
    return Link(times, np.tile(rates, repeats))


@dataclass(frozen=True)
class Delivery:
    """How long a frame took.

    queue_ms: waiting for earlier frames. transmission_ms: being sent. delay_ms: both together.
    late: the delay exceeds the latency.
    """

    queue_ms: float
    transmission_ms: float
    delay_ms: float
    late: bool


class Bucket:
    """The queue before a link: bytes that were sent and have not arrived.

    Its limit is what the link carries in `latency_ms` at the present rate, since a sender does not
    know the future. On a constant link nothing that fits is late. An encoder that sizes each frame
    exactly gets one frame interval's share of the link, or the space left if that is less, so that
    no queue builds up.
    """

    def __init__(self, link: Link, fps: float, latency_ms: float):
        if not (0.01 <= fps <= 1000 and math.isfinite(latency_ms) and latency_ms > 0):
            raise ValueError(
                "frames a second are 0.01 to 1000 and the latency in ms a number above 0, "
                f"not {fps} and {latency_ms}"
            )
        self.link, self.fps, self.latency_ms = link, fps, latency_ms
        self.free = 0.0  # when all that was sent has arrived

    def queued(self, time: float) -> float:
        """Return the bytes that still wait at `time`."""
        return self.link.through(time, self.free) if self.free > time else 0.0

    def space(self, time: float) -> int:
        """Return the bytes that still fit at `time`; negative after the rate has fallen."""
        return math.floor(
            self.link.rate(time) * self.latency_ms / 1000 - self.queued(time) + ROUNDING
        )

    def share(self, time: float) -> int:
        """Return the budget of a frame taken at `time` by a sender that sizes it exactly."""
        return min(self.space(time), math.floor(self.link.rate(time) / self.fps + ROUNDING))

    def send(self, time: float, size: int) -> Delivery:
        """Queue a frame of `size` bytes, taken at `time`. Frames come in order of time."""
        begin = max(time, self.free)
        self.free = self.link.finish(begin, size)
        queue, transmission = 1000 * (begin - time), 1000 * (self.free - begin)
        delay = queue + transmission
        return Delivery(queue, transmission, delay, delay > self.latency_ms + ROUNDING)


class Loss:
    """The packets that a link loses, each with `probability`.

    Losses are independent, or come in bursts of `burst` packets on average (Gilbert's model). What
    is drawn depends on seed, frame and packet number alone: without `burst`, senders whose frames
    have as many packets lose the same ones.
    """

    def __init__(self, probability: float, burst: float | None = None, seed: int = 0):
        if not 0 <= probability < 1:
            raise ValueError(
                f"a packet's probability of being lost is from 0 to below 1, not {probability}"
            )
        if burst is not None and not (math.isfinite(burst) and burst >= 1 / (1 - probability)):
            raise ValueError(
                f"packets are lost in bursts of {1 / (1 - probability):g} (independently) or more "
                f"on average, not {burst}"
            )
        if seed < 0:
            raise ValueError(f"a seed is 0 or more, not {seed}")
        self.probability, self.seed, self.losing = probability, seed, False
        self.stay = 1 - 1 / burst if burst else probability
        self.begin = probability * (1 - self.stay) / (1 - probability)

    def arrives(self, frame: int, size: int) -> bool:
        """Return whether all packets of a frame of `size` bytes arrive; frames come in order."""
        whole = True
        for draw in np.random.default_rng([self.seed, frame]).random(packets(size)):
            self.losing = bool(draw < (self.stay if self.losing else self.begin))
            whole &= not self.losing
        return whole


def packets(size: int) -> int:
    """Return the number of packets of a frame of `size` bytes."""
    return -(-size // PACKET)
