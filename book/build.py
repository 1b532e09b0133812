"""Build the pages under build/book from the committed lessons; no lesson is executed.

python book/build.py                  the site, its links checked
python book/build.py --links          the same, and asks every other site that it links to
python book/build.py --output FOLDER  the site in that folder
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import warnings
from pathlib import Path

import matplotlib
from sphinx.cmd.build import build_main

sys.path.insert(0, str(Path(__file__).parent))

import check
import data_pages
import explorers
from stage import ROOT, stage

SITE = ROOT / "build" / "book"


def sphinx(builder: str, source: Path, to: Path) -> None:
    """Run Sphinx on the staged folder; a warning is an error.

    Raises:
        RuntimeError: if Sphinx finds something wrong; it has printed what.
    """
    trees = source.with_name(f"{source.name}-trees")
    # All is read again (-E): of a page that it keeps, Sphinx does not repeat the warnings.
    options = ["-q", "-E", "-n", "-W", "--keep-going", "-b", builder, "-d", str(trees)]
    if code := build_main([*options, str(source), str(to)]):
        raise RuntimeError(
            f"Sphinx ended with {code} and said why above. Correct what it names in book/, in the "
            "lesson or in the docstring, then run make book again."
        )


def build(site: Path, source: Path) -> list[str]:
    """Build the site and return what is wrong with it, a line each; `source` is what Sphinx reads.

    Raises:
        RuntimeError: as `sphinx`.
        ValueError: as `stage.adapt`.
    """
    shutil.rmtree(site, ignore_errors=True)  # a page that is gone must not stay
    stage(source, data_pages.generated(), explorers.still)
    sphinx("html", source, site)
    return check.problems(site)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--links", action="store_true", help="also ask every other site")
    parser.add_argument("--output", type=Path, default=SITE, help="where the site goes")
    options = parser.parse_args()
    site: Path = options.output.resolve()
    source = site.with_name(f"{site.name}-source")
    matplotlib.use("agg")
    warnings.filterwarnings("ignore")  # of the libraries, while autodoc imports them
    started = time.perf_counter()
    try:
        found = build(site, source)
        if options.links:
            sphinx("linkcheck", source, site.with_name(f"{site.name}-links"))
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(found))
    pages = len(check.pages(site))
    print(
        f"{pages} pages in {time.perf_counter() - started:.0f} s, {len(found)} faults. "
        f"Open {os.path.relpath(site / 'index.html')} in a browser."
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
