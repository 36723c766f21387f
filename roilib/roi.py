"""Boxes → ROI mask, importance map and quality map. Integers only, so that all machines agree.

    boxes ──► importance of each pixel (0–255) ──► mean over a latent cell ──┐
    λ, α  ──► table: importance → quality index ────────────────────────────┴──► quality map

A quality index q stands for lmbda = LMBDA_LEAST * 2^(q / 64), with 0 ≤ q ≤ Q_MAX. A pixel of
importance m in [0, 1] is coded with

    lmbda * 2 * (alpha * m + (1 - alpha) * (1 - m)), clamped to [LMBDA_MIN, LMBDA_MAX]

Without boxes every pixel has lmbda, whatever alpha is. An lmbda below LMBDA_MIN, which only a
byte cap can ask for, is itself the lower limit.
"""

import functools
import math
from numbers import Real

import numpy as np

STEPS_PER_OCTAVE = 64  # quality indices by which lmbda doubles
LMBDA_LEAST = 0.0001  # of quality index 0; below LMBDA_MIN, for byte caps
LMBDA_MIN = 0.0004  # the least that a user may ask for, and the floor under the background
LMBDA_MAX = 0.12  # the largest that a model is trained for
Q_FLOOR = 128  # quality index of LMBDA_MIN
Q_MAX = math.floor(STEPS_PER_OCTAVE * math.log2(LMBDA_MAX / LMBDA_LEAST))  # of LMBDA_MAX: 654
FULL = 255  # importance 1
ALPHA_ONE = 1 << 15  # alpha 1
CELL = 16  # side of a latent cell in pixels
MAX_BOXES = 255  # of one picture: a stream counts them in one byte

# Shares and ranges of the settings that training draws
BELOW_FLOOR_SHARE = 0.05  # pictures with an lmbda below LMBDA_MIN
PARTIAL_SHARE = 0.3  # boxes of an importance below 1
PARTIAL_LEAST = 0.2  # the least importance of those
RATIO_OCTAVES = (-2, 10)  # log2 of the ROI's weight over the background's
RANDOM_BOXES = (1, 5)  # number of random boxes, exclusive of the last
RANDOM_SIDE = 16  # shortest side of a random box in pixels


def quality_index(lmbda: float) -> int:
    """The index nearest to `lmbda`. Raises ValueError outside [LMBDA_MIN, LMBDA_MAX]."""
    if not (isinstance(lmbda, Real) and LMBDA_MIN <= lmbda <= LMBDA_MAX):
        raise ValueError(f"lmbda is a number from {LMBDA_MIN} to {LMBDA_MAX}, not {lmbda!r}")
    return min(round(STEPS_PER_OCTAVE * math.log2(lmbda / LMBDA_LEAST)), Q_MAX)


def lmbda_of(quality: np.ndarray | float) -> np.ndarray:
    """lmbda of quality indices, of any shape."""
    return LMBDA_LEAST * 2.0 ** (np.asarray(quality) / STEPS_PER_OCTAVE)


def alpha_index(alpha: float) -> int:
    """alpha in units of 1 / ALPHA_ONE. Raises ValueError outside [0, 1]."""
    if not (isinstance(alpha, Real) and 0 <= alpha <= 1):
        raise ValueError(f"alpha is a number from 0 to 1, not {alpha!r}")
    return round(alpha * ALPHA_ONE)


def floor_log2(value: int, steps: int = STEPS_PER_OCTAVE) -> int:
    """floor(steps * log2(value)) of a positive integer, exactly."""
    return (value**steps).bit_length() - 1


@functools.lru_cache(256)
def quality_table(quality: int, alpha: int) -> np.ndarray:
    """The quality index of each importance: (256,) int16, read-only.

    quality, alpha: indices of lmbda and alpha.
    """
    weights = [alpha * m + (ALPHA_ONE - alpha) * (FULL - m) for m in range(FULL + 1)]
    neutral = floor_log2(ALPHA_ONE // 2 * FULL)  # of weight 1
    shifts = [floor_log2(weight) - neutral if weight else -Q_MAX for weight in weights]
    least = min(quality, Q_FLOOR)
    table = np.array([min(max(quality + shift, least), Q_MAX) for shift in shifts], np.int16)
    table.flags.writeable = False
    return table


def integer_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes of whole pixels, cut to the picture: int64 (K, 5), without empty ones.

    boxes: (K, 4) xyxy, or (K, 5) with importance in (0, 1]. Every pixel that a box touches
    belongs to it. Result: x0, y0, x1, y1, importance 1–255.
    """
    boxes = np.asarray(boxes, np.float64)
    importance = boxes[:, 4] if boxes.shape[1:] == (5,) else np.ones(len(boxes))
    limits = np.array([width, height])
    low = np.floor(boxes[:, :2]).clip(0, limits)
    high = np.ceil(boxes[:, 2:4]).clip(0, limits)
    importance = np.rint(importance * FULL).clip(1, FULL)
    found = np.concatenate([low, high, importance[:, None]], 1).astype(np.int64)
    return found[(high > low).all(1)]


def importance_map(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Rasterise `integer_boxes`: (height, width) uint8. The highest wins where boxes overlap."""
    importance = np.zeros((height, width), np.uint8)
    for x0, y0, x1, y1, value in boxes[np.argsort(boxes[:, 4], kind="stable")]:
        importance[y0:y1, x0:x1] = value
    return importance


def roi_mask(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The union of boxes (K, ≥4), xyxy: (height, width) bool, true on every pixel they touch."""
    boxes = np.asarray(boxes, np.float64)[:, :4]
    return importance_map(integer_boxes(boxes, height, width), height, width) > 0


def cell_means(importance: np.ndarray) -> np.ndarray:
    """Mean importance of each cell, rounded: (H / CELL, W / CELL) of a map (H, W)."""
    height, width = importance.shape
    sums = importance.reshape(height // CELL, CELL, width // CELL, CELL).sum((1, 3), dtype=np.int64)
    return (sums + CELL**2 // 2) // CELL**2


def quality_map(
    boxes: np.ndarray, size: tuple[int, int], padded: tuple[int, int], quality: int, alpha: int
) -> np.ndarray:
    """Quality indices of a picture's latent cells: int16, `padded` / CELL.

    boxes: `integer_boxes`; size: the picture's height and width; padded: those of the codec's
    input, which repeats the last row and column; quality, alpha: indices of lmbda and alpha.
    """
    (height, width), cells = size, (padded[0] // CELL, padded[1] // CELL)
    if not len(boxes):
        return np.full(cells, quality, np.int16)
    margins = ((0, padded[0] - height), (0, padded[1] - width))
    importance = np.pad(importance_map(boxes, height, width), margins, "edge")
    return quality_table(quality, alpha)[cell_means(importance)]


def draw(
    random: np.random.Generator, boxes: np.ndarray, side: int, place: int = 0, of: int = 1
) -> tuple[np.ndarray, int, int]:
    """Draw a training picture's regions and setting: `integer_boxes`, indices of lmbda and alpha.

    boxes: (K, 4), the labelled ones of a picture of side x side pixels. A third of the pictures
    has no regions, a third the labelled ones, a third random ones; pictures without labels get
    random ones instead. lmbda is log-uniform, so is the ROI's weight over the background's.
    The picture at `place` in a batch `of` so many draws from its own part of the range of lmbda,
    so that every batch has all rates.
    """
    part = (place + random.random()) / of
    if random.random() < BELOW_FLOOR_SHARE:
        quality = int(random.integers(Q_FLOOR))
    else:
        quality = int(min(Q_FLOOR + part * (Q_MAX + 1 - Q_FLOOR), Q_MAX))
    octaves, kind = random.uniform(*RATIO_OCTAVES), random.integers(3)
    alpha = round(ALPHA_ONE / (1 + 2.0**-octaves))
    if kind == 0:
        return np.zeros((0, 5), np.int64), quality, alpha
    if kind == 2 or not len(boxes):
        octaves = math.log2(side / RANDOM_SIDE)
        count = random.integers(*RANDOM_BOXES)
        sides = RANDOM_SIDE * 2 ** random.uniform(0, octaves, (count, 2))
        corners = random.uniform(0, side - sides)
        boxes = np.concatenate([corners, corners + sides], 1)
    is_partial = random.random(len(boxes)) < PARTIAL_SHARE
    importance = np.where(is_partial, random.uniform(PARTIAL_LEAST, 1, len(boxes)), 1)
    rows = np.concatenate([boxes, importance[:, None]], 1)
    return integer_boxes(rows, side, side), quality, alpha
