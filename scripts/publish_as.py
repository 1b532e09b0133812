"""Publish the course as another repository, or under another tag: rewrite every file that says it.

    make publish-as REPOSITORY=owner/name TAG=v0.2.0        (or one of the two)
    python scripts/publish_as.py --repository owner/name --tag v0.2.0

The badges, the Colab cell, the Binder link, the citation and the pages name the repository; Colab
and Binder fetch the tag. What they are now stands in pyproject.toml under [tool.course]. In all
text files that git tracks the new values take the place of these; a tag such as v0.2.0 becomes the
version as well. Git's remote is not touched, and nothing is committed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = re.compile(r"[A-Za-z0-9](-?[A-Za-z0-9])*/[A-Za-z0-9._-]+")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VERSION_TAG = re.compile(r"v(\d+(\.\d+)+((a|b|rc)\d+)?)")
VERSIONED = {
    Path("course_utils/__init__.py"): re.compile(r'(?<=^__version__ = ")[^"]+', flags=re.M),
    Path("CITATION.cff"): re.compile(r"(?<=^version: ).+", flags=re.M),
}


@dataclass(frozen=True)
class Address:
    """Where the course is published: the repository on GitHub, as owner/name, and the tag.

    Raises:
        ValueError: if either is none.
    """

    repository: str
    tag: str

    def __post_init__(self) -> None:
        if not REPOSITORY.fullmatch(self.repository) or self.repository.endswith(".git"):
            raise ValueError(
                f"REPOSITORY is {self.repository!r}. Allowed is owner/name, as the address of the "
                "repository has it after https://github.com/"
            )
        if not TAG.fullmatch(self.tag):
            raise ValueError(
                f"TAG is {self.tag!r}. Allowed are letters, digits, dots, dashes and underscores, "
                "such as TAG=v0.2.0"
            )

    @property
    def named(self) -> re.Pattern[str]:
        """What finds the repository in a text, and no longer name that has it within."""
        return re.compile(rf"(?<![\w.-]){re.escape(self.repository)}(?![\w-])")


def current(root: Path = ROOT) -> Address:
    """Return where the course says that it is published."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return Address(**tomllib.loads(text)["tool"]["course"])


def tracked(root: Path) -> dict[Path, str]:
    """Return the text files that git tracks, by their path in the repository.

    Raises:
        ValueError: if this is no clone made by git.
    """
    command = ["git", "-C", str(root), "ls-files", "-z"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise ValueError(f"git cannot list the files: {done.stderr.strip()} Run this in a clone.")
    texts = {}
    for name in filter(None, done.stdout.split("\0")):
        try:
            texts[Path(name)] = (root / name).read_bytes().decode("utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # no text, or deleted
            continue
    return texts


def replaced(text: str, old: Address, new: Address) -> str:
    """Return a text in which the new repository and tag stand where the old ones stood.

    A tag is one only where something fetches it: elsewhere the same letters may be a library's.
    """
    fetched = rf'--branch |/v2/gh/{re.escape(old.repository)}/|^tag = "'
    tag = re.compile(rf"({fetched}){re.escape(old.tag)}(?![\w.-])", flags=re.M)
    text = tag.sub(lambda found: found[1] + new.tag, text)
    folder = re.escape(old.repository.partition("/")[2])
    entered = re.compile(rf"(git clone .*\n *cd ){folder}(?![\w.-])")
    text = entered.sub(lambda found: found[1] + new.repository.partition("/")[2], text)
    return old.named.sub(new.repository, text)


def rewritten(path: Path, text: str, old: Address, new: Address) -> str:
    """Return what becomes of a file."""
    text = replaced(text, old, new)
    version = VERSION_TAG.fullmatch(new.tag)
    if version and path in VERSIONED:
        text = VERSIONED[path].sub(version[1], text)
    return text


def publish(new: Address, root: Path = ROOT) -> list[Path]:
    """Rewrite the files; return those that changed.

    Raises:
        ValueError: if the new repository is named already: the way back would not be clear.
    """
    old, texts = current(root), tracked(root)
    if new.repository != old.repository:
        there = [path for path, text in texts.items() if new.named.search(text)]
        if there:
            raise ValueError(
                f"{new.repository} is named already, in {there[0]}, as something else than this "
                "course. Give the repository another name."
            )
    changed = {path: rewritten(path, text, old, new) for path, text in texts.items()}
    changed = {path: text for path, text in changed.items() if text != texts[path]}
    for path, text in changed.items():
        (root / path).write_bytes(text.encode("utf-8"))
    return list(changed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repository", default="", help="owner/name on GitHub")
    parser.add_argument("--tag", default="", help="such as v0.2.0")
    options = parser.parse_args(arguments)
    try:
        old = current()
        if not (options.repository or options.tag):
            raise ValueError(
                f"The course is {old.repository} at {old.tag}. To publish it as another: "
                "make publish-as REPOSITORY=owner/name TAG=v0.2.0"
            )
        new = Address(options.repository or old.repository, options.tag or old.tag)
        changed = publish(new)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"The course is {new.repository} at {new.tag} now; {len(changed)} files changed.")
    print(f"Next: make test, commit, and git tag {new.tag}; Colab and Binder fetch that tag.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
