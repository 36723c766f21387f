"""roilib.roi: λ and α as maps of integers."""

import math
import sys

import numpy as np
import pytest

from roilib.roi import (
    ALPHA_ONE,
    LMBDA_LEAST,
    LMBDA_MAX,
    LMBDA_MIN,
    Q_FLOOR,
    Q_MAX,
    alpha_index,
    cell_means,
    draw,
    importance_map,
    integer_boxes,
    lmbda_of,
    quality_index,
    quality_map,
    quality_table,
    roi_mask,
)


def test_indices_cover_the_range_in_steps_of_a_sixty_fourth_octave():
    assert float(lmbda_of(0)) == LMBDA_LEAST
    assert quality_index(LMBDA_MIN) == Q_FLOOR == 128
    assert quality_index(LMBDA_MAX) == Q_MAX == 654
    for lmbda in (0.0004, 0.0013, 0.012, 0.05, 0.12):
        assert float(lmbda_of(quality_index(lmbda))) == pytest.approx(
            lmbda, rel=2 ** (1 / 128) - 1 + 6e-3
        )
    for wrong in (0.0003, 0.2, math.nan):
        with pytest.raises(ValueError, match="lmbda"):
            quality_index(wrong)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="alpha"):
            alpha_index(wrong)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 0.995, 1.0])
def test_a_table_holds_contract_5(alpha):
    """λ = lmbda * 2 (α m + (1-α)(1-m)), clamped."""
    table = quality_table(quality_index(0.012), alpha_index(alpha))
    m = np.arange(256) / 255
    wanted = np.clip(0.012 * 2 * (alpha * m + (1 - alpha) * (1 - m)), LMBDA_MIN, LMBDA_MAX)
    assert np.abs(64 * np.log2(lmbda_of(table) / wanted)).max() < 2
    assert (np.diff(table) >= 0).all() if alpha >= 0.5 else (np.diff(table) <= 0).all()


def test_alpha_one_half_is_uniform_and_alpha_one_keeps_a_floor():
    assert set(quality_table(300, ALPHA_ONE // 2)) == {300}
    table = quality_table(300, ALPHA_ONE)
    assert (table[0], table[255]) == (Q_FLOOR, 364)


def test_below_the_floor_the_background_keeps_lambda_itself():
    table = quality_table(50, alpha_index(0.9))
    assert table[0] == 50
    assert table[255] == pytest.approx(50 + 64 * math.log2(1.8), abs=1)


def test_no_boxes_means_uniform_quality_whatever_alpha_says():
    for alpha in (0, ALPHA_ONE // 2, ALPHA_ONE):
        assert set(
            quality_map(np.zeros((0, 5), np.int64), (30, 50), (64, 64), 200, alpha).ravel()
        ) == {200}


def test_floor_log2_is_exact():
    from roilib.roi import floor_log2

    for value in (1, 2, 3, 255, 2**14 * 255, 2**24 - 1):
        exact = floor_log2(value)
        assert 2**exact <= value**64 < 2 ** (exact + 1)


def test_cells_take_their_share_of_a_box():
    boxes = np.array([[8, 0, 32, 16, 255]])
    importance = importance_map(boxes, 16, 48)
    assert cell_means(importance).tolist() == [[128, 255, 0]]
    assert importance[:, 8:32].min() == 255
    assert importance.sum() == 255 * 24 * 16


def test_the_highest_importance_wins_where_boxes_overlap():
    low, high = [0, 0, 16, 16, 80], [8, 8, 16, 16, 200]
    for boxes in ([low, high], [high, low]):
        importance = importance_map(np.array(boxes), 16, 16)
        assert (importance[10, 10], importance[2, 2]) == (200, 80)


def test_padding_repeats_the_pictures_edge():
    table = quality_table(300, alpha_index(0.9))
    cells = quality_map(np.array([[20, 0, 30, 10, 255]]), (10, 30), (64, 64), 300, alpha_index(0.9))
    assert (cells[:, 2:] == table[255]).all()
    assert (cells[:, 0] == table[0]).all()


def test_boxes_become_the_pixels_they_touch():
    boxes = [[-5.5, 1.2, 3.1, 9.9], [20, 20, 40, 30], [99, 0, 120, 5], [3, 3, 3, 8]]
    assert integer_boxes(boxes, 25, 50).tolist() == [[0, 1, 4, 10, 255], [20, 20, 40, 25, 255]]
    assert integer_boxes([[1, 1, 2, 2, 0.5]], 9, 9).tolist() == [[1, 1, 2, 2, 128]]
    assert integer_boxes(np.zeros((0, 4)), 9, 9).shape == (0, 5)


def test_training_draws_uniform_labelled_and_random_pictures_over_the_whole_range():
    own = np.array([[40.0, 40, 90, 80]])
    drawn = [draw(np.random.default_rng(seed), own, 128) for seed in range(600)]
    kinds = [
        "none" if not len(b) else "own" if b[0, :4].tolist() == [40, 40, 90, 80] else "random"
        for b, _, _ in drawn
    ]
    assert all(150 < kinds.count(kind) < 250 for kind in ("none", "own", "random"))
    qualities = np.array([quality for _, quality, _ in drawn])
    assert np.histogram(qualities, 4, (Q_FLOOR, Q_MAX))[0].min() > 100
    assert 10 < (qualities < Q_FLOOR).sum() < 60
    assert all(0 < alpha <= ALPHA_ONE for _, _, alpha in drawn)
    assert {
        len(draw(np.random.default_rng(seed), np.zeros((0, 4)), 128)[0]) > 0 for seed in range(30)
    } == {True, False}
    assert all((b[:, 4] <= 255).all() and (b[:, 2:4] <= 128).all() for b, _, _ in drawn)


def test_every_batch_has_all_rates():
    own, edges = np.array([[40.0, 40, 90, 80]]), np.linspace(Q_FLOOR, Q_MAX + 1, 9)
    for step in range(50):
        drawn = np.array(
            [
                draw(np.random.default_rng((step, place)), own, 128, place, 8)[1]
                for place in range(8)
            ]
        )
        assert all(
            quality < Q_FLOOR or (low <= quality + 1 and quality <= high)
            for quality, low, high in zip(drawn, edges, edges[1:], strict=False)
        )


def test_the_map_needs_no_torch():
    assert "torch" not in vars(sys.modules["roilib.roi"])


def cells(boxes, height=6, width=8):
    mask = roi_mask(np.array(boxes), height, width)
    assert (mask.dtype, mask.shape) == (bool, (height, width))
    return {tuple(place) for place in np.argwhere(mask).tolist()}


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((1, 2, 4, 5), range(2, 5), range(1, 4)),  # whole pixels: x1 and y1 excluded
        ((1.2, 2.9, 4.1, 4.1), range(2, 5), range(1, 5)),  # every pixel touched
        ((2.4, 3.4, 2.6, 3.6), range(3, 4), range(2, 3)),  # smaller than a pixel
        ((0, 0, 8, 6), range(6), range(8)),
        ((-5, -5, 2, 1), range(1), range(2)),
        ((6, 4, 99, 99), range(4, 6), range(6, 8)),
        ((-9, 1, -2, 3), (), ()),
        ((8, 0, 12, 6), (), ()),
        ((2, -4, 5, -0.5), (), ()),
    ],
)
def test_mask_covers_what_a_box_touches(box, rows, columns):
    assert cells([box]) == {(y, x) for y in rows for x in columns}


def test_mask_is_the_union_and_ignores_importance():
    assert cells([(0, 0, 2, 2, 0.1), (1, 1, 3, 3, 1.0)]) == cells([(0, 0, 2, 2)]) | cells(
        [(1, 1, 3, 3)]
    )


def test_no_boxes_are_an_empty_mask():
    assert not roi_mask(np.zeros((0, 4), np.float32), 4, 5).any()
