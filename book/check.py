"""Look at the finished site as a reader without a network would: does everything lead somewhere?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

# What a browser fetches by itself. A link that a reader clicks may lead elsewhere.
FETCHED = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src",
    "audio": "src", "embed": "src", "object": "data", "input": "src",
}  # fmt: skip
FETCHED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "manifest", "search"}
IN_CSS = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")


@cache
def page(path: Path) -> BeautifulSoup:
    """Return a page as a tree."""
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return what a link to a part of a page can name."""
    return frozenset(
        tag[name] for name in ("id", "name") for tag in page(path).find_all(attrs={name: True})
    )


def pages(site: Path) -> list[Path]:
    """Return the pages of a site, without the theme's templates."""
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


def remote(target: str) -> bool:
    """Say whether a target is on another machine."""
    return target.startswith("//") or urlsplit(target).scheme in {"http", "https"}


def fetched(tree: BeautifulSoup) -> Iterator[str]:
    """Yield what a browser fetches to show a page, except what stands in it."""
    for name, attribute in FETCHED.items():
        for tag in tree.find_all(name):
            yield tag.get(attribute, "")
            yield from (part.split()[0] for part in tag.get("srcset", "").split(",") if part)
    for tag in tree.find_all("link"):
        if FETCHED_LINKS & set(tag.get("rel", [])):
            yield tag.get("href", "")
    styles = [tag.get_text() for tag in tree.find_all("style")]
    styles += [tag["style"] for tag in tree.find_all(style=True)]
    for style in styles:
        yield from (a or b for a, b in IN_CSS.findall(style))


def problems(site: Path) -> list[str]:
    """Return what is wrong with a site: a line each, with the page it stands on.

    Broken links and anchors, files that a page needs and that are missing or on another machine,
    pictures without words for those who cannot see them.
    """
    found: list[str] = []
    for path in pages(site):
        tree, name = page(path), path.relative_to(site).as_posix()
        for target in filter(None, fetched(tree)):
            if remote(target):
                found.append(f"{name} fetches {target} from another machine")
            elif not target.startswith(("data:", "#")) and not _file(path, target).is_file():
                found.append(f"{name} needs {target}, which is not there")
        for tag in tree.find_all("a", href=True):
            found += [f"{name} links to {said}" for said in _broken(path, tag["href"])]
        for image in tree.find_all("img"):
            if not image.get("alt", "").strip():
                found.append(f"{name} has a picture without alt text: {image.get('src', '')[:80]}")
    for path in sorted(site.rglob("*.css")):
        name = path.relative_to(site).as_posix()
        for a, b in IN_CSS.findall(path.read_text(encoding="utf-8")):
            target = a or b
            if remote(target):
                found.append(f"{name} fetches {target} from another machine")
            elif not target.startswith(("data:", "#")) and not _file(path, target).is_file():
                found.append(f"{name} needs {target}, which is not there")
    return found


def _file(path: Path, target: str) -> Path:
    return (path.parent / unquote(urlsplit(target).path)).resolve()


def _broken(path: Path, target: str) -> Iterator[str]:
    """Yield what is wrong with a link, if anything."""
    parts = urlsplit(target)
    if parts.scheme or target.startswith("//"):
        return
    file = _file(path, target) if parts.path else path
    if not file.is_file():
        yield f"{target}, which is not there"
    elif parts.fragment and file.suffix == ".html":
        if unquote(parts.fragment) not in anchors(file):
            yield f"{target}, and that page has no such anchor"
