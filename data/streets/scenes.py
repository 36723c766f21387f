"""Street scenes for the sample set: a road with façades, trees and poles, and moving actors.

    Street(seed).frame(time) ──► picture uint8 (375, 1242, 3), object types, exact boxes (K, 4)

Everything follows from the seed. Coordinates are metres: x right, y up, z forward, origin on the
ground.
"""

from functools import partial

import numpy as np
import trimesh

from actors import Actor, ball, limb
from render import Camera, Light, Part, photograph
from surfaces import (
    ROAD_CENTRE,
    paint_facade,
    paint_ground,
    paint_leaves,
    paint_pavement,
    paint_plain,
    paint_sign,
)

LENGTH = 320.0  # of the road
WALLS = np.array(
    [
        [0.62, 0.53, 0.40],
        [0.55, 0.33, 0.25],
        [0.68, 0.64, 0.56],
        [0.45, 0.44, 0.42],
        [0.66, 0.58, 0.34],
        [0.50, 0.40, 0.36],
    ]
)


def _at(x: float, y: float, z: float) -> np.ndarray:
    return trimesh.transformations.translation_matrix((x, y, z))


class Street:
    """A street and everybody in it, made from `seed`.

    The camera drives along it at `speed` metres a second.
    """

    def __init__(self, seed: int, camera: Camera | None = None):
        self.seed, self.camera, rng = seed, camera or Camera(), np.random.default_rng(seed)
        self.half, self.speed = rng.uniform(5.4, 6.6), rng.uniform(6, 11)
        height, azimuth = rng.uniform(0.45, 1.0), rng.uniform(0.6, 2.5) * rng.choice([-1, 1])
        sun = np.array(
            [
                np.sin(azimuth) * np.cos(height),
                np.sin(height),
                -abs(np.cos(azimuth)) * np.cos(height),
            ]
        )
        warmth, strength = rng.uniform(0.75, 1.0), rng.uniform(0.5, 1.5)
        self.light = Light(
            sun,
            strength * np.array([1.0, 0.93, 0.82 * warmth]),
            np.array([0.42, 0.58, 0.86]),
            rng.uniform(0.0006, 0.0025),
            seed,
        )
        self.scenery = [*self._ground(), *self._blocks(rng), *self._trees(rng), *self._poles(rng)]
        self.actors = [*self._parked(rng), *self._traffic(rng), *self._walkers(rng)]

    def _ground(self) -> list[Part]:
        plane = trimesh.creation.box((160, 0.02, LENGTH + 260)).apply_translation(
            (0, -0.01, LENGTH / 2)
        )
        parts = [Part(plane, np.eye(4), partial(paint_ground, self.half, self.seed))]
        for side in (-1, 1):
            slab = trimesh.creation.box((3.4, 0.14, LENGTH + 200)).apply_translation(
                (ROAD_CENTRE + side * (self.half + 1.7), 0.07, LENGTH / 2)
            )
            parts.append(Part(slab, np.eye(4), partial(paint_pavement, self.seed + side)))
        return parts

    def _blocks(self, rng: np.random.Generator) -> list[Part]:
        parts = []
        for side in (-1, 1):
            z, gap = -20.0, rng.uniform(0.05, 0.35)
            while z < LENGTH + 90:
                length, setback = rng.uniform(9, 20), 0 if rng.random() > gap else rng.uniform(3, 9)
                if rng.random() > gap * 0.5:
                    size = np.array([12.0, rng.uniform(5.5, 15), length])
                    x = ROAD_CENTRE + side * (self.half + 3.5 + setback + size[0] / 2)
                    wall, seed = (
                        WALLS[rng.integers(len(WALLS))] * rng.uniform(0.75, 1.1),
                        int(rng.integers(1 << 20)),
                    )
                    surface = partial(
                        paint_facade, wall, rng.uniform(2.8, 3.4), rng.uniform(2.0, 3.0), seed, size
                    )
                    parts.append(
                        Part(
                            trimesh.creation.box(size).apply_translation((0, size[1] / 2, 0)),
                            _at(x, 0, z + length / 2),
                            surface,
                        )
                    )
                    roof = trimesh.creation.box((size[0] + 0.7, 0.4, length + 0.1))
                    parts.append(
                        Part(
                            roof,
                            _at(x, size[1] + 0.2, z + length / 2),
                            partial(paint_plain, (0.16, 0.10, 0.08), 0.0),
                        )
                    )
                z += length
        return parts

    def _trees(self, rng: np.random.Generator) -> list[Part]:
        parts = []
        for side in (-1, 1):
            for z in np.arange(2, LENGTH + 60, rng.uniform(11, 26)):
                if rng.random() < 0.3:
                    continue
                x, height = (
                    ROAD_CENTRE + side * (self.half + rng.uniform(0.8, 1.4)),
                    rng.uniform(2.2, 3.4),
                )
                parts.append(
                    Part(
                        limb((0, 0, 0), (0, height, 0), 0.14),
                        _at(x, 0, z + rng.uniform(-2, 2)),
                        partial(paint_plain, (0.13, 0.09, 0.06), 0.0),
                    )
                )
                crown = trimesh.util.concatenate(
                    [
                        self._blob(
                            rng, rng.uniform(0.9, 1.5), rng.normal((0, height + 0.9, 0), 0.55)
                        )
                        for _ in range(4)
                    ]
                )
                colour = np.array([0.13, 0.22, 0.05]) * rng.uniform(0.7, 1.4, 3)
                parts.append(
                    Part(
                        crown,
                        parts[-1].pose,
                        partial(paint_leaves, colour, int(rng.integers(1 << 20))),
                    )
                )
        return parts

    def _blob(self, rng: np.random.Generator, radius: float, centre: np.ndarray) -> trimesh.Trimesh:
        mesh = ball(radius, (0, 0, 0), 3)
        mesh.vertices *= 1 + rng.normal(0, 0.09, (len(mesh.vertices), 1))
        return mesh.apply_translation(centre)

    def _poles(self, rng: np.random.Generator) -> list[Part]:
        parts, steel = [], partial(paint_plain, (0.25, 0.26, 0.27), 0.15)
        for side in (-1, 1):
            x = ROAD_CENTRE + side * (self.half + 0.45)
            for z in np.arange(rng.uniform(6, 20), LENGTH + 60, 28):
                parts.append(
                    Part(
                        trimesh.util.concatenate(
                            [
                                limb((0, 0, 0), (0, 6.5, 0), 0.06),
                                limb((0, 6.5, 0), (-side * 1.6, 6.8, 0), 0.05),
                            ]
                        ),
                        _at(x, 0, z),
                        steel,
                    )
                )
            for z in np.arange(rng.uniform(14, 30), LENGTH + 60, 47):
                parts.append(Part(limb((0, 0, 0), (0, 2.5, 0), 0.035), _at(x, 0, z), steel))
                parts.append(
                    Part(
                        trimesh.creation.cylinder(0.3, 0.03, sections=28),
                        _at(x, 2.35, z - 0.06),
                        paint_sign,
                    )
                )
        return parts

    def _parked(self, rng: np.random.Generator) -> list[Actor]:
        made = []
        for side in (-1, 1):
            z = rng.uniform(5, 14)
            while z < LENGTH + 60:
                if rng.random() < 0.6:
                    kind, heading = (
                        "Van" if rng.random() < 0.14 else "Car",
                        0.0 if side > 0 else np.pi,
                    )
                    made.append(
                        Actor(
                            kind,
                            ROAD_CENTRE + side * (self.half - 1.15),
                            z,
                            heading + rng.normal(0, 0.02),
                            0.0,
                            int(rng.integers(1 << 30)),
                        )
                    )
                z += rng.uniform(5.2, 9)
        return made

    def _traffic(self, rng: np.random.Generator) -> list[Actor]:
        made, lane = [], self.half / 2 - 1.2
        for z in np.cumsum(rng.uniform(9, 45, 9)) + 4:
            made.append(
                Actor(
                    "Van" if rng.random() < 0.15 else "Car",
                    ROAD_CENTRE + lane + 0.2,
                    z,
                    rng.normal(0, 0.015),
                    self.speed * rng.uniform(0.95, 1.1),
                    int(rng.integers(1 << 30)),
                )
            )
        for z in np.cumsum(rng.uniform(12, 50, 14)):
            made.append(
                Actor(
                    "Van" if rng.random() < 0.15 else "Car",
                    ROAD_CENTRE - lane,
                    z,
                    np.pi,
                    rng.uniform(6, 11),
                    int(rng.integers(1 << 30)),
                )
            )
        return made

    def _walkers(self, rng: np.random.Generator) -> list[Actor]:
        made = []
        for z in rng.uniform(6, LENGTH + 40, 60):
            x = ROAD_CENTRE + rng.choice([-1, 1]) * (self.half + rng.uniform(1.5, 3.0))
            made.append(
                Actor(
                    "Pedestrian",
                    x,
                    z,
                    rng.choice([0, np.pi]) + rng.normal(0, 0.3),
                    rng.uniform(0.8, 1.6),
                    int(rng.integers(1 << 30)),
                )
            )
        for z in rng.uniform(9, LENGTH, 14):
            side = rng.choice([-1, 1])
            made.append(
                Actor(
                    "Cyclist",
                    ROAD_CENTRE + side * (self.half - 2.6),
                    z,
                    0.0 if side > 0 else np.pi,
                    rng.uniform(3, 5),
                    int(rng.integers(1 << 30)),
                )
            )
        crossing = Actor(
            "Pedestrian",
            ROAD_CENTRE - rng.uniform(0, 3),
            rng.uniform(14, 40),
            np.pi / 2,
            rng.uniform(0.9, 1.5),
            int(rng.integers(1 << 30)),
        )
        return made + [crossing] * (rng.random() < 0.5)

    def frame(
        self, time: float = 0.0, samples: int = 4
    ) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Return the picture uint8 (H, W, 3) at `time` seconds, and its objects' types and boxes.

        Boxes are (K, 4), of visible objects only. `samples` is the number of rays a pixel.
        """
        z = self.speed * time
        near = [actor for actor in self.actors if -4 < actor.pose(time)[2, 3] - z < 110]
        parts = [
            part for part in self.scenery if -60 < part.pose[2, 3] - z < 220 or part.pose[2, 3] == 0
        ]
        parts += [part for i, actor in enumerate(near) for part in actor.parts(time, i)]
        picture, owner = photograph(
            parts, self.light, self.camera, z, hash_seed(self.seed, time), samples
        )
        boxes = [
            self._box(i, [p for p in parts if p.owner == i], owner, z) for i in range(len(near))
        ]
        kept = [i for i, box in enumerate(boxes) if box is not None]
        return (
            picture,
            [near[i].kind for i in kept],
            np.array([boxes[i] for i in kept], np.float32).reshape(-1, 4),
        )

    def _box(self, i: int, parts: list[Part], owner: np.ndarray, z: float) -> np.ndarray | None:
        """Return the object's outline box, cut to the picture.

        None for an object that is behind the camera, hidden or too small to label.
        """
        points = np.concatenate(
            [trimesh.transform_points(part.mesh.vertices, part.pose) for part in parts]
        )
        if points[:, 2].max() < z + 0.5:
            return None
        pixels = self.camera.project(points[points[:, 2] > z + 0.2], z)
        limits = np.array([self.camera.width, self.camera.height])
        box = np.concatenate([np.clip(pixels.min(0), 0, limits), np.clip(pixels.max(0), 0, limits)])
        width, height = box[2:] - box[:2]
        seen = int((owner == i).sum())
        return (
            box if height >= 12 and width >= 4 and seen >= max(50, 0.12 * width * height) else None
        )


def hash_seed(seed: int, time: float) -> int:
    """A seed for the sensor noise of one frame."""
    return seed * 100_003 + round(time * 1000)
