"""scenes, actors and render: the same street every time, boxes that fit, things that move."""

import numpy as np
import pytest

from actors import Actor
from render import Camera, photograph
from roilib.datasets.kitti import KITTI_CLASSES
from scenes import Street
from surfaces import ROAD_CENTRE

SMALL = Camera(414, 125, 240.5, (203.2, 57.6))  # KITTI's camera at a third of its size
ACTORS = [
    Actor("Car", ROAD_CENTRE - 1.5, 9.0, np.pi, 8.0, seed=5),
    Actor("Van", 1.2, 15.0, 0.0, 0.0, seed=6),
    Actor("Pedestrian", ROAD_CENTRE + 1.2, 12.0, 0.3, 1.2, seed=7),
    Actor("Cyclist", 3.4, 10.0, 0.1, 4.0, seed=8),
    Actor("Car", 2.5, 3.0, 0.0, 0.0, seed=9),  # cut off by the picture's corner
]


def bare(actors, camera=SMALL):
    """A street of nothing but ground and these actors."""
    street = Street(3, camera)
    street.scenery, street.actors = street._ground(), list(actors)
    return street


def visible(street, time):
    """The owner of every pixel, by the same rays that the picture is made of."""
    parts = [part for i, actor in enumerate(street.actors) for part in actor.parts(time, i)]
    return photograph(parts, street.light, street.camera, street.speed * time, seed=0, samples=1)[1]


@pytest.fixture(scope="module")
def frames():
    """Two moments of one whole street."""
    street = Street(3, SMALL)
    return [street.frame(time, samples=1) for time in (0.0, 0.5)]


@pytest.mark.slow
def test_a_street_follows_from_its_seed(frames):
    for a, b in zip(frames[0], Street(3, SMALL).frame(0.0, samples=1), strict=True):
        np.testing.assert_array_equal(a, b)
    other = Street(4, SMALL).frame(0.0, samples=1)[0]
    assert np.abs(other.astype(int) - frames[0][0]).mean() > 10


@pytest.mark.slow
def test_a_drive_moves(frames):
    (before, _, boxes_before), (after, _, boxes_after) = frames
    assert np.abs(before.astype(int) - after).mean() > 3
    assert len(boxes_before) >= 3
    assert {tuple(box) for box in boxes_before}.isdisjoint(tuple(box) for box in boxes_after)


@pytest.mark.slow
def test_a_frame_is_a_labelled_picture(frames):
    for picture, kinds, boxes in frames:
        assert (picture.dtype, picture.shape) == (np.uint8, (125, 414, 3))
        assert picture.std() > 30
        assert boxes.shape == (len(kinds), 4)
        assert set(kinds) <= set(KITTI_CLASSES)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= (414, 125)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("time", [0.0, 0.1])
def test_boxes_are_exact(time):
    street = bare(ACTORS)
    _, kinds, boxes = street.frame(time, samples=1)
    assert kinds == [actor.kind for actor in ACTORS]
    owner = visible(street, time)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        rows, columns = np.nonzero(owner == i)
        outline = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        reach = (outline - (x0, y0, x1, y1)) * (
            1,
            1,
            -1,
            -1,
        )  # how far each side of the box is outside the object
        assert reach.min() > -0.51, (kinds[i], reach)  # a pixel is seen at its centre
        assert reach.max() < 1.5, (kinds[i], reach)


def test_boxes_follow_what_moves():
    street = bare(ACTORS)
    boxes = [street.frame(time, samples=1)[2] for time in (0.0, 0.2)]
    widths = [b[:, 2] - b[:, 0] for b in boxes]
    assert widths[1][0] > 1.3 * widths[0][0]  # the oncoming car
    assert widths[1][1] > widths[0][1]  # the parked van that the camera drives towards


def test_what_cannot_be_seen_has_no_box():
    van = Actor("Van", 0.0, 8.0, 0.0, 0.0, seed=1)
    hidden, behind, far = (
        Actor("Pedestrian", 0.0, z, 0.0, 0.0, seed=2) for z in (14.0, -3.0, 105.0)
    )
    assert bare([van, hidden, behind, far]).frame(samples=1)[1] == ["Van"]
    assert bare([hidden]).frame(samples=1)[1] == ["Pedestrian"]
    assert bare([behind, far]).frame(samples=1)[2].shape == (0, 4)


def test_rays_go_where_points_are_seen():
    camera = Camera()
    origins, directions = camera.rays(z=7.0, offset=np.array([0.25, 0.75]))
    chosen = np.array([0, 1241, 1242 * 200 + 600, 1242 * 375 - 1])
    pixels = camera.project(origins[chosen] + 20 * directions[chosen], z=7.0)
    np.testing.assert_allclose(
        pixels, [(0.25, 0.75), (1241.25, 0.75), (600.25, 200.75), (1241.25, 374.75)], atol=1e-6
    )
