"""Files and what happens to them: killed while one is written, a full disk, files that are broken.

How a disk is made full: where the test may mount, a file system of 512 KiB in memory, in a mount
namespace that only the process has; and everywhere but on Windows, a limit on the length of a file
(RLIMIT_FSIZE), which lets writing fail in the same calls with another number.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
from helpers import HARMS, MANY, QUIET
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from course_utils import compare, data, paths
from course_utils.files import write_whole
from course_utils.paths import COURSE_ROOT, DATA

posix = pytest.mark.skipif(os.name != "posix", reason="kills and limits processes as POSIX does")
TICKETS = "tickets/prompt_completion/train.jsonl"
BUILD = str(DATA / "build" / "make_datasets.py")
RECORD = DATA / "results" / "comparison"


# Killed in the middle of it.


def killed_at_it(work: Callable[..., None], *arguments: object, after: float) -> None:
    """Let a process do a piece of work over and over, and kill it (-9) after some seconds."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    time.sleep(after)
    assert process.is_alive(), "it was to be killed, but it has ended"
    process.kill()
    process.join()
    assert process.exitcode == -9


def write_for_ever(path: Path, letter: str) -> None:
    while True:
        write_whole(path, letter * 3_000_000)


@posix
def test_a_file_is_whole_after_a_kill(tmp_path: Path, rng: random.Random) -> None:
    """Eight kills; what is read is what was written once, never the beginning of it."""
    path, seen = tmp_path / "result.json", set()
    write_whole(path, "-" * 3_000_000)
    for letter in "abcdefgh":
        killed_at_it(write_for_ever, path, letter, after=rng.uniform(0.05, 0.3))
        text = path.read_text()
        assert len(text) == 3_000_000 and len(set(text)) == 1
        seen.add(text[0])
    assert len(seen) > 1, "the kills came too early to show anything"
    write_whole(path, "the end")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"], "what a kill left is used up"


def build(output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, BUILD, "--output", str(output)], cwd=COURSE_ROOT)


def made(folder: Path) -> dict[str, bytes]:
    """Return the files that `make data` has put in place."""
    found = [p for p in folder.rglob("*") if p.is_file() and ".making" not in p.parts]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def wait_until_it_writes(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the first file; most of the time before goes into making up the rows."""
    before = made(folder)
    while process.poll() is None and not (folder / ".making").exists() and made(folder) == before:
        time.sleep(0.005)


@posix
def test_make_data_that_is_killed_leaves_no_file_cut_off(
    tmp_path: Path, rng: random.Random
) -> None:
    """Each file is the old one or the new one; the next run makes them all."""
    process = build(tmp_path / "whole")
    wait_until_it_writes(process, tmp_path / "whole")
    started = time.monotonic()
    assert process.wait() == 0
    took = time.monotonic() - started
    whole = made(tmp_path / "whole")
    assert whole[TICKETS] == (DATA / TICKETS).read_bytes()
    folder = tmp_path / "killed"
    for name in whole:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"old")
    killed, kills = 0, 20 if MANY else 1
    for _ in range(10 * kills):  # some come too late
        shutil.rmtree(folder / ".making", ignore_errors=True)  # it is what is waited for
        process = build(folder)
        wait_until_it_writes(process, folder)
        time.sleep(rng.uniform(0, took))
        process.kill()
        killed += process.wait() == -9
        now = made(folder)
        assert now.keys() == whole.keys()
        for name, content in now.items():
            assert content in (b"old", whole[name]), name
        if killed == kills:
            break
    assert killed == kills, "most of the kills came too late"
    assert build(folder).wait() == 0
    assert made(folder) == whole
    assert not (folder / ".making").exists()


# A disk that is full.


def full_disk(folder: Path, way: str) -> list[str]:
    """Return the beginning of a command that cannot write much; skip where there is no way."""
    folder.mkdir(exist_ok=True)
    if way == "a limit on files":
        limit = "import os, resource, sys; most = 100_000\n"
        limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))\n"
        return [sys.executable, "-c", limit + "os.execv(sys.argv[1], sys.argv[1:])"]
    mount = 'mount -t tmpfs -o size=512k none "$0" && exec "$@"'
    space = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    command = ["unshare", *space, "sh", "-c", mount, str(folder)]
    if not shutil.which("unshare") or subprocess.run([*command, "true"]).returncode:
        pytest.skip("this system lets the test mount nothing; the limit on files is tested")
    return command


both_ways = pytest.mark.parametrize("way", ["a small file system", "a limit on files"])
NO_SPACE = {"a small file system": "No space left on device", "a limit on files": "too large"}


def script(prefix: list[str], source: str, *arguments: object) -> str:
    """Run some Python where the disk is full; return what it printed."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", source, *map(str, arguments)],
        cwd=COURSE_ROOT, env=os.environ | QUIET, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


WRITE = """
import sys
from pathlib import Path
from course_utils.files import write_whole
path = Path(sys.argv[1]) / "old.json"
write_whole(path, "old")
try:
    write_whole(path, "x" * 3_000_000)
except OSError as error:
    print(error.errno is not None, error)
print(path.read_text(), [p.name for p in path.parent.iterdir()])
"""


@posix
@both_ways
def test_a_full_disk_keeps_what_was_there(way: str, tmp_path: Path) -> None:
    """And says which file could not be written; the error of the system names none."""
    folder = tmp_path / "full"
    printed, kept = script(full_disk(folder, way), WRITE, folder).splitlines()
    assert printed.startswith("True [Errno ") and NO_SPACE[way] in printed
    assert "old.json' cannot be written" in printed and "Free some space" in printed
    assert kept == "old ['old.json']", "the old file, and nothing half written next to it"


MAKE = """
import subprocess, sys
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "tickets" / "text").mkdir(parents=True, exist_ok=True)
(folder / "tickets" / "text" / "train.csv").write_text("old")
done = subprocess.run([sys.executable, sys.argv[2], "--output", str(folder)], capture_output=True)
print(done.returncode, done.stderr.decode().splitlines()[-1])
print([(str(p.relative_to(folder)), p.read_text()) for p in folder.rglob("*") if p.is_file()])
"""


@posix
@both_ways
def test_make_data_on_a_full_disk_leaves_the_old_files(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    printed, kept = script(full_disk(folder, way), MAKE, folder, BUILD).splitlines()
    assert printed.startswith("1 ") and NO_SPACE[way] in printed
    assert "Free some space" in printed
    assert kept == "[('tickets/text/train.csv', 'old')]"


# Files that are broken.


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the course's datasets to harm, with a cache of its own."""
    shutil.copytree(DATA / "tickets", tmp_path / "data" / "tickets")
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield tmp_path / "data"


@pytest.mark.parametrize("harm", HARMS)
def test_a_dataset_that_is_broken_is_named(harm: str, own_data: Path) -> None:
    """In its three forms: the reader's own error names no file, and for an empty one is empty."""
    for form, (folder, suffix) in data.FORMS.items():
        file = own_data / "tickets" / folder / f"train.{suffix}"
        file.write_bytes(HARMS[harm](file.read_bytes()))
        with pytest.raises(ValueError, match="make data") as raised:
            data.load("tickets", "train", form=form)
        assert str(file) in str(raised.value) and "cannot be read (" in str(raised.value)


@pytest.mark.parametrize("harm", HARMS)
def test_a_result_that_is_broken_is_left_out_and_the_rest_is_read(
    harm: str, tmp_path: Path
) -> None:
    files = sorted(RECORD.glob("*.json"))[:3]
    for file in files:
        shutil.copy(file, tmp_path)
    harmed = tmp_path / files[0].name
    harmed.write_bytes(HARMS[harm](harmed.read_bytes()))
    keys = {json.loads(file.read_bytes())["key"] for file in files[1:]}
    assert {result["key"] for result in compare.load(tmp_path)} == keys


def trainer(folder: Path, base: str, **arguments: object) -> SFTTrainer:
    """Return a trainer of two steps that saves a checkpoint after the first."""
    config = SFTConfig(
        str(folder), max_steps=2, save_steps=1, save_total_limit=5, per_device_train_batch_size=1,
        use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, **arguments,
    )  # fmt: skip
    rows = data.load("tickets", "train").select(range(2))
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return SFTTrainer(base, config, train_dataset=rows, peft_config=lora)
