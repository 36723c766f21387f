"""Find a quality whose stream nearly fills a byte budget, or the highest one that fits."""

import math
from collections.abc import Callable

from roilib.roi import Q_MAX, STEPS_PER_OCTAVE

ACCEPTED_SLACK_OCTAVES = 0.015  # a stream this much smaller than the budget is good enough
LEAST_SLOPE = 1e-4  # octaves a step; keeps the next guess finite where two sizes are equal


def highest_within(
    size: Callable[[int], float],
    limit: float,
    start: int,
    top: int = Q_MAX,
    slope: float = 0.5 / STEPS_PER_OCTAVE,
) -> int:
    """Find an index in 0 … top whose `size` is at most `limit` bytes; 0 if none fits.

    The first index that is seen to take about 99 % of the limit or more is returned, though a
    higher one may fit; where there is none, the highest that fits. `size` must rise with the
    index. The search follows a line through the logarithms of the sizes seen so far, beginning at
    `start`, and stays between the highest index that fits and the lowest that does not.
    slope: the octaves of size that one index is assumed to add before two sizes are known.
    """
    low, high, index = -1, top + 1, start
    room: dict[int, float] = {}  # octaves from an index's size to the limit
    while high - low > 1:
        room[index] = math.log2(limit / size(index))
        if 0 <= room[index] < ACCEPTED_SLACK_OCTAVES:
            return index
        low, high = (index, high) if room[index] >= 0 else (low, index)
        if low in room and high in room:
            slope = max((room[low] - room[high]) / (high - low), LEAST_SLOPE)
        steps = math.floor((room[index] - ACCEPTED_SLACK_OCTAVES / 2) / slope)
        index = min(max(index + steps, low + 1), high - 1)
    return max(low, 0)
