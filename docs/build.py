"""Build the site: `python docs/build.py [OUT]`; default OUT is `site/`.

Executed notebooks of the newest sample run are copied in where there are some. Warnings are errors,
and so are links to files that do not exist.
"""

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


def copy_notebooks(source: Path, target: Path) -> list[Path]:
    """Copy executed notebooks `NN_name.ipynb` below `source`; of several trainings the first."""
    target.mkdir(parents=True, exist_ok=True)
    originals = {path.name: path for path in (ROOT / "notebooks").glob("0*.ipynb")}
    for path in sorted(source.rglob("0*.ipynb")):
        originals[path.name] = path
    return [Path(shutil.copy(path, target / name)) for name, path in sorted(originals.items())]


def main(arguments: list[str]) -> int:
    """Sphinx's exit code, or 2 with one line a broken link."""
    out = Path(arguments[0]) if arguments else ROOT / "site"
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
