"""What to ask before a GPU is rented, or an adapter shipped: ``python -m preflight COMMAND``.

Used by lessons: none.
"""

from __future__ import annotations

import argparse
import sys

from course_utils.__main__ import run, utf8_pipes
from preflight.commands import add_commands, add_training


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code: 0 fine, 1 found something, 2 could not run."""
    parser = argparse.ArgumentParser(
        prog="python -m preflight", description=__doc__.partition("\n")[0]
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    add_commands(commands)
    add_training(commands)
    return run(parser, arguments)


if __name__ == "__main__":
    utf8_pipes()
    sys.exit(main())
