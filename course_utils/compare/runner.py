"""Run experiments one after another, each in a fresh process, and go on where it was stopped."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from course_utils.compare import build
from course_utils.compare.experiment import Experiment
from course_utils.compare.inputs import environment, load_inputs, model_fingerprint
from course_utils.compare.results import SCHEMA, key, table, usable
from course_utils.files import not_written, write_whole
from course_utils.paths import COURSE_ROOT

RUNNING = ".running"  # the folder, inside the output, of what is not finished


@dataclass(frozen=True)
class Job:
    """One run: an experiment, a seed, and the key of all that its result depends on."""

    experiment: Experiment
    seed: int
    key: str
    identity: dict[str, Any]

    @property
    def file(self) -> str:
        slug = re.sub(r"[^a-z0-9.]+", "-", self.experiment.name.lower()).strip("-.")[:60]
        return f"{slug}_seed{self.seed}_{self.key[:12]}.json"


def run(
    experiments: Iterable[Experiment],
    output_dir: str | Path,
    *,
    progress: bool = True,
    retry_failed: bool = False,
) -> pd.DataFrame:
    """Run each experiment for each of its seeds and return the `table` of just these results.

    Each run has a process of its own and leaves one JSON file in `output_dir`, written whole. What
    is there already is not run again: only a result of the very same experiment, seed, data, base
    model, device and library versions counts. A run that fails (out of memory, a loss that is not a
    number, a crash) is a result with its reason; `retry_failed` runs those again. Several
    comparisons may share a folder, and the work: each run is made once.

    Raises:
        ValueError: if an experiment cannot run as it is; all that is wrong is said, and nothing is
            run.
        FileNotFoundError: if a base model is a folder that is not there.
        OSError: if `output_dir` cannot be written.
    """
    experiments = list(experiments)
    build.require_valid(experiments)
    output_dir = Path(output_dir)
    try:
        (output_dir / RUNNING).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(error, output_dir) from error
    wanted = list(jobs(experiments))
    show = _Progress(len(wanted), progress)
    try:
        # What another comparison is running in this folder is left to the end, then waited for.
        busy = [j for j in wanted if not _settle(j, output_dir, retry_failed, show, wait=False)]
        for job in busy:
            _settle(job, output_dir, retry_failed, show, wait=True)
    finally:  # after Ctrl-C, too: bars that stay open push those of the next comparison down
        show.close()
    return table(output_dir, keys={job.key for job in wanted})


def jobs(experiments: Iterable[Experiment]) -> Iterator[Job]:
    """Yield the runs that experiments ask for, in order."""
    here = environment()
    models: dict[str, str] = {}
    rows: dict[tuple[str, int | None, int | None], str] = {}
    for experiment in experiments:
        path = build.model_path(experiment)
        if path not in models:
            models[path] = model_fingerprint(path)
        chosen = (experiment.data, experiment.train_rows, experiment.test_rows)
        if chosen not in rows:
            rows[chosen] = load_inputs(experiment).fingerprint
        described = experiment.to_dict()
        del described["seeds"]
        identity = {
            "schema": SCHEMA,
            "experiment": described,
            "data": rows[chosen],
            "model": models[path],
            **here,
        }
        for seed in experiment.seeds:
            yield Job(experiment, seed, key({**identity, "seed": seed}), identity)


def _settle(job: Job, output_dir: Path, retry_failed: bool, show: _Progress, wait: bool) -> bool:
    """See to it that a job's result is there; return False if another process is at it."""
    path = output_dir / job.file
    lock = FileLock(output_dir / RUNNING / f"{job.key[:12]}.lock", timeout=-1 if wait else 0)
    try:
        with lock:
            show.start(job)
            result = usable(path, job.key)
            made = result is None or (retry_failed and result["status"] != "ok")
            if made:
                result = _execute(job, output_dir / RUNNING / job.key[:12], show.step)
                write_whole(path, json.dumps(result, indent=1) + "\n")
            show.end(job, result, made)
            return True
    except Timeout:
        return False


def _execute(job: Job, folder: Path, step: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run a job in a process of its own and return its result."""
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    folder.mkdir(parents=True, exist_ok=True)  # its worker may still be at its last line
    task = {"experiment": job.experiment.to_dict(), "seed": job.seed, "folder": str(folder)}
    result: dict[str, Any] | None = None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "course_utils.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            env=_variables(),
        )
        try:
            process.stdin.write(json.dumps(task))
            process.stdin.close()
            for line in process.stdout:
                message = json.loads(line)
                result = message.get("result", result)
                step(message)
            process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            shutil.rmtree(folder, ignore_errors=True)
        if result is None:
            log.seek(0)
            result = {
                "status": "crashed",
                "reason": _ending(process.returncode),
                "traceback": log.read()[-6000:],
            }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "name": job.experiment.name,
        "method": job.experiment.method,
        "seed": job.seed,
        "key": job.key,
        "date": now,
        **job.identity,
        **result,
    }


def _variables() -> dict[str, str]:
    """Return a worker's environment: this one's, with the course's place and one GPU."""
    # Where the package is not installed but on sys.path, as on Colab, a child process would not
    # find it.
    path = os.pathsep.join(filter(None, (str(COURSE_ROOT), os.environ.get("PYTHONPATH"))))
    # Of several GPUs Trainer would use all, with as many times the batch; SFTTrainer refuses that.
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": gpu, "TQDM_DISABLE": "1"}


def _ending(code: int) -> str:
    """Return in words how a process ended that gave no result."""
    if code >= 0:
        return f"The process ended with code {code} before it had a result."
    name = signal.Signals(-code).name
    hint = ": the system does so when memory runs out" if name == "SIGKILL" else ""
    return f"The process was ended by {name}{hint}."


class _Progress:
    """A bar over runs and one over steps in a notebook or terminal; in a log, a line per run."""

    def __init__(self, runs: int, wanted: bool) -> None:
        self.runs, self.wanted, self.done = runs, wanted, 0
        interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
        quiet = os.environ.get("TQDM_DISABLE", "") not in ("", "0")
        self.bars = wanted and interactive and not quiet
        if self.bars:
            self.over_runs = tqdm(total=runs, desc="runs", unit="run")
            self.over_steps = tqdm(total=1, desc="steps", unit="step", leave=False)

    def start(self, job: Job) -> None:
        if self.bars:
            self.over_steps.reset()
            self.over_steps.set_description(f"{job.experiment.name}, seed {job.seed}")

    def step(self, message: dict[str, Any]) -> None:
        if self.bars and "step" in message:
            if self.over_steps.total != message["steps"]:  # the bar's width, and its clock
                self.over_steps.reset(total=message["steps"])
            self.over_steps.update(message["step"] - self.over_steps.n)
        elif self.bars and "phase" in message:
            self.over_steps.set_postfix_str(message["phase"])

    def end(self, job: Job, result: dict[str, Any], made: bool) -> None:
        self.done += 1
        if self.bars:
            self.over_runs.update()
        elif self.wanted:
            said = result["status"] if result["status"] != "ok" else _figures(result)
            known = "" if made else " (there already)"
            who = f"{job.experiment.name}, seed {job.seed}"
            print(f"{self.done} of {self.runs}: {who}{known}: {said}", flush=True)

    def close(self) -> None:
        if self.bars:
            self.over_steps.total = self.over_steps.n  # a notebook keeps a bar that is not full
            self.over_steps.close()
            self.over_runs.close()


def _figures(result: dict[str, Any]) -> str:
    figures = result["metrics"]
    return f"exact match {figures.get('exact match', float('nan')):.1%}" + (
        f", {result['training_seconds']:.0f} s of training"
    )
