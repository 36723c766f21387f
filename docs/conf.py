"""Sphinx settings of the site; `python docs/build.py` builds it.

Sphinx with MyST-NB, because it is the one maintained generator that reads Markdown, shows executed
notebooks and makes API pages from docstrings, in pure Python and without a network.
"""

import itertools
import re

INDENTED = re.compile(r"^( |- )", re.MULTILINE)  # of a docstring: what stays as it is typed

project = "ROI-aware neural image compression"
author = "The roilib authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = project
exclude_patterns = ["_build", "build.py"]

nb_execution_mode = "off"  # notebooks come executed from a run
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
suppress_warnings = [
    "myst.xref_missing",  # links to files of the repository, which build.py checks itself
    "mystnb.unknown_mime_type",  # live widgets, which a page cannot show
    "misc.highlighting_failure",
]


def as_written(app, what, name, obj, options, lines):
    """Show a docstring as it is written: paragraphs as text, all that is indented as it stands."""
    blocks, lines[:] = filter(None, "\n".join(lines).split("\n\n")), []
    for fixed, group in itertools.groupby(blocks, lambda block: bool(INDENTED.search(block))):
        if fixed:  # diagrams, formulas, arguments
            rows = "\n\n".join(group).splitlines()
            lines += [".. code-block:: text", "", *(f"   {row}" for row in rows), ""]
        else:
            lines += itertools.chain(*((text(" ".join(b.splitlines())), "") for b in group))


def text(paragraph):
    """Return a paragraph of a docstring in reST, in which only `names` are marked."""
    plain = [re.sub(r"([*_|<>\\])", r"\\\1", part) for part in paragraph.split("`")[::2]]
    names = [rf"\ ``{part}``\ " for part in paragraph.split("`")[1::2]]
    mixed = itertools.chain(*itertools.zip_longest(plain, names, fillvalue=""))
    return r"\ " + "".join(mixed)  # the first two characters: no list begins here


def setup(app):
    """Connect `as_written`."""
    app.connect("autodoc-process-docstring", as_written)
