"""What tests share: processes, servers, a real kernel, a copy of the course, broken files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import KernelManager

from course_utils.paths import COURSE_ROOT

# As the Makefile has it, and without bars that redraw themselves.
QUIET = {
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
PARTS = ("course_utils", "preflight", "data", "notebooks", "requirements.txt", "constraints.txt")
LEFT_OUT = ("__pycache__", "runs", "capacity", ".making")
# What PEFT says of a model that has an adapter already, and gets a second one.
SECOND_ADAPTER = ("second time", "multiple adapters")
# The weekly run repeats more (make test-long MANY=1); two kills show what twenty do.
MANY = bool(os.environ.get("MANY"))
KILLS = 20 if MANY else 2
PATIENCE = 300  # seconds; the longest that a cell may take
# The arguments of a training that needs no GPU and prints, saves and reports nothing.
CALM = {
    "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True,
    "save_strategy": "no",
}  # fmt: skip


def python(
    *arguments: object, cwd: Path = COURSE_ROOT, check: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run this Python in a process of its own, and return what came of it."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd, env=os.environ | variables, capture_output=True, encoding="utf-8", check=check,
    )  # fmt: skip


class QuietHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD as a subclass says, and prints nothing."""

    def answer(
        self, status: int, content: bytes = b"", *, cut: bool = False, **headers: str
    ) -> None:
        """Send an answer, if asked only half of it; in the names of headers, _ stands for -."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def served(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[tuple[str, Any]]:
    """Serve on this machine; yield the address and the server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server
        finally:
            server.shutdown()


def shown_text(html: str) -> str:
    """Return HTML as the reader sees it."""
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)))


@dataclass
class Ran:
    """What a cell gave: its text, how often it changed a display, its error's name and message."""

    text: str = ""
    error: str = ""
    updates: int = 0


class Kernel:
    """A kernel of a process of its own, spoken to as JupyterLab does."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.manager = KernelManager()
        self.manager.kernel_spec.argv[0] = sys.executable
        self.manager.start_kernel(cwd=str(folder), env=os.environ | QUIET | variables)
        self._connect()

    def _connect(self) -> None:
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)

    def run(self, source: str, interrupt_at: str = "") -> Ran:
        """Run a cell; once it has printed `interrupt_at` it is interrupted."""
        ran, interrupted = Ran(), not interrupt_at

        def note(message: dict[str, Any]) -> None:
            nonlocal interrupted
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                ran.text += content["text"]
            elif kind in ("display_data", "execute_result"):
                ran.text += content["data"].get("text/plain", "")
            elif kind == "update_display_data":
                ran.updates += 1
            elif kind == "error":
                ran.error = f"{content['ename']}: {content['evalue']}"
            if not interrupted and interrupt_at in ran.text:
                self.manager.interrupt_kernel()  # what the button with the square does
                interrupted = True

        self.client.execute_interactive(
            source, allow_stdin=False, timeout=PATIENCE, output_hook=note
        )
        assert interrupted, f"it never printed {interrupt_at!r}, but {ran}"
        return ran

    def well(self, source: str) -> Ran:
        """Run a cell that has to end without an error."""
        ran = self.run(source)
        assert not ran.error, f"{ran.error}\nin:\n{source}\n{ran.text}"
        return ran

    def restart(self) -> None:
        """Restart the kernel as the menu does."""
        self.client.stop_channels()
        self.manager.restart_kernel(now=True)
        self._connect()

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@contextmanager
def kernel(folder: Path, **variables: str) -> Iterator[Kernel]:
    """A kernel in a folder, which is stopped in the end."""
    one = Kernel(folder, **variables)
    try:
        yield one
    finally:
        one.stop()


def code_cells(lesson: str, root: Path = COURSE_ROOT) -> list[str]:
    """Return the sources of a lesson's code cells, without the one that is for Colab alone."""
    (path,) = (root / "notebooks").glob(f"{lesson}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    return [c.source for c in cells if c.cell_type == "code" and "google.colab" not in c.source]


def copy_course(folder: Path) -> Path:
    """Copy what a lesson and the command line need, and return the folder."""
    for part in PARTS:
        source = COURSE_ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / part)
    return folder


def everything(root: Path) -> dict[str, tuple[int, int]]:
    """Return each file under a folder with its size and time, but for Python's own cache."""
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "cut to its first bytes": lambda whole: whole[:3],
    "cut in half": lambda whole: whole[: len(whole) // 2],
    # What a file system leaves that had its length, but not yet its blocks.
    "zeros from the half on": lambda whole: whole[: len(whole) // 2] + bytes(-(-len(whole) // 2)),
    "other bytes at its start": lambda whole: b"\0\xff\xfe" * 30 + whole[90:],
}
