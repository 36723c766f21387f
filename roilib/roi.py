"""λ and α as a map of quality indices, in integers, so that every machine makes the same map from the same few numbers.

    boxes ──► importance of each pixel (0–255) ──► its mean over a latent cell ──┐
    λ, α  ──► table: importance → quality index ─────────────────────────────────┴──► quality index of the cell

A quality index q stands for lmbda = LMBDA_LEAST * 2^(q / 64), 0 ≤ q ≤ Q_MAX. A pixel of importance m in [0, 1] has
lmbda * 2 * (alpha * m + (1 - alpha) * (1 - m)), clamped to [0.0004, 0.12]; without boxes every pixel has lmbda, whatever alpha says. Only where
a byte cap leaves no choice is lmbda itself below 0.0004; then it is the floor.
"""

import functools
import math
from numbers import Real

import numpy as np

STEPS_PER_OCTAVE, LMBDA_LEAST, LMBDA_MIN, LMBDA_MAX = 64, 0.0001, 0.0004, 0.12
Q_FLOOR, Q_MAX = (
    128,
    math.floor(STEPS_PER_OCTAVE * math.log2(LMBDA_MAX / LMBDA_LEAST)),
)  # of LMBDA_MIN and LMBDA_MAX: 128, 654
FULL = 255  # importance 1
ALPHA_ONE = 1 << 15  # alpha 1
CELL = 16  # pixels a side of a latent's cell
MAX_BOXES = 255  # of one picture, so many a stream holds


def quality_index(lmbda: float) -> int:
    """The index nearest to `lmbda`. Raises ValueError outside [0.0004, 0.12]."""
    if not (isinstance(lmbda, Real) and LMBDA_MIN <= lmbda <= LMBDA_MAX):
        raise ValueError(f"lmbda is a number from {LMBDA_MIN} to {LMBDA_MAX}, not {lmbda}")
    return min(round(STEPS_PER_OCTAVE * math.log2(lmbda / LMBDA_LEAST)), Q_MAX)


def lmbda_of(quality: np.ndarray | float) -> np.ndarray:
    """lmbda of quality indices, any shape."""
    return LMBDA_LEAST * 2.0 ** (np.asarray(quality) / STEPS_PER_OCTAVE)


def alpha_index(alpha: float) -> int:
    """alpha in units of 1 / ALPHA_ONE. Raises ValueError outside [0, 1]."""
    if not (isinstance(alpha, Real) and 0 <= alpha <= 1):
        raise ValueError(f"alpha is a number from 0 to 1, not {alpha}")
    return round(alpha * ALPHA_ONE)


def floor_log2(value: int, steps: int = STEPS_PER_OCTAVE) -> int:
    """floor(steps * log2(value)) of a positive integer, exactly."""
    return (value**steps).bit_length() - 1


@functools.lru_cache(256)
def quality_table(quality: int, alpha: int) -> np.ndarray:
    """(256,) int16, not to be written to: the quality index of each importance 0–255, for the indices of lmbda and alpha."""
    weights = [alpha * m + (ALPHA_ONE - alpha) * (FULL - m) for m in range(FULL + 1)]
    plain = floor_log2(ALPHA_ONE // 2 * FULL)  # of weight 1
    shifts = [floor_log2(weight) - plain if weight else -Q_MAX for weight in weights]
    table = np.array(
        [min(max(quality + shift, min(quality, Q_FLOOR)), Q_MAX) for shift in shifts], np.int16
    )
    table.flags.writeable = False
    return table


def importance_map(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) uint8 importance of integer boxes (K, 5): x0, y0, x1, y1 in pixels, importance 1–255. The highest wins where boxes overlap."""
    importance = np.zeros((height, width), np.uint8)
    for x0, y0, x1, y1, value in boxes[np.argsort(boxes[:, 4], kind="stable")]:
        importance[y0:y1, x0:x1] = value
    return importance


def cell_means(importance: np.ndarray) -> np.ndarray:
    """(h, w) mean importance, rounded, of the CELL x CELL cells of a map whose sides are multiples of CELL."""
    height, width = importance.shape
    sums = importance.reshape(height // CELL, CELL, width // CELL, CELL).sum((1, 3), dtype=np.int64)
    return (sums + CELL**2 // 2) // CELL**2


def draw(
    random: np.random.Generator, boxes: np.ndarray, side: int, place: int = 0, of: int = 1
) -> tuple[np.ndarray, int, int]:
    """What one training picture of side x side pixels is coded with: boxes as in `importance_map`, and the indices of lmbda and alpha.

    lmbda is log-uniform from LMBDA_MIN on, one in 20 below it, where only byte caps lead: the picture at `place` of a batch `of` so many draws from
    its own part of the range, so that every batch has all rates. A third of the pictures is uniform, a third has its labelled `boxes` (K, 4), the
    rest has random ones; the ROI's weight over the background's is log-uniform from 1/4 to 1024.
    """
    part = (place + random.random()) / of
    quality = int(
        random.integers(Q_FLOOR)
        if random.random() < 0.05
        else min(Q_FLOOR + part * (Q_MAX + 1 - Q_FLOOR), Q_MAX)
    )
    octaves, kind = random.uniform(-2, 10), random.integers(3)
    alpha = round(ALPHA_ONE / (1 + 2.0**-octaves))
    if kind == 0:
        return np.zeros((0, 5), np.int64), quality, alpha
    if kind == 2 or not len(boxes):
        sides = 16 * 2 ** random.uniform(0, math.log2(side / 16), (random.integers(1, 5), 2))
        corners = random.uniform(0, side - sides)
        boxes = np.concatenate([corners, corners + sides], 1)
    importance = np.where(random.random(len(boxes)) < 0.3, random.uniform(0.2, 1, len(boxes)), 1)
    return (
        integer_boxes(np.concatenate([boxes, importance[:, None]], 1), side, side),
        quality,
        alpha,
    )


def integer_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(K, 4) or (K, 5) float boxes → int64 (K, 5) of `importance_map`: every pixel that a box touches, cut to the picture; empty ones left out."""
    boxes = np.asarray(boxes, np.float64)
    importance = boxes[:, 4] if boxes.shape[1:] == (5,) else np.ones(len(boxes))
    limits = np.array([width, height])
    low, high = np.floor(boxes[:, :2]).clip(0, limits), np.ceil(boxes[:, 2:4]).clip(0, limits)
    levels = np.rint(importance * FULL).clip(1, FULL)
    return np.concatenate([low, high, levels[:, None]], 1).astype(np.int64)[(high > low).all(1)]


def quality_map(
    boxes: np.ndarray, size: tuple[int, int], padded: tuple[int, int], quality: int, alpha: int
) -> np.ndarray:
    """(padded / 16) int16 quality indices of a picture's latent cells.

    boxes: as in `importance_map`; size: the picture's height and width; padded: those of the codec's input, which repeats the picture's last
    row and column. `quality`, `alpha`: the indices of lmbda and alpha.
    """
    (height, width), cells = size, (padded[0] // CELL, padded[1] // CELL)
    if not len(boxes):
        return np.full(cells, quality, np.int16)
    importance = np.pad(
        importance_map(boxes, height, width),
        ((0, padded[0] - height), (0, padded[1] - width)),
        "edge",
    )
    return quality_table(quality, alpha)[cell_means(importance)]


def roi_mask(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) bool, true on every pixel that a box touches. boxes: (K, ≥4) xyxy, which may reach over the border."""
    boxes = np.asarray(boxes, np.float64)[:, :4]
    return importance_map(integer_boxes(boxes, height, width), height, width) > 0
