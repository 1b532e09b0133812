"""The same recipe through torchrun and through Ray Train, on two CPU workers; what each takes.

    python benchmarks/ray_train.py                     written to data/results/ray_train.json
    python benchmarks/ray_train.py --out FILE

Each engine trains twelve steps with a checkpoint every four: once undisturbed, once with a worker
that is killed (SIGKILL) as soon as the first checkpoint is whole. torchrun ends then, and is
started again with --resume; Ray starts its workers again by itself. It needs requirements-ray.txt.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from course_utils.checkpoints import last_whole
from course_utils.files import write_whole
from course_utils.paths import COURSE_ROOT

SCHEMA = 1
OUTPUT = COURSE_ROOT / "data" / "results" / "ray_train.json"
LIBRARIES = ("ray", "torch", "transformers", "trl", "peft", "accelerate")
PAUSE, LIMIT = 0.1, 300  # seconds between two readings, and until a run counts as hung
STEPS, SAVE = 12, 4
RECIPE = (
    f"--config recipes/recipe.yaml --use_cpu --bf16 false --max_steps {STEPS} "
    f"--per_device_train_batch_size 8 --save_strategy steps --save_steps {SAVE}"
).split()
TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node 2 recipes/train.py".split()
ENGINES = {
    "torchrun": [*TORCHRUN, "--processes", "2", "--resume", *RECIPE],
    "ray": ["recipes/ray_train.py", *RECIPE],
}


def own_memory(process: psutil.Process) -> int:
    """Return the memory of a process in bytes that it shares with none (USS), 0 if it has ended."""
    try:
        return process.memory_full_info().uss
    except psutil.Error:
        return 0


def workers_of(family: list[psutil.Process]) -> list[psutil.Process]:
    """Return those of a process's descendants that train."""
    found = []
    for one in family:
        try:
            line = " ".join(one.cmdline())
        except psutil.Error:
            continue
        ours = "ray::RayTrainWorker" in line or "-u recipes/train.py" in line
        found += [one] if ours else []
    return found


def run(engine: str, folder: Path, *, kill: bool = False) -> dict[str, Any]:
    """Train once; return seconds, and the engine's memory in bytes without the workers'.

    `until_saved` and `total` are seconds from the start; `after_kill` those from the kill to the
    end of this process, and `engine_peak` the most that all processes but the workers took.

    Raises:
        RuntimeError: if it fails though nobody killed a worker, or does not end.
    """
    environment = os.environ | {
        "PYTHONPATH": str(COURSE_ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1",
        "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    log = folder.with_suffix(".log")
    began, killed, until_saved, peak = time.perf_counter(), None, None, 0
    with log.open("a", encoding="utf-8") as file:
        process = psutil.Popen(
            [sys.executable, *ENGINES[engine], "--output_dir", str(folder)],
            cwd=COURSE_ROOT / "notebooks", env=environment, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        while process.poll() is None:
            if time.perf_counter() - began > LIMIT:
                process.kill()
                raise RuntimeError(f"{engine} did not end within {LIMIT} s. Read {log}.")
            family = process.children(recursive=True)
            workers = workers_of(family)
            peak = max(peak, sum(own_memory(p) for p in (process, *family) if p not in workers))
            if until_saved is None and last_whole(folder, 2):
                until_saved = time.perf_counter() - began
                if kill:
                    workers[-1].kill()
                    killed = time.perf_counter()
            time.sleep(PAUSE)
    ended = time.perf_counter()
    if process.returncode and not kill:
        raise RuntimeError(f"{engine} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    return {
        "until_saved": until_saved, "total": ended - began, "engine_peak": peak,
        "after_kill": None if killed is None else ended - killed, "code": process.returncode,
    }  # fmt: skip


def difference(one: Path, two: Path) -> float:
    """Return the largest difference between the last adapters of two runs; 0.0 is to the bit."""
    a, b = (load_file(f / f"checkpoint-{STEPS}" / "adapter_model.safetensors") for f in (one, two))
    return max((a[name] - b[name]).abs().max().item() for name in a)


def measure(place: Path) -> dict[str, Any]:
    """Run all four; return the record."""
    cases: dict[str, dict[str, Any]] = {}
    for engine in ENGINES:
        cases[engine] = run(engine, place / engine)
        killed = cases[f"{engine}, killed"] = run(engine, place / f"{engine}-killed", kill=True)
        killed["started_again"] = "by itself" if killed["code"] == 0 else "by hand, with --resume"
        if killed["code"]:
            killed["after_kill"] += run(engine, place / f"{engine}-killed")["total"]
        for name in (engine, f"{engine}-killed"):
            case = cases[name.replace("-", ", ")]
            case["apart_from_torchrun"] = difference(place / "torchrun", place / name)
    return {
        "schema": SCHEMA,
        "date": datetime.date.today().isoformat(),
        "device": f"{platform.machine()}, {os.cpu_count()} cores; {platform.system()}, "
        f"Python {platform.python_version()}",
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "config": {"steps": STEPS, "save_steps": SAVE, "workers": 2, "backend": "gloo"},
        "cases": cases,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUTPUT)
    out = parser.parse_args().out.resolve()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        record = measure(Path(place))
    write_whole(out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["cases"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
