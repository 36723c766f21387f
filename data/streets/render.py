"""A small ray caster for the sample street scenes.

    Parts ──► one triangle mesh ──► primary rays (Embree) ──► surface(local point, world point)
          ──► sun (shadow rays) + sky ──► haze ──► sensor

Coordinates are metres: x to the right, y up, z forward. The camera stands at (0, above, z) and
looks along z.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import trimesh
from trimesh.ray.ray_pyembree import RayMeshIntersector

Surface = Callable[
    [np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]
]  # local points, world points → albedo (n, 3), mirror share (n,)


@dataclass
class Part:
    """A mesh in its own coordinates, with its pose and its surface.

    owner: index of the object that the mesh belongs to; -1 is the street.
    """

    mesh: trimesh.Trimesh
    pose: np.ndarray
    surface: Surface
    owner: int = -1


@dataclass(frozen=True)
class Camera:
    """KITTI's left colour camera.

    Focal length and centre are in pixels, the height above the road in metres.
    """

    width: int = 1242
    height: int = 375
    focal: float = 721.5
    centre: tuple[float, float] = (609.6, 172.9)
    above: float = 1.65

    def rays(self, z: float, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return origins and unit directions (H*W, 3) of the rays through every pixel.

        offset (2,) in [0, 1) is the place inside the pixel.
        """
        u, v = np.meshgrid(np.arange(self.width) + offset[0], np.arange(self.height) + offset[1])
        directions = np.stack(
            [(u - self.centre[0]) / self.focal, (self.centre[1] - v) / self.focal, np.ones_like(u)],
            -1,
        ).reshape(-1, 3)
        origins = np.broadcast_to([0.0, self.above, z], directions.shape)
        return origins, directions / np.linalg.norm(directions, axis=1, keepdims=True)

    def project(self, points: np.ndarray, z: float) -> np.ndarray:
        """Pixels (n, 2) of world points (n, 3) in front of a camera at depth z."""
        depth = np.maximum(points[:, 2] - z, 0.05)
        u = self.focal * points[:, 0] / depth + self.centre[0]
        return np.stack([u, self.centre[1] - self.focal * (points[:, 1] - self.above) / depth], 1)


@dataclass(frozen=True)
class Light:
    """The weather.

    sun: unit direction towards the sun.
    haze: share of light lost per metre.
    seed: of the clouds.
    """

    sun: np.ndarray
    sun_colour: np.ndarray
    sky_colour: np.ndarray
    haze: float
    seed: int

    def sky(self, directions: np.ndarray) -> np.ndarray:
        """Colour (n, 3) of the sky in unit directions (n, 3): a gradient with clouds."""
        up = np.clip(directions[:, 1], 0, 1)[:, None]
        horizon = 0.55 * self.sky_colour + 0.45
        colour = horizon + (self.sky_colour - horizon) * np.minimum(up * 3.5, 1)
        plane = directions[:, [0, 2]] / (up + 0.08)
        cloud = np.clip(fractal_noise(plane * 1.3, self.seed, 5) * 2.4 - 0.9, 0, 1)[:, None]
        return colour + (np.array([1.0, 1.0, 1.02]) - colour) * 0.85 * cloud * np.minimum(
            1, up * 12 + 0.25
        )


def value_noise(points: np.ndarray, seed: int) -> np.ndarray:
    """Return smooth noise in [0, 1] at points (n, 2).

    A lattice cell is one unit wide; the noise repeats after 256 cells.
    """
    cell = np.floor(points)
    t = (points - cell).astype(np.float32)
    t = t * t * (3 - 2 * t)
    (x0, y0), lattice = (cell.astype(np.int64) & 255).T, _lattice(seed)
    x1, y1 = (x0 + 1) & 255, (y0 + 1) & 255
    low, high = (a + (lattice[y, x1] - a) * t[:, 0] for y in (y0, y1) for a in [lattice[y, x0]])
    return low + (high - low) * t[:, 1]


@lru_cache(maxsize=256)
def _lattice(seed: int) -> np.ndarray:
    return np.random.default_rng(seed % 2**32).random((256, 256), np.float32)


def fractal_noise(points: np.ndarray, seed: int, octaves: int) -> np.ndarray:
    """Sum of `octaves` value noises, each twice as fine and half as strong; in [0, 1]."""
    weights = 0.5 ** np.arange(octaves)
    layers = [w * value_noise(points * 2**i, seed + i) for i, w in enumerate(weights)]
    return np.sum(layers, 0) / weights.sum()


class Picture:
    """All parts as one mesh, ready to be looked at."""

    def __init__(self, parts: list[Part]):
        self.parts = parts
        moved = [part.mesh.copy().apply_transform(part.pose) for part in parts]
        self.part_of_face = np.repeat(np.arange(len(parts)), [len(m.faces) for m in moved])
        self.mesh = trimesh.util.concatenate(moved)
        self.normals = self.mesh.face_normals
        around = self.mesh.vertex_normals[self.mesh.faces]
        crease = (around * self.normals[:, None]).sum(2, keepdims=True) < 0.8
        self.corner_normals = np.where(
            crease, self.normals[:, None], around
        )  # round shapes shaded smoothly, edges kept
        self.caster = RayMeshIntersector(self.mesh)

    def first_hits(
        self, origins: np.ndarray, directions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Face index (-1: none) and world point of the first hit of each ray."""
        face = self.caster.intersects_first(origins, directions)
        n, corner = self.normals[face], self.mesh.triangles[face, 0]
        distance = ((corner - origins) * n).sum(1) / np.where(
            np.abs(d := (directions * n).sum(1)) < 1e-9, 1e-9, d
        )
        return face, origins + directions * distance[:, None]

    def colours(
        self, light: Light, origins: np.ndarray, directions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return linear colour (n, 3) and owner (n,) along each ray.

        Owner -1 is the street, -2 the sky.
        """
        colour, owner = light.sky(directions), np.full(len(directions), -2)
        face, points = self.first_hits(origins, directions)
        hit = np.flatnonzero(face >= 0)
        face, points, directions = face[hit], points[hit], directions[hit]
        albedo, mirror, normals = self._surfaces(face, points)
        normals *= -np.sign((normals * directions).sum(1, keepdims=True))
        lit = np.clip(normals @ light.sun, 0, 1)
        facing = np.flatnonzero(lit > 0)
        shadowed = self.caster.intersects_any(
            points[facing] + normals[facing] * 2e-3, np.broadcast_to(light.sun, (len(facing), 3))
        )
        lit[facing[shadowed]] = 0
        ambient = light.sky_colour * (0.34 + 0.2 * normals[:, 1:2]) + 0.03
        shaded = albedo * (light.sun_colour * lit[:, None] + ambient)
        reflected = directions - 2 * (directions * normals).sum(1, keepdims=True) * normals
        shine = (mirror * (0.25 + 0.75 * (1 - np.abs((directions * normals).sum(1))) ** 3))[:, None]
        glint = np.clip(reflected @ light.sun, 0, 1)[:, None] ** 60 * (lit[:, None] > 0) * 3
        shaded += shine * (
            light.sky(reflected) * np.where(reflected[:, 1:2] > 0, 1, 0.25) + glint - shaded
        )
        clear = np.exp(-light.haze * np.linalg.norm(points - origins[hit], axis=1))[:, None]
        colour[hit] = shaded * clear + (0.5 * light.sky_colour + 0.42) * (1 - clear)
        owner[hit] = np.array([part.owner for part in self.parts])[self.part_of_face[face]]
        return colour, owner

    def _surfaces(
        self, face: np.ndarray, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        albedo, mirror = np.zeros_like(points), np.zeros(len(points))
        part = self.part_of_face[face]
        for i in np.unique(part):
            at = np.flatnonzero(part == i)
            inverse = np.linalg.inv(self.parts[i].pose)
            albedo[at], mirror[at] = self.parts[i].surface(
                points[at] @ inverse[:3, :3].T + inverse[:3, 3], points[at]
            )
        return albedo, mirror, self._smooth_normals(face, points)

    def _smooth_normals(self, face: np.ndarray, points: np.ndarray) -> np.ndarray:
        weights = trimesh.triangles.points_to_barycentric(
            self.mesh.triangles[face], points, method="cross"
        )
        smooth = (self.corner_normals[face] * weights[:, :, None]).sum(1)
        return smooth / (np.linalg.norm(smooth, axis=1, keepdims=True) + 1e-9)


def photograph(
    parts: list[Part], light: Light, camera: Camera, z: float, seed: int, samples: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture, uint8 (H, W, 3), and the owner at each pixel (H, W).

    samples: rays a pixel.
    seed: of the sensor noise.
    """
    picture, rng = Picture(parts), np.random.default_rng(seed)
    offsets = (
        np.stack(
            [np.arange(samples), np.arange(samples) * 2 % samples + np.arange(samples) // 2 % 2], 1
        )
        + 0.5
    ) / samples
    total, owner = np.zeros((camera.height * camera.width, 3)), None
    for offset in offsets:
        colour, owner = picture.colours(light, *camera.rays(z, offset))
        total += np.clip(colour, 0, 1.6)
    linear = (total / samples).reshape(camera.height, camera.width, 3)
    electrons = linear * 6000 + rng.normal(0, 1, linear.shape) * np.sqrt(linear * 6000 + 40)
    exposed = 1 - np.exp(-1.35 * np.clip(electrons / 6000, 0, None))
    return np.round(255 * np.clip(exposed * 1.12, 0, 1) ** (1 / 2.2)).astype(
        np.uint8
    ), owner.reshape(camera.height, camera.width)
