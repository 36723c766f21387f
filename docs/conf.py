"""Sphinx settings of the site; `python docs/build.py` builds it.

Sphinx with MyST-NB, because it is the one maintained generator that reads Markdown, shows executed
notebooks and makes API pages from docstrings, in pure Python and without a network.
"""

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
    """Show a docstring as it is written: its diagrams and formulas are plain text, not reST."""
    if lines:
        lines[:] = ["::", "", *(f"   {line}" for line in lines), ""]


def setup(app):
    """Connect `as_written`."""
    app.connect("autodoc-process-docstring", as_written)
