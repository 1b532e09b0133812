"""Run experiments one after another, each in a fresh process, and go on where it was stopped.

Used by lessons: 08.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from peft import PeftType
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
from tqdm.auto import tqdm
from transformers import PretrainedConfig

from course_utils import budget
from course_utils.compare import trainers, worker
from course_utils.compare.experiments import METHODS, OTHER_NAMES, Experiment, require_unique
from course_utils.compare.results import Job, Sources, best, jobs, table, usable
from course_utils.configs import load_config
from course_utils.files import not_written, write_whole
from course_utils.paths import COURSE_ROOT
from course_utils.setting_checks import require_none, setting_problems

RUNNING = ".running"  # the folder, inside the output, of what is not finished
STEP = 10**0.5  # between two learning rates of a sweep
START_SECONDS = 12  # of a run, before its first step: libraries, model, rows
FEWEST_ROWS = 16  # with which a training says anything
FURTHER = 2  # how often a sweep goes on beyond its edge


def require_valid(experiments: Sequence[Experiment], sources: Sources) -> None:
    """Raise ValueError with all that is wrong with experiments, before anything is trained."""
    if not experiments:
        raise ValueError("There is no experiment. Give a list of one or more.")
    require_unique(experiments)
    wrong = [f"- {e.name}: {problem}" for e in experiments for problem in _problems(e, sources)]
    if wrong:
        raise ValueError(
            "These experiments cannot run as they are:\n" + "\n".join(wrong) + "\nNothing was run. "
            "Correct them and start again."
        )


def _problems(experiment: Experiment, sources: Sources) -> list[str]:
    """Return what is wrong with one experiment, in the words of the library that refuses it."""
    problems = []
    own = [name for name in experiment.training if name in trainers.OWN]
    if own:
        problems.append(f"training: {', '.join(own)} cannot be set, a comparison sets it itself")
    # transformers takes the old names only where the new ones are not set, as TRAINING sets one.
    old = [name for name in experiment.training if name.startswith("gradient_checkpointing")]
    new = [name.replace("gradient", "activation") for name in old]
    if old:
        problems.append(f"training: {', '.join(old)} has another name, write {', '.join(new)}")
    kind = (experiment.peft or {}).get("peft_type", "LORA")
    if kind not in PeftType.__members__:
        problems.append(f"peft: there is no peft_type {kind!r}, there is {', '.join(PeftType)}")
    elif experiment.peft is not None and "peft_type" not in experiment.peft:
        problems.append('peft: peft_type is missing, such as "LORA"')
    if experiment.quantization is not None and not (experiment.peft or experiment.adapter):
        problems.append("quantization: quantized weights cannot be trained, so peft is required")
    if problems:
        return problems
    model = load_config(worker.model_path(experiment))
    for part, check in (
        ("training", lambda: require_none(setting_problems(trainers.config_of(experiment)))),
        (
            "peft",
            lambda: require_none(setting_problems(None, worker.peft_config(experiment), model)),
        ),
        ("quantization", lambda: worker.quantization_config(experiment)),
        ("data", lambda: sources.data(experiment)),
        ("data", lambda: trainers.require_records(experiment, sources.rows(experiment.data))),
        ("rewards", lambda: trainers.rewards(experiment.rewards)),
        ("adapter", lambda: trainers.require_adapter(experiment)),
    ):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                check()
        except Exception as error:  # whatever a library raises for it is the answer
            reason = " ".join(str(error).split())
            problems.append(f"{part}: {reason[:400] or type(error).__name__}")
    return problems


def fitted(experiments: Iterable[Experiment]) -> tuple[list[Experiment], list[str]]:
    """Return standard experiments as they fit their base models, and what was changed, in words.

    Layers have other names in other architectures. A method whose names do not fit gets others, if
    there are any that peft takes; else it is left out, so that the rest can be run.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `load_config`.
    """
    kept, notes = [], []
    for experiment in experiments:
        config = load_config(worker.model_path(experiment))
        refusal = _refusal(experiment, config) or _scales_queries(experiment, config)
        if refusal:
            names = OTHER_NAMES.get(experiment.method)
            fits = names and dataclasses.replace(experiment, peft={**experiment.peft, **names})
            if not fits or _refusal(fits, config):
                notes.append(f"{experiment.name} is left out: {refusal}")
                continue
            targets = fits.peft["target_modules"]
            notes.append(f"{experiment.name} takes other names in this model: {targets}")
            experiment = fits
        kept.append(experiment)
    return kept, notes


def _refusal(experiment: Experiment, model: PretrainedConfig) -> str:
    """Return why the adapter of an experiment cannot be put into a model, or nothing."""
    if experiment.peft is None:
        return ""
    try:
        require_none(setting_problems(None, worker.peft_config(experiment), model))
    except Exception as error:  # whatever peft raises for it is the answer
        return " ".join(str(error).split())[:300] or type(error).__name__
    return ""


def _scales_queries(experiment: Experiment, model: PretrainedConfig) -> str:
    """Return a text where peft's own names for IA3 are those of queries in place of keys.

    The method scales keys, values and the MLP (Liu et al. 2022, section 3.3); peft 0.21's defaults
    do so for some architectures only.
    """
    if experiment.peft != METHODS["ia3"].peft:
        return ""
    names = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(model.model_type, ())
    return "peft's default names scale queries, not keys" if "q_proj" in names else ""


def within(
    experiments: Iterable[Experiment], minutes: float, sources: Sources, runs: int = 1
) -> tuple[list[Experiment], str]:
    """Return experiments with as few rows as their runs need to end in about so many minutes.

    The time of a token is measured, and the rows' tokens counted; `runs` is how many runs each
    experiment and seed makes (3 or more in a sweep). With it comes a line that says what was taken.

    Raises:
        ValueError: if not even the fewest rows fit.
    """
    experiments = list(experiments)
    first = experiments[0]
    other = next((e for e in experiments if e.trainer != "sft"), None)
    if other is not None:
        raise ValueError(
            f"Minutes were given, and {other.name!r} is trained by {other.trainer}. Allowed is "
            "sft, whose time for a token is known. Leave the minutes out, and give max_steps."
        )
    rows, path = sources.rows(first.data), worker.model_path(first)
    count = sum(len(experiment.seeds) for experiment in experiments) * runs
    seconds = minutes * 60 / count - START_SECONDS
    token = budget.seconds_per_token(path)
    length = worker.mean_length(path, rows)
    # Of a run's time a half is for training, a quarter for each of the other splits. A method may
    # take half as long again as the plain pass that was measured, such as DoRA.
    training = int(seconds / 2 / (1.5 * token * length))
    testing = int(seconds / 4 / (1.5 * token * length))
    if training < FEWEST_ROWS:
        needed = count * (START_SECONDS + 2 * FEWEST_ROWS * 1.5 * token * length) / 60
        raise ValueError(
            f"{minutes:g} minutes are too few for {count} runs of this model: with {FEWEST_ROWS} "
            f"rows of {length:.0f} tokens each they would take about {needed:.0f}. Give more "
            "minutes, or fewer methods or seeds."
        )
    limits = {
        "train_rows": min(len(rows.train), first.train_rows or len(rows.train), training),
        "test_rows": min(len(rows.test), first.test_rows or len(rows.test), max(8, testing)),
    }
    if rows.validation is not None:
        limits["validation_rows"] = min(len(rows.validation), max(8, testing // 4))
    said = ", ".join(f"{number} {name.partition('_')[0]}" for name, number in limits.items())
    line = f"{count} runs in about {minutes:g} minutes, with rows: {said}"
    return [dataclasses.replace(experiment, **limits) for experiment in experiments], line


def run(
    experiments: Iterable[Experiment],
    output_dir: str | Path,
    *,
    progress: bool = True,
    retry_failed: bool = False,
    sources: Sources | None = None,
) -> pd.DataFrame:
    """Run each experiment for each of its seeds and return the `table` of just these results.

    Each run has a process of its own and leaves one JSON file in `output_dir`, written whole. What
    is there already is not run again: only a result of the very same experiment, seed, data, base
    model, device and library versions counts. A run that fails (out of memory, a loss that is not a
    number, a crash) is a result with its reason; `retry_failed` runs those again. Several
    comparisons may share a folder, and the work: each run is made once. `sources` is for several in
    a row: what they know of rows and models is not read again.

    Raises:
        ValueError: if an experiment cannot run as it is; all that is wrong is said, and nothing is
            run.
        FileNotFoundError: if a base model is a folder that is not there.
        OSError: if `output_dir` cannot be written.
    """
    experiments, output_dir, sources = list(experiments), Path(output_dir), sources or Sources()
    require_valid(experiments, sources)
    try:
        (output_dir / RUNNING).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(error, output_dir) from error
    wanted = list(jobs(experiments, sources))
    show = _Progress(len(wanted), progress)
    try:
        # What another comparison is running in this folder is left to the end, then waited for.
        busy = [j for j in wanted if not _settle(j, output_dir, retry_failed, show, wait=False)]
        for job in busy:
            _settle(job, output_dir, retry_failed, show, wait=True)
    finally:  # after Ctrl-C, too: bars that stay open push those of the next comparison down
        show.close()
    return table(output_dir, keys={job.key for job in wanted})


def sweep(
    experiments: Iterable[Experiment], output_dir: str | Path, **options: Any
) -> list[Experiment]:
    """Find each experiment's learning rate and return it at that rate, with its own seeds.

    Three rates, a factor of √10 apart around the experiment's own, are run with its first seed; if
    the best by validation loss is the lowest or the highest of them, the sweep goes on beyond it,
    up to twice. `options` go to `run`. The runs of the sweep stay in `output_dir` as results.

    Raises:
        ValueError: if an experiment has no learning rate, or none of its runs went well.
    """
    experiments, options = list(experiments), {"sources": Sources(), **options}
    first = [_at_rates(experiment, range(-1, 2)) for experiment in experiments]
    run([variant for variants in first for variant in variants], output_dir, **options)
    return [
        at_rate(experiment, _best_rate(experiment, output_dir, options))
        for experiment in experiments
    ]


def at_rate(experiment: Experiment, learning_rate: float) -> Experiment:
    """Return a variant at this learning rate, of the same method, under a name that says it."""
    name = f"{experiment.name}, lr {learning_rate:.2g}"
    return dataclasses.replace(experiment.with_training(learning_rate=learning_rate), name=name)


def _at_rates(experiment: Experiment, steps: Iterable[int]) -> list[Experiment]:
    """Return variants so many steps from the experiment's own rate, with its first seed."""
    if experiment.trainer != "sft":
        raise ValueError(
            f"A sweep of {experiment.name!r} was asked for, which is trained by "
            f"{experiment.trainer}. It chooses by validation loss, which sft alone has. Leave the "
            "sweep out, and write an experiment for each rate."
        )
    start = experiment.training.get("learning_rate")
    if isinstance(start, bool) or not isinstance(start, int | float) or start <= 0:
        raise ValueError(
            f"Experiment {experiment.name!r} has the learning rate {start!r}. A sweep starts at a "
            "number above 0: set it in training."
        )
    one = dataclasses.replace(experiment, seeds=experiment.seeds[:1])
    return [at_rate(one, float(f"{start * STEP**step:.2g}")) for step in steps]


def _best_rate(experiment: Experiment, output_dir: str | Path, options: dict[str, Any]) -> float:
    low, high = -1, 1
    for _ in range(FURTHER + 1):
        variants = _at_rates(experiment, range(low, high + 1))
        winner = _winner(run(variants, output_dir, **options), experiment)
        rates = [variant.training["learning_rate"] for variant in variants]
        if winner == min(rates):
            low -= 1
        elif winner == max(rates):
            high += 1
        else:
            break
    return winner


def _winner(frame: pd.DataFrame, experiment: Experiment) -> float:
    if "validation loss" not in frame or frame["validation loss"].isna().all():
        raise ValueError(
            f"No run of the sweep of {experiment.name!r} has a validation loss: "
            f"{'; '.join(frame['failed']) or 'its data has no validation split'}. Look at the "
            "results' reasons, or give the learning rate yourself."
        )
    return float(best(frame)["learning rate"].iloc[0])


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
            [sys.executable, "-c", "from course_utils.compare import worker; worker.main()"],
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
        self.runs, self.done = runs, 0
        interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
        quiet = os.environ.get("TQDM_DISABLE", "") not in ("", "0")
        bars = wanted and interactive and not quiet
        self.lines = wanted and not bars
        self.over_runs = tqdm(total=runs, desc="runs", unit="run", disable=not bars)
        self.over_steps = tqdm(total=1, desc="steps", unit="step", leave=False, disable=not bars)

    def start(self, job: Job) -> None:
        self.over_steps.reset()
        self.over_steps.set_description(job.title)

    def step(self, message: dict[str, Any]) -> None:
        if "step" in message:
            if self.over_steps.total != message["steps"]:  # the bar's width, and its clock
                self.over_steps.reset(total=message["steps"])
            self.over_steps.update(message["step"] - self.over_steps.n)
        elif "phase" in message:
            self.over_steps.set_postfix_str(message["phase"])

    def end(self, job: Job, result: dict[str, Any], made: bool) -> None:
        self.done += 1
        self.over_runs.update()
        if self.lines:
            outcome = result["status"] if result["status"] != "ok" else _figures(result)
            known = "" if made else " (there already)"
            print(f"{self.done} of {self.runs}: {job.title}{known}: {outcome}", flush=True)

    def close(self) -> None:
        self.over_steps.total = self.over_steps.n  # a notebook keeps a bar that is not full
        self.over_steps.close()
        self.over_runs.close()


def _figures(result: dict[str, Any]) -> str:
    figures, seconds = result["metrics"], result["training_seconds"]
    if "exact match" in figures:
        quality = f"exact match {figures['exact match']:.1%}"
    else:
        quality = f"test loss {figures['test loss']:.3f}"
    return f"{quality}, {seconds:.0f} s of training"
