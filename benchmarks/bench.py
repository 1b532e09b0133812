"""Speed of the course's parts, each in relation to something that runs next to it.

    python benchmarks/bench.py             the whole table: a few minutes
    python benchmarks/bench.py training    one part: training, dpo, real, start, widgets, simulation
                                           or check

A time says little on another machine, so what counts are the ratios. The cases that are compared
take turns, three times, and the median is taken: other work on the machine hits all of them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_speed
import preference_speed
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    get_cosine_schedule_with_warmup,
    set_seed,
)
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from course_utils import data, hardware, plots, widgets
from course_utils.display import text_table
from course_utils.memory import MeterCallback
from course_utils.paths import POCKET_MODEL, REAL_MODELS
from course_utils.tokenizer_setup import with_pad_token
from preflight import explorers
from preflight.dataset_check import check
from preflight.memory_plan import predict

TURNS = 3
WARM_UP, STEPS = 3, 15  # steps of a training: not counted, and counted
REAL_WARM_UP, REAL_STEPS = 1, 4  # of a model that takes seconds for a step
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
# Lesson 00's recipe.
RECIPE = {
    "per_device_train_batch_size": 16, "learning_rate": 5e-3, "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05, "max_length": 320, "activation_checkpointing": False,
}  # fmt: skip


# The same on a real model: rows of like length share a batch, which leaves little padding.
REAL_RECIPE = RECIPE | {
    "per_device_train_batch_size": 8, "train_sampling_strategy": "group_by_length",
}  # fmt: skip
# As recipes are copied: small batches, every row padded to the longest that is allowed.
PADDED_RECIPE = RECIPE | {"per_device_train_batch_size": 4, "pad_to_multiple_of": 320}


class Timed(SFTTrainer):
    """SFTTrainer that notes the seconds of each part of its steps, and the tokens it saw."""

    def __init__(self, *args: Any, warm_up: int = WARM_UP, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.warm_up = warm_up
        self.spent: dict[str, float] = defaultdict(float)
        self.tokens = 0
        self.remove_callback(PrinterCallback)
        self.add_callback(_Clock(self))

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        self.tokens += tokens(inputs)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.spent["forward and loss"] += time.perf_counter() - started
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        started, forward = time.perf_counter(), self.spent["forward and loss"]
        loss = super().training_step(*args, **kwargs)
        forward = self.spent["forward and loss"] - forward
        self.spent["backward"] += time.perf_counter() - started - forward
        return loss


class _Clock(TrainerCallback):
    """Starts a timed trainer's counts after the warm-up, and times its optimizer."""

    def __init__(self, trainer: Timed) -> None:
        self.trainer = trainer
        self.started = self.optimizer = 0.0

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.optimizer = time.perf_counter()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.spent["optimizer"] += time.perf_counter() - self.optimizer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.trainer.warm_up:
            self.trainer.spent.clear()
            self.trainer.tokens, self.started = 0, time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        spent = self.trainer.spent
        spent["all"] = time.perf_counter() - self.started
        parts = sum(spent[part] for part in ("forward and loss", "backward", "optimizer"))
        spent["data, logging and the rest"] = spent["all"] - parts


def tokens(batch: dict[str, torch.Tensor]) -> int:
    """Return the tokens of a batch, padding left out."""
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None else batch["input_ids"].numel()


def sft_trainer(
    recipe: dict[str, Any],
    peft: LoraConfig,
    callbacks: list[TrainerCallback] | None = None,
    path: Path = POCKET_MODEL,
) -> Timed:
    """Return a trainer of a model on the tickets, on the CPU, with a recipe."""
    warm_up, steps = steps_of(path)
    set_seed(0)
    form = "text" if recipe.get("packing") else "prompt-completion"
    return Timed(
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        args=SFTConfig(
            output_dir=tempfile.gettempdir(), max_steps=warm_up + steps, logging_steps=5,
            save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True, seed=0, **recipe,
        ),
        train_dataset=data.load("tickets", "train", form=form),
        processing_class=with_pad_token(AutoTokenizer.from_pretrained(path)),
        peft_config=copy.deepcopy(peft),  # peft writes into the one it is given
        callbacks=callbacks,
        warm_up=warm_up,
    )  # fmt: skip


def steps_of(path: Path) -> tuple[int, int]:
    """Return how many steps of a model's training are not counted, and how many are."""
    return (WARM_UP, STEPS) if path == POCKET_MODEL else (REAL_WARM_UP, REAL_STEPS)


def with_trainer(
    recipe: dict[str, Any], peft: LoraConfig, path: Path = POCKET_MODEL
) -> dict[str, float]:
    """Return tokens per second of a recipe with SFTTrainer, and the share of each part."""
    trainer = sft_trainer(recipe, peft, path=path)
    trainer.train()
    total = trainer.spent.pop("all")
    shares = {part: seconds / total for part, seconds in trainer.spent.items()}
    return {"tokens/s": trainer.tokens / total, **shares}


def with_bare_loop(recipe: dict[str, Any] = RECIPE, path: Path = POCKET_MODEL) -> dict[str, float]:
    """Return tokens per second of the same steps in a loop of plain PyTorch."""
    warm_up, steps = steps_of(path)
    prepared = sft_trainer(recipe, LORA, path=path)
    batches = DataLoader(
        prepared.train_dataset.remove_columns(
            [c for c in prepared.train_dataset.column_names if c in ("prompt", "completion")]
        ),
        batch_size=recipe["per_device_train_batch_size"],
        shuffle=True,
        collate_fn=prepared.data_collator,
        generator=torch.Generator().manual_seed(0),
    )
    set_seed(0)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model = get_peft_model(base, copy.deepcopy(LORA)).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe["learning_rate"], weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, warm_up + steps)
    seen, started = 0, 0.0
    for step, batch in zip(range(warm_up + steps), batches, strict=False):
        if step == warm_up:
            seen, started = 0, time.perf_counter()
        seen += tokens(batch)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return {"tokens/s": seen / (time.perf_counter() - started)}


def training() -> Iterator[tuple[str, str, str]]:
    """Yield rows on lesson 00's recipe against a bare loop and against the copied recipe."""
    cases: dict[str, Callable[[], dict[str, float]]] = {
        "lesson 00": lambda: with_trainer(RECIPE, LORA),
        "bare loop": with_bare_loop,
        "copied": lambda: with_trainer(
            gpu_speed.settings("copied", "lora", False, 40), gpu_speed.adapter("copied", "lora")
        ),
    }
    runs = in_turns(cases)
    for other, goal in (("bare loop", 0.9), ("copied", 2.0)):
        yield f"lesson 00's tokens/s / {other}", ratio(runs, "lesson 00", other), f">= {goal}"
    for name in ("lesson 00", "copied"):
        shares = {part: statistics.median(r[part] for r in runs[name]) for part in runs[name][0]}
        rate = shares.pop("tokens/s")
        parts = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        yield f"{name}: {rate:,.0f} tokens/s, of which", parts, ""
    yield from watching()


def in_turns(
    cases: dict[str, Callable[[], dict[str, float]]],
) -> dict[str, list[dict[str, float]]]:
    """Return the figures of cases that are run in turns, so that all meet the same machine."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(TURNS):
        for name, run in cases.items():
            with contextlib.redirect_stdout(io.StringIO()):
                runs[name].append(run())
    return runs


def ratio(runs: dict[str, list[dict[str, float]]], ours: str, theirs: str) -> str:
    """Return the median ratio of two cases' tokens per second, of runs that stood side by side."""
    pairs = zip(runs[ours], runs[theirs], strict=True)
    return f"{statistics.median(a['tokens/s'] / b['tokens/s'] for a, b in pairs):.2f}"


def real() -> Iterator[tuple[str, str, str]]:
    """Yield rows on a real model: the course's recipe, a bare loop, rows padded to one length."""
    path = REAL_MODELS["smollm2"]
    if not path.exists():
        yield "smollm2", "not here", "make real"
        return
    cases = {
        "course": lambda: with_trainer(REAL_RECIPE, LORA, path),
        "bare loop": lambda: with_bare_loop(REAL_RECIPE, path),
        "padded": lambda: with_trainer(PADDED_RECIPE, LORA, path),
    }
    runs = in_turns(cases)
    rates = {name: statistics.median(r["tokens/s"] for r in runs[name]) for name in cases}
    yield "smollm2: tokens/s", ", ".join(f"{n} {rate:,.0f}" for n, rate in rates.items()), ""
    yield "smollm2: course / bare loop", ratio(runs, "course", "bare loop"), ">= 1.0"
    yield "smollm2: course / padded", ratio(runs, "course", "padded"), ">= 2.0"
    meter = MeterCallback()
    fixed = PADDED_RECIPE | {"max_length": 256, "pad_to_multiple_of": 256}
    with contextlib.redirect_stdout(io.StringIO()):
        sft_trainer(fixed, LORA, [meter], path).train()
    planned = predict(
        path, "lora", batch_size=4, length=256, dtype="float32", gradient_checkpointing=False,
        padding=True, peft_config=copy.deepcopy(LORA), device="cpu",
    )  # fmt: skip
    apart = meter.memory.peak / planned.peak - 1
    peak = f"{meter.memory.peak / 2**20:,.0f} MiB, {apart:+.1%} of the prediction"
    yield "smollm2: peak of a step", peak, "within 2%"


def watching() -> Iterator[tuple[str, str, str]]:
    """Yield rows on what the live plot and the meter add to lesson 00's training."""
    shell = InteractiveShell.instance()
    select_figure_formats(shell, {"png"})  # as in a notebook
    live, meter = _Stopwatch(plots.LiveLoss()), _Stopwatch(MeterCallback())
    trainer = sft_trainer(RECIPE, LORA, callbacks=[live, meter])
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    seconds = time.perf_counter() - started - live.seconds - meter.seconds
    InteractiveShell.clear_instance()
    yield "live plot, of the training it draws", f"{live.seconds / seconds:.1%}", "< 3%"
    # Besides what it does between the steps the meter slows the one that it measures.
    others = statistics.median(meter.steps[2:])
    extra = meter.seconds + max(0.0, meter.steps[1] - others)
    epoch = others * len(trainer.train_dataset) / RECIPE["per_device_train_batch_size"]
    yield "meter, of lesson 00's training (one step measured)", f"{extra / epoch:.1%}", "< 3%"
    yield "meter, of the step that it measures", f"{extra / others:.0%}", ""


class _Stopwatch(TrainerCallback):
    """Passes a trainer's events on to a callback; notes its seconds, and those of each step."""

    def __init__(self, inner: TrainerCallback) -> None:
        self.inner, self.seconds = inner, 0.0
        self.steps: list[float] = []
        self._begun = 0.0

    def _pass_on(self, event: str, *args: Any, **kwargs: Any) -> None:
        started = time.perf_counter()
        getattr(self.inner, event)(*args, **kwargs)
        self.seconds += time.perf_counter() - started

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._pass_on("on_train_begin", *args, **kwargs)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._pass_on("on_step_begin", *args, **kwargs)
        self._begun = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(time.perf_counter() - self._begun)
        self._pass_on("on_step_end", *args, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self._pass_on("on_log", *args, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._pass_on("on_train_end", *args, **kwargs)


def start() -> Iterator[tuple[str, str, str]]:
    """Yield rows on what a reader waits for first."""
    code = "import sys, time; t = time.perf_counter(); import course_utils; "
    code += "print(time.perf_counter() - t, 'torch' in sys.modules)"
    printed = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(5)
    ]
    seconds, loaded = zip(*(one.stdout.split() for one in printed), strict=True)
    yield "import course_utils", f"{statistics.median(map(float, seconds)) * 1e3:.0f} ms", "< 50 ms"
    yield "... imports torch", "yes" if "True" in loaded else "no", "no"
    command = [sys.executable, "-m", "course_utils", "doctor"]
    took = timed(lambda: subprocess.run(command, capture_output=True, check=False), 3)
    yield "doctor", f"{took:.1f} s", "< 3 s"


def redraws() -> Iterator[tuple[str, str, str]]:
    """Yield rows on how long a widget takes to follow its slider."""
    sample = torch.randn(1024, 512, generator=torch.Generator().manual_seed(0))
    with contextlib.redirect_stdout(io.StringIO()):  # without a kernel, what is shown is printed
        shown = {
            "LoRA explorer, alpha": (explorers.lora_explorer(str(POCKET_MODEL)), "lora_alpha"),
            "quantization explorer, block size": (
                widgets.quantization_explorer(sample),
                "block_size",
            ),
            "schedule explorer, warm-up": (widgets.schedule_explorer(), "warmup_steps"),
            "memory planner, GPU": (explorers.memory_planner(), "gpu"),
        }
    for name, (explorer, moved) in shown.items():
        control = explorer.controls[moved]
        values = (
            [one[1] if isinstance(one, tuple) else one for one in control.options]
            if hasattr(control, "options")
            else [control.value + control.step * i for i in range(1, 6)]
        )
        others = [value for value in values if value != control.value][:5]
        with contextlib.redirect_stdout(io.StringIO()):
            times = [
                timed(lambda v=value, c=control: setattr(c, "value", v), 1) for value in others
            ]
        yield f"{name}: redraw", f"{statistics.median(times) * 1e3:.0f} ms", "< 200 ms"


def simulation() -> Iterator[tuple[str, str, str]]:
    """Yield rows on how long a training step takes to simulate, by the size of the model."""
    predict("llama-3.2-1b", "lora", batch_size=1, length=256)  # what is imported on first use
    for model in ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "llama-3.1-70b"):
        times = {
            method: timed(lambda m=method, c=model: predict(c, m, batch_size=1, length=1024), 1)
            for method in ("lora", "qlora", "full")
        }
        parts = ", ".join(f"{method} {seconds:.1f} s" for method, seconds in times.items())
        yield f"simulate {model}", parts, "< 10 s" if model == "llama-3.1-8b" else ""


def checking() -> Iterator[tuple[str, str, str]]:
    """Yield a row on what the sample saves in the check of a large dataset with a tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    tickets = data.load("tickets", "train", form="messages")["messages"]
    rows = [
        {"messages": [{**m, "content": f"{m['content']} {n}"} for m in tickets[n % len(tickets)]]}
        for n in range(40_000)
    ]
    some = timed(lambda: check(rows, tokenizer), 1)
    every = timed(lambda: check(rows, tokenizer, every_row=True), 1)
    yield "check, 40,000 chats: a sample / every row", f"{some / every:.2f}", "<= 0.25"


def timed(work: Callable[[], object], turns: int) -> float:
    """Return the median seconds of some work."""
    seconds = []
    for _ in range(turns):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def preferences() -> Iterator[tuple[str, str, str]]:
    """Yield rows on the time of a DPO step next to its passes done by hand."""
    cases: dict[str, Callable[[], float]] = {
        "by hand": preference_speed.by_hand,
        "lesson 11a": preference_speed.with_trainer,
        "checkpointing": lambda: preference_speed.with_trainer(gradient_checkpointing=True),
        "bfloat16": lambda: preference_speed.with_trainer(bf16=True),
        "reference precomputed": lambda: preference_speed.with_trainer(
            precompute_ref_log_probs=True
        ),
    }
    runs: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(TURNS):
        for name, run in cases.items():
            with contextlib.redirect_stdout(io.StringIO()):
                runs[name].append(run())
    hand = runs.pop("by hand")
    for name, seconds in runs.items():
        times = statistics.median(a / b for a, b in zip(seconds, hand, strict=True))
        yield f"DPO's step / by hand: {name}", f"{times:.2f}", "<= 1.15" * (name == "lesson 11a")


PARTS = {
    "training": training,
    "dpo": preferences,
    "real": real,
    "start": start,
    "widgets": redraws,
    "simulation": simulation,
    "check": checking,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; all if none is named")
    options = parser.parse_args()
    unknown = sorted(set(options.part) - set(PARTS))
    if unknown:
        print(f"There is no part {', '.join(unknown)}. The parts are: {', '.join(PARTS)}.")
        return 2
    hardware.fix_bitsandbytes()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    for name, part in PARTS.items():
        if not options.part or name in options.part:
            print(f"{text_table(list(part()), (name, 'measured', 'goal'))}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
