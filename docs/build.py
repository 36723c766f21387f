"""Build the site: `python docs/build.py [OUT]`.

Notebooks that the sample profile's runs have executed are copied in. Warnings are errors,
and so are links to files that do not exist.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
EXECUTED = ROOT / "runs" / "sample"
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def broken_links(pages: list[Path]) -> list[str]:
    """`page: link` for every relative link in Markdown whose file does not exist."""
    return [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]


def executed_notebooks(source: Path) -> dict[str, Path]:
    """The finished notebooks of a profile's runs, by their names in notebooks/.

    Of several trainings the last one counts: its notebook shows the others beside it.
    """
    finished = [run.parent for run in source.glob("*/metrics.json")]
    found = sorted(
        (path for run in finished for path in run.glob("*.ipynb")),
        key=lambda path: path.stat().st_mtime,
    )
    return {
        Path(json.loads(path.read_text("utf-8"))["metadata"]["papermill"]["input_path"]).name: path
        for path in found
    }


def copy_notebooks(source: Path, target: Path) -> None:
    """Copy all notebooks to `target`, executed by the runs in `source` where they are."""
    target.mkdir(parents=True, exist_ok=True)
    originals = {path.name: path for path in (ROOT / "notebooks").glob("0*.ipynb")}
    for name, path in (originals | executed_notebooks(source)).items():
        shutil.copy(path, target / name)


def main(arguments: list[str]) -> int:
    """Sphinx's exit code, or 2 with one line a broken link."""
    parser = argparse.ArgumentParser(description="Build the site.")
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "site", help="default: site/")
    out = parser.parse_args(arguments).out
    if broken := broken_links([*DOCS.glob("*.md"), *ROOT.glob("*.md")]):
        print(*(f"no such file: {line}" for line in broken), sep="\n", file=sys.stderr)
        return 2
    source = out / ".source"  # its pictures lie at ../report, as in the repository
    shutil.copytree(DOCS, source, dirs_exist_ok=True)
    shutil.copytree(ROOT / "report" / "pictures", out / "report" / "pictures", dirs_exist_ok=True)
    copy_notebooks(EXECUTED, source / "notebooks")
    return build_main(["-W", "--keep-going", "-q", "-b", "html", str(source), str(out)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
