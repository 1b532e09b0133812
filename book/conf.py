"""How Sphinx builds the pages. `make book` runs it on the folder that build.py puts together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

sys.path.insert(0, str(Path(__file__).parent))

from stage import BRANCH, REPOSITORY

from course_utils import __version__

project = "Fine-tune language models, measured"
author = "the authors of the course"
copyright = f"{author}, Apache-2.0"
release = version = __version__
language = "en_GB"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "mathml",
]
exclude_patterns = ["_build"]
nitpicky = True
# The libraries' own objects are documented elsewhere, and a build without a network cannot look.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!(course_utils|preflight)\.).*"),
]
# Links to other sites are checked once a week, by `python book/build.py --links`.
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False  # most are made by scripts
linkcheck_ignore = [
    r"https://colab\.research\.google\.com/github/",  # answers only to a browser
    r"https://mybinder\.org/v2/",  # starts a machine
    r"http://127\.0\.0\.1",
]

# The outputs are those of the committed notebooks.
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, Any] = {}
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# Backticks in docstrings mean code.
default_role = "code"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"
html_title = project
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_favicon = "_static/icon.svg"
html_context = {"default_mode": "auto"}
html_last_updated_fmt = None
html_show_sphinx = False
html_copy_source = False
html_theme_options: dict[str, Any] = {
    "repository_url": REPOSITORY,
    "repository_branch": BRANCH,
    "path_to_docs": "",
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": False,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the side bar has a search already
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "launch_buttons": {
        "notebook_interface": "jupyterlab",
        "colab_url": "https://colab.research.google.com",
        "binderhub_url": "https://mybinder.org",
    },
}


def _by_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contents: nodes.TextElement
) -> nodes.reference | None:
    """Find an object that is documented where it is imported from, not where it is defined."""
    package, _, rest = node["reftarget"].partition(".")
    if package not in ("course_utils", "preflight") or not rest:
        return None
    python = env.get_domain("py")
    floor, name = rest.partition(".")[0], rest.rpartition(".")[2]
    found = [path for path in python.objects if path.rpartition(".")[2] == name]
    same = [path for path in found if path.split(".")[1] == floor] or found
    if len(same) != 1:
        return None
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", same[0], node, contents)


def setup(app: Sphinx) -> None:
    """Connect what Sphinx has no setting for."""
    app.connect("missing-reference", _by_short_name)
