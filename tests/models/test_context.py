"""roilib.models.context: integers say what the float networks see."""

import pytest
import torch

from roilib.models.context import (
    CONTEXT_UNIT,
    MEAN_UNIT,
    PATTERNS,
    VALUE_SCALE,
    magnitude_table,
    pass_map,
    stored_magnitudes,
    stored_values,
    values,
)
from roilib.models.integer.networks import MAX, ZERO


def test_magnitudes_are_exact_logarithms():
    table, one = magnitude_table(), round(1 / MEAN_UNIT)
    exact = torch.log2(1 + torch.arange(len(table), dtype=torch.float64) / one) / CONTEXT_UNIT
    assert (exact - (table.double() - ZERO)).abs().max() <= 0.5
    assert table.max() <= MAX
    y_hat = torch.tensor(
        [0, -1, 640, -640, len(table) - 1, len(table), -(2**30)], dtype=torch.int32
    )
    assert stored_magnitudes(y_hat).tolist() == table[[0, 1, 640, 640, -1, -1, -1]].tolist()


@pytest.mark.parametrize("count", PATTERNS)
def test_passes_code_every_cell_once_beside_known_ones(count):
    numbers = pass_map(count, 5, 7)
    assert numbers.shape == (5, 7)
    assert numbers.unique().tolist() == list(range(count))
    padded = torch.nn.functional.pad(numbers, (1, 1, 1, 1), value=count)
    sides = torch.stack([padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]])
    corners = torch.stack([padded[:-2, :-2], padded[:-2, 2:], padded[2:, :-2], padded[2:, 2:]])
    for number in range(1, count):
        neighbours = corners if count == 3 and number == 1 else sides
        assert (neighbours[:, numbers == number].clamp(max=count) != number).all()
        inside = (neighbours[:, numbers == number] < count).all(0)
        assert (neighbours[:, numbers == number][:, inside] < number).all(), (
            "a pass knows all its neighbours from earlier ones"
        )


def test_stored_values_are_to_the_nearest_and_keep_their_sign():
    y_hat = torch.tensor([0.0, 0.125, 1.0, 1.1, 31.75, 33.0, 100.0, 253.0, 1e4])
    for sign in (1, -1):
        small, rest = stored_values((sign * y_hat / MEAN_UNIT).int()[:, None]).int().T * sign
        assert small.tolist() == [0, 1, 4, 4, 127, 127, 127, 127, 127]
        assert rest.tolist() == [0, 0, 0, 0, 0, 1, 34, 111, 127]
    assert torch.allclose(sum(values(y_hat[None]).chunk(2, 1)) * VALUE_SCALE, y_hat)
