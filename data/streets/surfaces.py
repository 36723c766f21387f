"""The materials of a street scene, each a function of a part's own coordinates.

`paint_…(settings, p, world)` maps points p (n, 3) in the part's coordinates, and the same points in
the world, to an albedo (n, 3) in [0, 1], linear light, and the share of mirror reflection (n,).
Coordinates are metres: x right, y up, z forward, origin on the ground.
"""

import numpy as np

from render import fractal_noise, value_noise

ROAD_CENTRE = -1.9  # the camera drives in the right-hand lane


def paint_vehicle(
    paint: np.ndarray,
    belt: float,
    top: float,
    slope: tuple,
    plate: int,
    p: np.ndarray,
    world: np.ndarray,
) -> tuple:
    """Paint bodywork, windows, lights, number plates and wheel arches.

    slope: z of the rear window's foot and head and of the windscreen's head and foot.
    """
    x, y, z = p.T
    side, rise = np.abs(x), np.clip((y - belt) / (top - belt), 0, 1)
    albedo, mirror = np.tile(paint * (1 - 0.25 * (y < 0.42)[:, None]), 1), np.full(len(p), 0.3)
    rear, front = slope[0] + (slope[1] - slope[0]) * rise, slope[3] + (slope[2] - slope[3]) * rise
    window = (y > belt + 0.05) & (y < top - 0.09)
    flank = window & (z > rear + 0.16) & (z < front - 0.16) & (np.abs(z + 0.25) > 0.045)
    screen = window & (side < 0.62) & ((z > front - 0.1) | (z < rear + 0.1))
    glass = flank & (side > 0.5) | screen
    ends = np.abs(z) > 1.93
    for where, colour, shine in (
        (glass, (0.012, 0.014, 0.016), 0.6),
        ((y < 0.33), (0.04, 0.04, 0.04), 0.05),
        (
            ((z - 1.3) ** 2 + (y - 0.32) ** 2 < 0.15) | ((z + 1.3) ** 2 + (y - 0.32) ** 2 < 0.15),
            (0.015, 0.015, 0.015),
            0.0,
        ),
        (
            (side > 0.6)
            & (y < belt)
            & (y > 0.4)
            & ((np.abs(z - 0.72) < 0.012) | (np.abs(z + 0.3) < 0.012)),
            (0.02, 0.02, 0.02),
            0.0,
        ),
        (ends & (z > 0) & (y > 0.58) & (y < 0.76) & (side > 0.48), (1.0, 1.0, 0.94), 0.4),
        (ends & (z > 0) & (y > 0.42) & (y < 0.58) & (side < 0.42), (0.03, 0.03, 0.03), 0.2),
        (ends & (z < 0) & (y > 0.66) & (y < 0.92) & (side > 0.52), (0.75, 0.02, 0.02), 0.3),
    ):
        albedo[where], mirror[where] = colour, shine
    number = ends & (side < 0.27) & (np.abs(y - np.where(z > 0, 0.38, 0.56)) < 0.06)
    letters = (np.abs(y - np.where(z > 0, 0.38, 0.56)) < 0.038) & (
        value_noise(np.stack([x * 26, y * 30], 1), plate) > 0.56
    )
    albedo[number] = np.where(letters[number, None], 0.03, 0.85)
    mirror[number] = 0.0
    return albedo, mirror


def paint_wheel(p: np.ndarray, world: np.ndarray) -> tuple:
    """Rubber around a spoked rim; the wheel turns around x."""
    radius, angle = np.hypot(p[:, 1], p[:, 2]), np.arctan2(p[:, 1], p[:, 2])
    rim = (radius < 0.21) & ((np.cos(5 * angle) > -0.35) | (radius < 0.06))
    return np.where(rim[:, None], 0.5, 0.025) * np.ones(3), np.where(rim, 0.3, 0.0)


def paint_plain(colour: tuple, mirror: float, p: np.ndarray, world: np.ndarray) -> tuple:
    """One colour with a little grain."""
    grain = 0.85 + 0.3 * value_noise((world[:, [0, 1]] + world[:, [2, 2]]) * 17, 3)
    return np.asarray(colour) * grain[:, None], np.full(len(p), mirror)


def paint_person(
    shirt: np.ndarray,
    trousers: np.ndarray,
    skin: np.ndarray,
    hair: np.ndarray,
    seat: float,
    p: np.ndarray,
    world: np.ndarray,
) -> tuple:
    """Hair, face, shirt, hands, trousers and shoes by height; `seat` is where the shirt ends."""
    x, y, z = p.T
    fold = (0.75 + 0.5 * value_noise(np.stack([x * 14 + z * 9, y * 11], 1), 5))[:, None]
    albedo = np.where((y > seat)[:, None], shirt * fold, trousers * fold)
    albedo[(y < 0.09)] = 0.03
    head = y > 1.5
    albedo[head] = np.where(((y > 1.66) | (z < -0.02))[head, None], hair, skin)
    albedo[(np.abs(x) > 0.19) & (y < 1.02) & (y > 0.7)] = skin
    return albedo, np.zeros(len(p))


def paint_bicycle(frame: np.ndarray, p: np.ndarray, world: np.ndarray) -> tuple:
    """Tyres black, frame painted."""
    tyre = (
        np.minimum(
            np.hypot(p[:, 1] - 0.34, p[:, 2] - 0.52), np.hypot(p[:, 1] - 0.34, p[:, 2] + 0.52)
        )
        > 0.28
    )
    return np.where((tyre & (p[:, 1] < 0.7))[:, None], 0.02, frame), np.full(len(p), 0.15)


def paint_ground(half: float, seed: int, p: np.ndarray, world: np.ndarray) -> tuple:
    """Asphalt with worn markings between the kerbs, grass beyond."""
    x, z = world[:, 0] - ROAD_CENTRE, world[:, 2]
    flat = world[:, [0, 2]]
    patches, grain = fractal_noise(flat * (0.35, 0.12), seed, 3), value_noise(flat * 55, seed + 9)
    tyre_tracks = np.exp(-((np.abs(np.abs(x) - half / 2) - 0.75) ** 2) / 0.05)
    asphalt = (0.105 + 0.06 * patches + 0.05 * (grain - 0.5) - 0.015 * tyre_tracks)[:, None] * (
        1.0,
        1.0,
        1.03,
    )
    dashes = (np.abs(x) < 0.07) & (z % 9 < 4)
    edge = np.abs(np.abs(x) - half + 2.3) < 0.06
    worn = value_noise(flat * 6, seed + 4) > 0.2
    asphalt[(dashes | edge) & worn] = 0.62
    grass = np.array([0.13, 0.19, 0.06]) * (0.5 + fractal_noise(flat * 3, seed, 4))[:, None]
    return np.where((np.abs(x) < half)[:, None], asphalt, grass), np.full(len(p), 0.0)


def paint_pavement(seed: int, p: np.ndarray, world: np.ndarray) -> tuple:
    """Concrete slabs with joints, a lighter kerb stone towards the road."""
    slab = world[:, [0, 2]] / 0.6
    joint = (np.abs(slab - np.round(slab)) < 0.02).any(1)
    tone = (
        0.27
        + 0.08 * value_noise(np.floor(slab) + 0.5, seed)
        + 0.05 * (value_noise(world[:, [0, 2]] * 40, seed) - 0.5)
    )
    return np.where(joint, 0.14, tone)[:, None] * (1.0, 0.98, 0.94), np.zeros(len(p))


def paint_facade(
    wall: np.ndarray,
    storey: float,
    bay: float,
    seed: int,
    size: np.ndarray,
    p: np.ndarray,
    world: np.ndarray,
) -> tuple:
    """Paint plaster with rows of framed windows, shop fronts, cornices and stains.

    size: the block's extents.
    """
    x, y, z = p.T
    along = np.where(np.abs(np.abs(x) - size[0] / 2) < 0.02, z, x)
    column, row = along / bay, (y - 0.8) / storey
    fx, fy = np.abs(column % 1 - 0.5), np.abs(row % 1 - 0.5)
    cell = np.stack([np.floor(column), np.floor(row)], 1)
    shop = row < 1
    opening = (
        np.where(shop, (fx < 0.4) & (fy < 0.38), (fx < 0.26) & (fy < 0.31))
        & (y < size[1] - 0.5)
        & (y > 0.5)
    )
    frame = opening & ~np.where(
        shop, (fx < 0.37) & (fy < 0.35), (fx < 0.23) & (fy < 0.285) & (fx > 0.012)
    )
    stain = fractal_noise(np.stack([along * 0.5, y * 0.25], 1), seed, 3)[:, None] * 0.35 + 0.82
    plaster = value_noise(np.stack([along * 25, y * 25], 1), seed + 2)[:, None] * 0.12 + 0.94
    albedo = (
        np.where((shop & (value_noise(cell + 0.5, seed + 5) > 0.2))[:, None], wall * 0.7, wall)
        * stain
        * plaster
    )
    albedo[(np.abs(y - 0.8 - np.round(row) * storey) < 0.09) & (row > 0.5)] = np.minimum(
        wall * 1.25, 0.8
    )
    albedo[y < 0.5] *= 0.55
    curtain = value_noise(cell + 0.5, seed + 7) > 0.6
    albedo[opening] = np.where(
        (curtain & (fy > 0.1))[opening, None], (0.42, 0.4, 0.36), (0.03, 0.035, 0.04)
    )
    albedo[frame] = 0.55
    return albedo, np.where(opening & ~frame, 0.6, 0.0)


def paint_leaves(colour: np.ndarray, seed: int, p: np.ndarray, world: np.ndarray) -> tuple:
    """Foliage: light and dark leaves, brighter at the top."""
    leaves = fractal_noise(np.stack([p[:, 0] * 3 + p[:, 2] * 2, p[:, 1] * 3 - p[:, 2]], 1), seed, 4)
    return colour * (0.15 + 1.9 * leaves**2)[:, None] * (0.7 + 0.08 * p[:, 1:2]), np.zeros(len(p))


def paint_sign(p: np.ndarray, world: np.ndarray) -> tuple:
    """A round sign: red ring, white field, dark bar; local x and y on its face."""
    radius = np.hypot(p[:, 0], p[:, 1])
    albedo = np.where((radius > 0.23)[:, None], (0.6, 0.02, 0.03), (0.8, 0.8, 0.8))
    albedo[(np.abs(p[:, 1]) < 0.1) & (np.abs(np.abs(p[:, 0]) - 0.09) < 0.045)] = 0.04
    return albedo, np.full(len(p), 0.1)
