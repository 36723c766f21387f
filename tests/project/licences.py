"""The project's direct and indirect dependencies on this machine, with their licences.

    python tests/project/licences.py

A line has name, version, licence, and why the licence is accepted where it may not be combined with
AGPL-3.0. A licence is what a distribution's metadata, or else its licence file, says. Libraries
that a wheel bundles (such as PyAV's FFmpeg with x264 and x265) are not seen. Exit code 1 where a
licence is neither known to fit nor in LOOKED_AT.
"""

import re
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
FITS = (
    r"\b(MIT|MIT-0|MIT-CMU|Apache|BSD|ISCL?|ISC license|MPL-2\.0|Mozilla Public License 2\.0|"
    r"PSF|PSFL|PSF-2\.0|Python Software Foundation|HPND|"
    r"Unlicense|Zlib|BSL-1\.0|CC0-1\.0|LGPL|L?GPL-3\.0|GPL-3\.0-or-later|GPL-2\.0-or-later|"
    r"AGPL-3\.0|AGPLv3)\b"
)
CLASHES = r"Proprietary|Commercial|GPL-2\.0-only|SSPL|BUSL|CC-BY-NC|Commons-Clause"
BSD_TEXT = "Redistribution and use in source and binary forms"
LOOKED_AT = {  # may not be handed out together with AGPL-3.0 code; why each is accepted
    r"nvidia-.*": "of torch's Linux wheels: free to use, not to be handed out with AGPL code",
    r"cuda-toolkit": "names NVIDIA's CUDA libraries, holds nothing",
}


def closure() -> dict[str, Distribution]:
    """Return all distributions that the project needs on this machine, with all its extras.

    The keys are normalised names. Raises PackageNotFoundError for a missing one.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, done = {}, set()
    extras = chain.from_iterable(project["optional-dependencies"].values())
    waiting = [(Requirement(text), "") for text in (*project["dependencies"], *extras)]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found[name] = found.get(name) or distribution(name)
        for wanted in {"", *requirement.extras} - {e for n, e in done if n == name}:
            done.add((name, wanted))
            waiting += [(Requirement(text), wanted) for text in found[name].requires or []]
    return dict(sorted(found.items()))


def licence(package: Distribution) -> str:
    """Return a distribution's licence in one line.

    "unknown" where neither metadata nor a licence file names it.
    """
    named, text = package.metadata.get("License-Expression"), package.metadata.get("License") or ""
    classifiers = [
        c.rpartition(" :: ")[2]
        for c in package.metadata.get_all("Classifier") or []
        if c.startswith("License ::")
    ]
    short = text.strip() if text.strip() != "UNKNOWN" and "\n" not in text.strip() else ""
    if found := named or short or " OR ".join(classifiers):
        return found
    files = [
        f
        for f in package.files or []
        if f.suffix in ("", ".txt", ".md", ".rst")
        and re.match("licen[cs]e|copying", f.name, re.IGNORECASE)
    ]
    for content in (text, *(f.read_text(encoding="utf-8") for f in files)):
        if match := re.search(FITS, content):
            return f"{match[0]} (by its text)"
        if BSD_TEXT in content:
            return "BSD (by its text)"
    return "unknown"


def doubts(package: Distribution) -> str | None:
    """Return why a distribution may not be combined with AGPL-3.0; None where it may."""
    named = licence(package)
    if re.search(FITS, named) and not re.search(CLASHES, named):
        return None
    return next(
        (
            why
            for name, why in LOOKED_AT.items()
            if re.fullmatch(name, canonicalize_name(package.name))
        ),
        "NOT KNOWN TO FIT",
    )


def main() -> int:
    """Print the table; return 1 where somebody must look at a licence."""
    packages = closure()
    for name, package in packages.items():
        print(
            f"{name} {package.version}: {licence(package)}"
            + (f"    ({why})" if (why := doubts(package)) else "")
        )
    return int(any(doubts(package) == "NOT KNOWN TO FIT" for package in packages.values()))


if __name__ == "__main__":
    sys.exit(main())
