"""Files that are there whole or not at all.

Used by lessons: all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or as it was, whenever the process may be killed.

    Raises:
        OSError: if it cannot be written, say for a full disk; what stood there is as it was.
    """
    with whole(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to; what is written there takes the file's name when the block ends.

    After an error, or if the process is killed, the file is as it was.

    Raises:
        OSError: if it cannot be written, say for a full disk.
    """
    part = path.with_name(f"{path.name}.part")  # one that a killed process left is written over
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise not_written(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def not_written(error: OSError, path: Path) -> OSError:
    """Return an error of the same kind that says what could not be written, and what to do.

    A full disk's own error names no file.
    """
    return OSError(
        error.errno,
        f"'{path}' cannot be written: {error.strerror or error}. What stood there is as it was. "
        "Free some space, or choose a folder that you may write to; then start again.",
    )
