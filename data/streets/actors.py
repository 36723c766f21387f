"""Cars, vans, pedestrians and cyclists of the sample set, built from a seed and posed at a time.

A surface is a function of a part's own coordinates (metres; x right, y up, z forward, origin on the
ground), so that the same car can be scaled, painted and turned.
"""

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import trimesh
from shapely.geometry import Polygon
from trimesh.transformations import rotation_matrix

from render import Part
from surfaces import paint_bicycle, paint_person, paint_vehicle, paint_wheel

PAINTS = np.array(
    [
        [0.62, 0.63, 0.65],
        [0.03, 0.03, 0.035],
        [0.75, 0.75, 0.74],
        [0.32, 0.03, 0.03],
        [0.04, 0.09, 0.25],
        [0.16, 0.17, 0.18],
        [0.10, 0.22, 0.14],
    ]
)
CLOTHES = np.array(
    [
        [0.05, 0.06, 0.12],
        [0.45, 0.08, 0.08],
        [0.12, 0.25, 0.42],
        [0.55, 0.52, 0.45],
        [0.08, 0.08, 0.08],
        [0.60, 0.45, 0.10],
        [0.20, 0.30, 0.18],
    ]
)
CAR_PROFILE = [  # (z, y) around the side view
    (-2.05, 0.25), (-2.12, 0.5), (-2.08, 0.85), (-1.95, 0.98), (-1.6, 1.02), (-1.08, 1.38),
    (-0.6, 1.46),
    (0.15, 1.46), (0.5, 1.38), (1.08, 0.98), (1.75, 0.86), (2.0, 0.72), (2.1, 0.5), (2.05, 0.25),
]  # fmt: skip
VAN_PROFILE = [
    (-2.15, 0.25),
    (-2.2, 0.6),
    (-2.18, 1.3),
    (-2.1, 1.85),
    (-1.9, 1.95),
    (0.6, 1.95),
    (1.0, 1.82),
    (1.55, 1.15),
    (2.05, 1.0),
    (2.2, 0.6),
    (2.15, 0.25),
]


def body(
    profile: list[tuple[float, float]], width: float, belt: float, taper: float
) -> trimesh.Trimesh:
    """Extrude a side profile (z, y) over `width`.

    The body is narrower above the belt line and towards both ends.
    """
    mesh = trimesh.creation.extrude_polygon(Polygon(profile), width).subdivide().subdivide()
    z, y, x = mesh.vertices.T
    top, half = y.max(), np.abs(z).max()
    x = (
        (x - width / 2)
        * (1 - taper * np.clip((y - belt) / (top - belt), 0, 1))
        * (1 - 0.1 * np.abs(z / half) ** 4)
    )
    return trimesh.Trimesh(np.stack([x, y, z], 1), mesh.faces[:, ::-1], process=False)


def limb(start: tuple, end: tuple, radius: float) -> trimesh.Trimesh:
    """Make a cylinder with round ends."""
    return trimesh.util.concatenate(
        [
            trimesh.creation.cylinder(radius, segment=(start, end), sections=10),
            ball(radius, start),
            ball(radius, end),
        ]
    )


def ball(radius: float | tuple, centre: tuple, subdivisions: int = 1) -> trimesh.Trimesh:
    """Make a sphere, or an ellipsoid of three radii."""
    vertices, faces = _unit_ball(subdivisions)
    return trimesh.Trimesh(vertices * radius + centre, faces, process=False)


@lru_cache
def _unit_ball(subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    mesh = trimesh.creation.icosphere(subdivisions, 1.0)
    return np.array(mesh.vertices), np.array(mesh.faces)


@dataclass(frozen=True)
class Actor:
    """A labelled object.

    kind: KITTI's type.
    x, z: the place at time 0.
    heading: radians; 0 is away from the camera.
    speed: metres a second along the heading.
    seed: of shape and colours.
    """

    kind: str
    x: float
    z: float
    heading: float
    speed: float
    seed: int

    def pose(self, time: float) -> np.ndarray:
        """Return the pose (4, 4) at `time` seconds."""
        turn = rotation_matrix(self.heading, (0, 1, 0))
        turn[:3, 3] = (
            self.x + np.sin(self.heading) * self.speed * time,
            0,
            self.z + np.cos(self.heading) * self.speed * time,
        )
        return turn

    def parts(self, time: float, owner: int) -> list[Part]:
        """Return meshes and surfaces at `time` seconds."""
        rng = np.random.default_rng(self.seed)
        build = {"Pedestrian": person, "Cyclist": cyclist}.get(self.kind)
        made = (
            build(rng, self.speed * time) if build else vehicle(rng, self.kind, self.speed * time)
        )
        pose = self.pose(time)
        return [Part(mesh, pose @ local, surface, owner) for mesh, local, surface in made]


def vehicle(rng: np.random.Generator, kind: str, travelled: float) -> list[tuple]:
    """Build a car or van: body and four wheels, as (mesh, local pose, surface)."""
    scale = np.diag([*rng.uniform(0.94, 1.06, 3), 1.0])
    paint = PAINTS[rng.integers(len(PAINTS))] * rng.uniform(0.8, 1.2)
    profile, width, belt, top, taper, slope = {
        "Car": (CAR_PROFILE, 1.76, 0.99, 1.46, 0.2, (-1.6, -1.08, 0.5, 1.08)),
        "Van": (VAN_PROFILE, 1.9, 1.15, 1.95, 0.1, (-2.2, -2.1, 1.0, 1.6)),
    }[kind]
    surface = partial(paint_vehicle, paint, belt, top, slope, int(rng.integers(1 << 20)))
    made = [(body(profile, width, belt, taper), scale, surface)]
    for x in (-width / 2 + 0.1, width / 2 - 0.1):
        for z in (-1.3, 1.3):
            wheel = trimesh.creation.cylinder(0.33, 0.22, sections=28).apply_transform(
                rotation_matrix(np.pi / 2, (0, 1, 0))
            )
            place = rotation_matrix(travelled / 0.33, (1, 0, 0))
            place[:3, 3] = (x, 0.33, z)
            made.append((wheel, scale @ place, paint_wheel))
    return made


def _clothed(rng: np.random.Generator, seat: float) -> partial:
    skin = np.array([0.55, 0.36, 0.27]) * rng.uniform(0.45, 1.1)
    return partial(
        paint_person,
        CLOTHES[rng.integers(7)],
        CLOTHES[rng.integers(7)] * 0.7,
        skin,
        np.array([0.06, 0.04, 0.03]) * rng.uniform(0.5, 3),
        seat,
    )


def person(rng: np.random.Generator, travelled: float) -> list[tuple]:
    """Build a walking person, whose step follows the distance travelled."""
    swing = 0.28 * np.sin(travelled / 0.75 * np.pi + rng.uniform(0, 6))
    torso = trimesh.creation.capsule(0.42, 0.19, count=(12, 12)).apply_transform(
        rotation_matrix(-np.pi / 2, (1, 0, 0))
    )
    torso.apply_scale((1, 1, 0.68)).apply_translation((0, 0.98, 0))
    pieces = [
        torso,
        ball((0.1, 0.135, 0.115), (0, 1.64, 0), 2),
        limb((0, 1.45, 0), (0, 1.55, 0), 0.055),
    ]
    for side in (-1, 1):
        pieces += [limb((side * 0.1, 0.9, 0), (side * 0.1, 0.48, side * swing * 0.6), 0.085)]
        pieces += [
            limb((side * 0.1, 0.48, side * swing * 0.6), (side * 0.1, 0.06, side * swing), 0.06),
            limb((side * 0.1, 0.05, side * swing), (side * 0.1, 0.05, side * swing + 0.14), 0.045),
        ]
        pieces += [
            limb((side * 0.22, 1.4, 0), (side * 0.26, 1.12, -side * swing * 0.4), 0.055),
            limb(
                (side * 0.26, 1.12, -side * swing * 0.4),
                (side * 0.26, 0.86, -side * swing * 0.9),
                0.045,
            ),
        ]
    scale = np.diag([1, 1, 1, 1 / rng.uniform(0.94, 1.12)])
    return [(trimesh.util.concatenate(pieces), scale / scale[3, 3], _clothed(rng, 0.92))]


def cyclist(rng: np.random.Generator, travelled: float) -> list[tuple]:
    """Build a rider on a bicycle, whose pedals turn with the distance travelled."""
    wheels = [
        trimesh.creation.torus(0.32, 0.025, 28, 8)
        .apply_transform(rotation_matrix(np.pi / 2, (0, 1, 0)))
        .apply_translation((0, 0.34, z))
        for z in (-0.52, 0.52)
    ]
    bars = [
        ((0, 0.34, -0.52), (0, 0.34, -0.05)),
        ((0, 0.34, -0.05), (0, 0.9, -0.22)),
        ((0, 0.34, -0.52), (0, 0.8, -0.2)),
        ((0, 0.8, -0.2), (0, 0.85, 0.36)),
    ]
    bars += [
        ((0, 0.34, -0.05), (0, 0.85, 0.36)),
        ((0, 0.34, 0.52), (0, 1.02, 0.34)),
        ((-0.26, 1.04, 0.36), (0.26, 1.04, 0.36)),
    ]
    bicycle = trimesh.util.concatenate(wheels + [limb(a, b, 0.022) for a, b in bars])
    turn = travelled / 0.9 + rng.uniform(0, 6)
    pieces = [
        limb((0, 1.0, -0.2), (0, 1.38, 0.06), 0.17),
        ball((0.105, 0.135, 0.12), (0, 1.68, 0.16), 2),
        limb((0, 1.45, 0.1), (0, 1.58, 0.14), 0.055),
    ]
    for side in (-1, 1):
        foot = np.array(
            [
                side * 0.11,
                0.34 + 0.16 * np.sin(turn + side * np.pi / 2),
                -0.03 + 0.16 * np.cos(turn + side * np.pi / 2),
            ]
        )
        knee = (np.array([side * 0.11, 0.98, -0.16]) + foot) / 2 + (0, 0.1, 0.2)
        pieces += [
            limb((side * 0.1, 0.98, -0.18), tuple(knee), 0.085),
            limb(tuple(knee), tuple(foot), 0.06),
            limb((side * 0.2, 1.38, 0.06), (side * 0.24, 1.06, 0.34), 0.05),
        ]
    frame = PAINTS[rng.integers(3, len(PAINTS))] * 1.3
    return [
        (bicycle, np.eye(4), partial(paint_bicycle, frame)),
        (trimesh.util.concatenate(pieces), np.eye(4), _clothed(rng, 1.0)),
    ]
