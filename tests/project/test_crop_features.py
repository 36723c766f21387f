"""benchmarks/crop_features.py: a crop that is the whole frame has the frame's features."""

import json

import crop_features
import numpy as np
import pytest
from conftest import REPOSITORY, street
from PIL import Image

from roilib.datasets.dataset import RoiDataset
from roilib.datasets.folder import folder_samples


def test_only_crops_that_lack_surroundings_differ(tmp_path):
    scene = np.tile(street(0), (2, 2, 1))
    for name, side in (("whole", 128), ("part", 192)):
        (tmp_path / name).mkdir()
        Image.fromarray(scene[:side, :side]).save(tmp_path / name / "0.png")
    whole, part = (
        crop_features.differences(RoiDataset(*folder_samples(tmp_path / name)), 1, [128, 256])
        for name in ("whole", "part")
    )
    assert [row["side"] for row in whole] == [128, 256]
    assert all(whole[0][layer] == pytest.approx(0, abs=0.01) for layer in ("15", "18", "21"))
    assert all(whole[1][layer] > 5 for layer in ("15", "18", "21"))
    assert all(part[0][layer] > 5 for layer in ("15", "18", "21"))


def test_a_folder_that_is_not_kitti_is_named(tmp_path, capsys):
    assert crop_features.main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_the_docs_say_what_was_measured():
    folder = REPOSITORY / "report" / "results" / "reference" / "paper"
    measured = json.loads((folder / "crop_features.json").read_text())
    text = " ".join((REPOSITORY / "docs" / "results.md").read_text().split())
    assert f"over {measured['crops']} crops" in text
    for row in measured["rows"]:
        first, second, third = (f"{row[layer]:.0f}" for layer in ("15", "18", "21"))
        assert f"{first}, {second} and {third} %" in text
