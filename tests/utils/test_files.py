"""roilib.utils.files: a file is whole or as it was."""

import os

import pytest

from roilib.utils.files import replacing


def write(path, content):
    with replacing(path) as temporary:
        assert not temporary.exists()
        temporary.write_text("half")
        temporary.write_text("whole" + content)


def test_a_file_appears_when_it_is_whole_and_stays_when_that_fails(tmp_path):
    path = tmp_path / "a.json"
    write(path, "")
    with pytest.raises(TypeError):
        write(path, None)  # when half is written
    assert path.read_text() == "whole"
    with pytest.raises(FileNotFoundError, match="folder"):
        write(tmp_path / "no" / "folder", "")
    with pytest.raises(FileNotFoundError, match=r"a\.json"), replacing(path):
        pass  # nothing was written
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "whole"


def test_links_stay_and_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "")
    assert (tmp_path / "real").read_text() == "whole"
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        write(tmp_path / "pipe", "")
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(IsADirectoryError):
        write(tmp_path, "")
