"""roilib.utils.pretrained: whole files only."""

from pathlib import Path

import pytest

from roilib.utils import pretrained as module
from roilib.utils.pretrained import FOLDERS, SUMS, pretrained

ROOT = Path(__file__).parent.parent.parent


def test_every_weights_file_has_its_sum():
    files = {
        path.name
        for path in (ROOT / "data" / "weights").iterdir()
        if path.suffix in (".pt", ".safetensors")
    }
    assert files == {
        line.split()[1] for line in (ROOT / "data" / "weights" / SUMS).read_text().splitlines()
    }
    for name in files:
        assert pretrained(name) == FOLDERS[1] / name


def test_a_changed_or_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FOLDERS", (tmp_path,))
    pretrained.cache_clear()
    (tmp_path / SUMS).write_text("0" * 64 + "  a.pt\n")
    (tmp_path / "a.pt").write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"a\.pt: not the pretrained file"):
        pretrained("a.pt")
    with pytest.raises(ValueError, match=r"b\.pt: No such file"):
        pretrained("b.pt")
    pretrained.cache_clear()
