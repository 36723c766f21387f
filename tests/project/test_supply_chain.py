"""What is installed beside roilib: pinned, and under licences that go with its own."""

from importlib.metadata import Distribution

import licences
from conftest import REPOSITORY
from packaging.utils import canonicalize_name
from packaging.version import Version

CONSTRAINTS = REPOSITORY / "constraints.txt"


def pins():
    lines = [line.split("==") for line in CONSTRAINTS.read_text().splitlines() if line]
    return {canonicalize_name(name): version for name, version in lines}


def test_every_package_is_pinned_at_the_version_that_is_installed():
    installed = {
        name: Version(package.version).public for name, package in licences.closure().items()
    }
    pinned = pins()
    assert len(installed) > 150  # not just the direct ones
    assert {name: pinned.get(name) for name in installed} == installed


def test_nothing_is_pinned_twice():
    assert len(pins()) == len([line for line in CONSTRAINTS.read_text().splitlines() if line])


def test_every_licence_goes_with_agpl_or_was_looked_at():
    assert not {
        name: licences.licence(p)
        for name, p in licences.closure().items()
        if licences.doubts(p) == "NOT KNOWN TO FIT"
    }


def package(folder, metadata, licence=None):
    """A distribution with this metadata, and a licence file."""
    info = folder / "thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: thing\nVersion: 1.0\n{metadata}")
    (info / "LICENSE").write_text(licence or "")
    (info / "RECORD").write_text("thing-1.0.dist-info/LICENSE,,\n")
    return Distribution.at(info)


def test_licences_are_read_and_judged(tmp_path):
    cases = {
        "License-Expression: MIT": ("MIT", True),
        "License-Expression: Apache-2.0 AND LicenseRef-NVIDIA-Proprietary": (
            "Apache-2.0 AND LicenseRef-NVIDIA-Proprietary",
            False,
        ),
        "License: UNKNOWN\nClassifier: License :: OSI Approved :: BSD License": (
            "BSD License",
            True,
        ),
        "License: GPL-2.0-only": ("GPL-2.0-only", False),
        "Classifier: License :: Other/Proprietary License": ("Other/Proprietary License", False),
        "": ("unknown", False),
    }
    for i, (metadata, (named, fits)) in enumerate(cases.items()):
        (tmp_path / str(i)).mkdir()
        thing = package(tmp_path / str(i), metadata)
        assert (licences.licence(thing), licences.doubts(thing) is None) == (named, fits)
    (tmp_path / "text").mkdir()
    assert (
        licences.licence(package(tmp_path / "text", "", "MIT License\n\nCopyright somebody"))
        == "MIT (by its text)"
    )
