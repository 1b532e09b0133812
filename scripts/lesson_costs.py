"""What a lesson takes of time and memory, and the record of it in data/results/lessons.json."""

from __future__ import annotations

import datetime
import json
import threading
from pathlib import Path
from typing import Any

import psutil
from nbclient import NotebookClient

from course_utils import hardware
from course_utils.files import write_whole

COSTS = Path(__file__).resolve().parent.parent / "data" / "results" / "lessons.json"
SCHEMA = 2
PAUSE = 1.0  # seconds between two readings of a lesson's memory


def memory(process: psutil.Process) -> tuple[int, int]:
    """Return a process tree's memory in bytes: its share (PSS), and what it alone has (USS).

    PSS splits a page that several processes map, such as the code of torch, among them, so that the
    sum over processes is what the machine spends. Where the system does not count it (macOS,
    Windows), USS stands for both.
    """
    share = alone = 0
    for one in (process, *process.children(recursive=True)):
        try:
            info = one.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        share += getattr(info, "pss", info.uss)
        alone += info.uss
    return share, alone


class Peak(threading.Thread):
    """Follows, while it is entered, the memory that a client's kernel has for itself.

    `bytes` is the highest reading, of the kernel and all that it started.
    """

    def __init__(self, client: NotebookClient) -> None:
        super().__init__(daemon=True)
        self.client, self.bytes, self._done = client, 0, threading.Event()

    def run(self) -> None:
        while not self._done.wait(PAUSE):
            try:
                process = psutil.Process(self.client.km.provisioner.pid)
                self.bytes = max(self.bytes, memory(process)[1])
            except (AttributeError, psutil.Error):  # not started yet, or gone
                continue

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self.join()


def described_machine(machine: hardware.Machine) -> str:
    """Return what a record says of the machine on which it was made."""
    return f"{machine.name}, {machine.cores} cores, {machine.ram:.0f} GiB"


def recorded() -> dict[str, Any]:
    """Return what the lessons took when it was last recorded."""
    return json.loads(COSTS.read_text(encoding="utf-8"))


def record(lessons: dict[str, tuple[float, int]], jobs: int) -> None:
    """Write what the lessons took, all of one run: seconds, and peak memory in bytes."""
    from course_utils.compare.results import environment  # torch, which no other use needs

    found = {
        "schema": SCHEMA,
        "versions": environment()["versions"],
        "device": described_machine(hardware.detect()),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "jobs": jobs,
        "lessons": {
            name: {"seconds": round(seconds), "peak_mib": peak // 2**20}
            for name, (seconds, peak) in sorted(lessons.items())
        },
    }
    write_whole(COSTS, json.dumps(found, indent=1) + "\n")
