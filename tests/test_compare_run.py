"""Comparisons for real: processes of their own, killed and resumed, failing and going on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ipykernel  # noqa: F401 - by which a notebook is known
import pandas as pd
import psutil
import pytest
import tqdm.notebook
from helpers import KILLS
from transformers import AutoTokenizer

from course_utils import compare, data, plots
from course_utils.compare import Experiment, results, runner, worker
from course_utils.compare.results import Job, Sources, jobs, usable
from course_utils.paths import POCKET_MODEL

LORA = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"}
SHORT = {"train_rows": 64, "test_rows": 4}
QUICK = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "eval_steps": 4}
# What depends on how fast the machine is at the moment.
TIMES = ("training s", "tokens/s")


def command(file: Path, output: Path, *more: str) -> list[str]:
    words = ["-m", "course_utils", "compare", str(file), "--output", str(output), *more]
    return [sys.executable, *words]


def assert_same_table(folder: Path, other: Path) -> None:
    tables = [compare.table(folder), compare.table(other)]
    lasting = [name for name in tables[0] if not name.startswith(TIMES)]
    pd.testing.assert_frame_equal(*(table[lasting] for table in tables), check_exact=True)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of data as a user's would be, with a few of the course's rows."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in data.load("tickets").items():
        rows.select(range(64 if name == "train" else 8)).to_json(folder / f"{name}.jsonl")
    data.load("heldout", "validation").select(range(8)).to_json(folder / "heldout.jsonl")
    return str(folder)


@pytest.fixture(scope="module")
def experiments(few: str) -> list[Experiment]:
    small = SHORT | {"data": few}
    return [
        Experiment("lora", LORA, training=QUICK | {"learning_rate": 5e-3}, seeds=(0, 1), **small),
        Experiment("full", training=QUICK | {"learning_rate": 5e-4}, **small),
    ]


@pytest.fixture(scope="module")
def file(experiments: list[Experiment], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "experiments.yaml"
    compare.write(path, experiments)
    return path


@pytest.fixture(scope="module")
def whole(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a comparison that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole")
    done = subprocess.run(command(file, output), capture_output=True, text=True, check=True)
    assert "3 of 3: full, seed 0: exact match" in done.stdout, done.stdout
    assert "lora" in done.stdout.split("experiment")[1], "the table comes last"
    return output


def test_a_result_says_all_that_it_takes_to_trust_it(whole: Path) -> None:
    results = compare.load(whole)
    assert [(r["name"], r["seed"]) for r in results] == [("full", 0), ("lora", 0), ("lora", 1)]
    full, lora, _ = results
    for result in results:
        assert result["status"] == "ok"
        assert {"python", "torch", "peft", "trl"} <= set(result["versions"])
        assert result["device"] and result["date"].startswith("20") and len(result["data"]) == 64
        assert result["experiment"]["training"]["max_steps"] == 4
        assert [step for step, _ in result["loss"]] == [1, 2, 3, 4]
        assert [step for step, _ in result["validation_loss"]] == [4]
        assert result["training_seconds"] > 0 and result["evaluation_seconds"] > 0
        assert result["metrics"]["perplexity"] > 1
        assert result["process_peak_bytes"] > result["memory"]["peak"] > 0
    assert full["trainable_parameters"] == 3_737_856
    assert full["checkpoint_bytes"] > 4 * full["trainable_parameters"]
    # Each adapter's r * (inputs + outputs), four layers: q, o 512; k, v 384; gate, up, down 960.
    assert lora["trainable_parameters"] == 4 * 4 * (2 * 512 + 2 * 384 + 3 * 960)
    peak = full["memory"]["phases"][full["memory"]["peak_phase"]]
    assert peak["gradients"] + peak["optimizer state"] > 8 * full["trainable_parameters"]
    assert lora["forgetting"]["before"] == full["forgetting"]["before"]


def test_the_table_has_means_and_spreads_and_can_be_drawn(whole: Path) -> None:
    table = compare.table(whole)
    assert list(table.index) == ["full", "lora"]
    assert list(table["seeds"]) == [1, 2] and not table["failed"].any()
    losses = [r["metrics"]["validation loss"] for r in compare.load(whole) if r["name"] == "lora"]
    assert table.loc["lora", "validation loss"] == pytest.approx(sum(losses) / 2)
    assert table.loc["lora", "validation loss ±"] == pytest.approx(
        abs(losses[0] - losses[1]) / 2**0.5
    )
    assert pd.isna(table.loc["full", "validation loss ±"])
    assert len(compare.best(table)) == 2
    figure = plots.trade_off(table, "peak MiB", "validation loss", lower_is_better=True)
    assert len(figure.axes) == 1
    bands = compare.curves(whole)
    assert bands["lora"].shape == (4, 2) and plots.loss_bands(bands).axes


def test_runs_of_one_name_with_other_data_are_kept_apart(whole: Path, tmp_path: Path) -> None:
    """In the curves as in the table; else the one would be written over the other."""
    for source in whole.glob("full_*.json"):
        result = json.loads(source.read_text())
        for rows in ("one", "other"):
            changed = result | {"data": rows, "key": f"{rows}-{result['key']}"}
            (tmp_path / f"{rows}_{source.name}").write_text(json.dumps(changed))
    table, curves = compare.table(tmp_path), compare.curves(tmp_path)
    assert len(table) == 2 and list(curves) == list(table.index)


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
def test_killed_at_random_moments(
    file: Path, whole: Path, tmp_path: Path, rng: random.Random
) -> None:
    """And started again at once, while the worker of the one before may still be at it.

    What is done stays as it is, the end is that of the whole, and no worker outlives its comparison
    for long.
    """
    kills, comparisons, limit = 0, 0, 60.0
    workers: list[psutil.Process] = []
    while kills < KILLS:
        comparisons += 1
        folder, ended = tmp_path / str(comparisons), False
        while not ended:
            kept = {path: path.read_bytes() for path in folder.glob("*.json")}
            began = time.monotonic()
            process = subprocess.Popen(
                command(file, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, limit) if kills < KILLS else None)
            with contextlib.suppress(psutil.NoSuchProcess):
                workers += psutil.Process(process.pid).children(recursive=True)
            process.kill()
            ended = process.wait() == 0
            assert ended or process.returncode == -9, process.stdout.read()
            kills += not ended
            if ended:
                limit = min(limit, 1.2 * (time.monotonic() - began))
            assert all(path.read_bytes() == content for path, content in kept.items())
            assert all(usable(path) for path in folder.glob("*.json")), "one is not whole"
        assert_same_table(folder, whole)
        assert not list(folder.glob("*.part"))
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert not alive, "a worker went on after its comparison was killed"


@pytest.mark.long
def test_two_comparisons_in_one_folder_share_the_work(
    file: Path, whole: Path, tmp_path: Path
) -> None:
    """Each run is made once, by one of them; both end with the whole table."""
    both = [
        subprocess.Popen(command(file, tmp_path), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    made = re.findall(r"^\d of 3: (\w+, seed \d): exact match", "\n".join(printed), flags=re.M)
    assert sorted(made) == ["full, seed 0", "lora, seed 0", "lora, seed 1"]
    assert printed[0].splitlines()[-3:-1] == printed[1].splitlines()[-3:-1], "the tables differ"
    assert_same_table(tmp_path, whole)


def test_nothing_is_run_again_and_nothing_else_is_taken_for_it(
    experiments: list[Experiment], whole: Path
) -> None:
    """Another learning rate, other rows: another key, so another run."""
    full = experiments[1]
    [job] = jobs([full], Sources())
    assert (whole / job.file).exists()
    changed = [
        full.with_training(learning_rate=6e-4),
        replace(full, train_rows=63),
        replace(full, data="tickets"),
        replace(full, dtype="bfloat16"),
    ]
    for one in jobs(changed, Sources()):
        assert one.key != job.key and not (whole / one.file).exists()
    before = {path: path.stat().st_mtime_ns for path in whole.glob("*.json")}
    compare.run(experiments, whole, progress=False)
    assert {path: path.stat().st_mtime_ns for path in whole.glob("*.json")} == before


def test_rows_are_read_and_hashed_once(
    experiments: list[Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a sweep of many runs; a worker reads what it trains on, and hashes nothing."""
    read: list[str] = []
    hashed: list[worker.Rows] = []
    load, fingerprint = worker.load_rows, worker.Rows.fingerprint

    def counted(source: str) -> worker.Rows:
        read.append(source)
        return load(source)

    monkeypatch.setattr(results, "load_rows", counted)
    monkeypatch.setattr(worker, "load_rows", counted)
    monkeypatch.setattr(
        worker.Rows, "fingerprint", lambda rows: hashed.append(rows) or fingerprint(rows)
    )

    def run_at_once(job: Job, *_: object) -> dict[str, object]:
        loss = job.experiment.training["learning_rate"]
        named = {"name": job.experiment.name, "method": job.experiment.method, "seed": job.seed}
        figures = {"metrics": {"validation loss": loss}, "training_seconds": 1.0, "status": "ok"}
        return named | figures | job.identity | {"key": job.key}

    monkeypatch.setattr(runner, "_execute", run_at_once)
    best = compare.sweep(experiments, tmp_path, progress=False)
    assert [one.training["learning_rate"] for one in best] == [1.6e-4, 1.6e-5]
    assert len(list(tmp_path.glob("*.json"))) == 10, "each went on twice beyond its edge"
    assert read == [experiments[0].data] and len(hashed) == 1

    done = worker.execute(experiments[1], 0, tmp_path / "run", lambda message: None)
    assert done["status"] == "ok" and len(read) == 2 and len(hashed) == 1


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="limits and kills a process as Linux does")
def test_a_failure_is_a_result_and_the_rest_is_run(few: str, tmp_path: Path) -> None:
    """A loss that is not a number, memory that runs out, a killed process; the last one is well."""
    decay = {"weight_decay": 1e30}  # a learning rate that does it is refused
    small = SHORT | {"data": few}
    experiments = [
        Experiment("diverges", LORA, training=QUICK | decay, **small),
        Experiment(
            "too large",
            training=QUICK | {"per_device_train_batch_size": 1000, "max_length": 320},
            train_rows=1000,
            test_rows=4,
        ),
        Experiment(
            "killed", LORA, training=QUICK | {"max_steps": 2000, "eval_steps": 500}, **small
        ),
        Experiment("well", LORA, training=QUICK, **SHORT),
    ]
    file = tmp_path / "experiments.json"
    compare.write(file, experiments)
    output = tmp_path / "out"
    limited = f'ulimit -v {8 * 2**20}; exec "$@"'  # KiB: what a process may map in all
    process = subprocess.Popen(
        ["bash", "-c", limited, "bash", *command(file, output)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    killed = False
    while not killed and process.poll() is None:
        if len(list(output.glob("*.json"))) == 2:
            for worker in psutil.Process(process.pid).children():
                worker.send_signal(signal.SIGKILL)
                killed = True
        time.sleep(0.05)
    printed, _ = process.communicate()
    assert process.returncode == 1, "a failed run shows in the exit code"
    results = {r["name"]: r for r in compare.load(output)}
    assert results["diverges"]["status"] == "diverged"
    assert "a tenth of the learning rate" in results["diverges"]["reason"]
    assert results["too large"]["status"] == "out of memory", results["too large"]["reason"]
    assert results["killed"]["status"] == "crashed" and "SIGKILL" in results["killed"]["reason"]
    assert results["well"]["status"] == "ok"
    table = compare.table(output)
    assert table.loc["diverges", "failed"] == "1 diverged" and table.loc["well", "seeds"] == 1
    assert "too large, seed 0: out of memory" in printed


@pytest.mark.parametrize("harm", ["truncated", "other schema", "not a result"])
def test_a_broken_file_is_not_taken_for_a_result(whole: Path, tmp_path: Path, harm: str) -> None:
    source = next(whole.glob("full_*.json"))
    text = source.read_text()
    broken = {
        "truncated": text[: len(text) // 2],
        "other schema": json.dumps(json.loads(text) | {"schema": 99}),
        "not a result": "[1, 2]",
    }[harm]
    (tmp_path / source.name).write_text(broken)
    with pytest.raises(FileNotFoundError, match="no results"):
        compare.load(tmp_path)


def test_without_a_result_every_reader_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="compare --output"):
        compare.table(tmp_path)
    with pytest.raises(ValueError, match="validation_loss"):
        compare.curves(tmp_path, "accuracy")


@pytest.mark.parametrize(
    ("given", "seen"),
    [(None, "0"), ("", ""), ("1", "1"), ("1,0", "1"), ("GPU-8a,GPU-9b", "GPU-8a")],
)
def test_a_worker_sees_one_gpu_and_finds_the_course(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, seen: str
) -> None:
    """On Colab the package is on sys.path alone; of two GPUs Trainer would take both."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    variables = runner._variables()
    assert variables["CUDA_VISIBLE_DEVICES"] == seen
    (tmp_path / "mine.py").touch()
    # -S leaves out where packages are installed.
    code = [sys.executable, "-S", "-c", "import course_utils.paths, mine"]
    subprocess.run(code, cwd=tmp_path, env=variables, check=True)


def test_a_tokenizer_without_a_pad_token_is_given_one(few: str, tmp_path: Path) -> None:
    """As of Llama 3 or GPT-2; the first batch is padded before a trainer is there to do it."""
    model = shutil.copytree(POCKET_MODEL, tmp_path / "model")
    file = model / "tokenizer_config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    del written["pad_token"]
    file.write_text(json.dumps(written), encoding="utf-8")
    assert AutoTokenizer.from_pretrained(model).pad_token is None
    experiment = Experiment(
        "bare", LORA, training=QUICK | {"max_steps": 2}, data=few, model=str(model), **SHORT
    )
    result = worker.execute(experiment, 0, tmp_path / "run", lambda message: None)
    assert result["status"] == "ok", result["reason"]
    assert result["forgetting"]["before"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux counts")
def test_the_peak_of_a_process_is_not_that_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of a large process begins with its figure: the kernel keeps it."""
    import resource

    large = SimpleNamespace(ru_maxrss=2**40)
    monkeypatch.setattr(resource, "getrusage", lambda who: large)
    assert psutil.Process().memory_info().rss / 2 < worker._process_peak() < 2**40


def test_the_bar_of_a_notebook_shows_the_share_that_is_done(
    experiments: list[Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook's bar has a length of its own, which an assigned total does not change."""
    monkeypatch.setattr(runner, "tqdm", tqdm.notebook.tqdm)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    show = runner._Progress(2, True)
    for steps in (20, 8):
        show.start(Job(experiments[0], 0, "key", {}))
        show.step({"phase": "training"})
        show.step({"step": 1, "steps": steps})
        time.sleep(2 * show.over_steps.mininterval)  # tqdm draws no more often
        show.step({"step": 5, "steps": steps})
        text, bar, figures = show.over_steps.container.children
        assert (bar.value, bar.max) == (5, steps)
        assert text.value.split() == ["lora,", "seed", "0:", f"{5 / steps:.0%}"]
        assert f"5/{steps}" in figures.value and "training" in figures.value
    show.close()
    assert show.over_runs.container.comm is not None
    assert show.over_steps.container.comm is None, "the bar over steps goes when all is done"
