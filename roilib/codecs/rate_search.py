"""The highest quality whose stream fits a byte cap."""

import math
from collections.abc import Callable

from roilib.roi import Q_MAX, STEPS_PER_OCTAVE

ACCEPTED_SLACK_OCTAVES = 0.015  # of the cap; a stream this much smaller than it is good enough


def highest_within(
    size: Callable[[int], float],
    limit: float,
    start: int,
    top: int = Q_MAX,
    slope: float = 0.5 / STEPS_PER_OCTAVE,
) -> int:
    """The highest quality index, 0 … top, whose `size` (bytes, rising with it) is at most `limit`, or one within 1 % of it; 0 if none is.

    Looks where a line through the logarithms of the sizes seen so far says, beginning at `start`, and never outside what they leave possible.
    slope: octaves of size that an index is guessed to add.
    """
    low, high, index = -1, top + 1, start
    seen: dict[int, float] = {}
    while high - low > 1:
        seen[index] = math.log2(limit / size(index))  # octaves to go
        if 0 <= seen[index] < ACCEPTED_SLACK_OCTAVES:
            return index
        low, high = (index, high) if seen[index] >= 0 else (low, index)
        if low in seen and high in seen:
            slope = max((seen[low] - seen[high]) / (high - low), 1e-4)
        index = min(
            max(index + math.floor((seen[index] - ACCEPTED_SLACK_OCTAVES / 2) / slope), low + 1),
            high - 1,
        )
    return max(low, 0)
