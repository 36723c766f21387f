"""setup.sh with the real pip, on a small project whose dependency is a wheel beside it.

Nothing comes from a network.
"""

import os
import shutil
import subprocess
import zipfile

import pytest
from conftest import REPOSITORY

BACKEND = '''
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("small-1.0.dist-info/METADATA", """Metadata-Version: 2.1
Name: small
Version: 1.0
Requires-Dist: thing
Provides-Extra: dev
Provides-Extra: streets
""")
        wheel.writestr("small-1.0.dist-info/WHEEL", """Wheel-Version: 1.0
Root-Is-Purelib: true
Tag: py3-none-any
""")
        wheel.writestr("small-1.0.dist-info/RECORD", "")
    return name
'''
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "small"
version = "1.0"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project in a folder with spaces and umlauts, and the wheel that it depends on."""
    folder = tmp_path_factory.mktemp("setup") / "Straße und Weg"
    folder.mkdir()
    shutil.copy(REPOSITORY / "setup.sh", folder)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "constraints.txt").write_text("thing==1.0\n")
    (folder / "wheels").mkdir()
    with zipfile.ZipFile(folder / "wheels" / "thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing.py", "def main():\n    print('whole')\n")
        wheel.writestr(
            "thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"
        )
        wheel.writestr(
            "thing-1.0.dist-info/entry_points.txt", "[console_scripts]\nthing = thing:main\n"
        )
        wheel.writestr(
            "thing-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("thing-1.0.dist-info/RECORD", "")
    return folder


def begin(project, wheels="wheels", flags=""):
    """Source setup.sh, then run what it installed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": wheels,
    }
    words = ["bash", *flags.split(), "-c", ". ./setup.sh && thing"]
    return subprocess.Popen(
        words,
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def source(*arguments):
    """Exit code, last line of the output, and last line of the errors of `begin`."""
    done = begin(*arguments)
    said = [(text.splitlines() or [""])[-1] for text in done.communicate()]
    return done.returncode, *said


@pytest.mark.slow
def test_set_up_fails_goes_on_and_mends_what_was_killed(project):
    marker, nothing = (
        project / ".venv" / "installed",
        "Installing into .venv (several GB the first time) …",
    )
    failed = (
        1,
        nothing,
        f"setup.sh: not all could be installed into {project}/.venv, see above; "
        "the same command goes on",
    )
    for flags in ("", "-eu"):  # as a person sources it, and as the scripts do
        assert source(project, "nowhere", flags) == failed  # no network, no wheel
        assert not marker.exists()
    jobs = [begin(project) for _ in range(2)]
    said = [job.communicate()[0].splitlines() for job in jobs]
    assert sorted(said, key=len) == [
        ["whole"],
        [nothing, "whole"],
    ]  # one at a time, and the other has nothing to do
    assert source(project, "nowhere") == (0, "whole", "")

    (site,) = project.glob(".venv/lib/*/site-packages")
    (site / "thing-1.0.dist-info" / "RECORD").unlink()  # killed while it was installed
    (site / "thing.py").write_text("")
    (project / "constraints.txt").write_text("thing==1.0\nother==1.0\n")
    assert source(project, "nowhere") == failed
    assert not marker.exists()  # what was there before does not count either
    assert source(project)[:2] == (0, "whole")
