"""roilib.utils.files: which files are pictures; a file is whole or as it was."""

import os

import pytest

from roilib.utils.files import natural_key, picture_files, replacing, visible_files


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


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path):
    path = tmp_path / ("ü" * 124 + ".roic")  # 253 bytes
    write(path, "")
    assert path.read_text() == "whole"


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "a.json"
    path.touch()
    for mode in (0o600, 0o640):
        path.chmod(mode)
        write(path, "")
        assert path.stat().st_mode & 0o777 == mode


def test_hidden_files_are_no_pictures(tmp_path):
    for name in (
        *("a.png", "b.JPG", "sub/c.tiff"),
        *("._a.png", ".hidden.jpg", ".cache/d.png", "sub/._c.tiff", "__MACOSX/._a.png"),
        *("notes.txt", "png"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in picture_files(tmp_path)] == ["a.png", "b.JPG"]
    assert [path.name for path in picture_files(tmp_path, below=True)] == [
        "a.png",
        "b.JPG",
        "c.tiff",
    ]


def test_folders_are_no_files_whatever_their_names(tmp_path):
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "sub.png" / "a.png").touch()
    (tmp_path / "IMG 4.txt").mkdir()
    (tmp_path / "b.png").touch()
    assert picture_files(tmp_path) == [tmp_path / "b.png"]
    assert picture_files(tmp_path, below=True) == [tmp_path / "b.png", tmp_path / "sub.png/a.png"]
    assert visible_files(tmp_path, (".txt",)) == []


def test_a_hidden_folder_may_hold_the_data(tmp_path):
    folder = tmp_path / ".data"
    folder.mkdir()
    (folder / "a.png").touch()
    assert picture_files(folder) == [folder / "a.png"]


@pytest.mark.parametrize(
    "names",
    [
        [f"frame_{i}.png" for i in (1, 2, 9, 10, 11, 100)],
        ["000009.png", "10.png", "000011.png"],
        ["a1b2.png", "a1b10.png", "a2b1.png"],
        ["2011_09_26_1.png", "2011_09_26_12.png", "2011_10_3_5.png"],
        ["7.png", "8.png", "bus.png", "zidane.png"],
        ["frame01.png", "frame1.png", "frame2.png"],  # of equal numbers, by spelling
    ],
)
def test_numbers_in_names_sort_by_value(tmp_path, names):
    for name in reversed(names):
        (tmp_path / name).touch()
    assert [path.name for path in picture_files(tmp_path)] == names
    assert sorted(set(names), key=natural_key) == names
