"""Speed of two recipes on a GPU, side by side; written to build/gpu/gpu_speed.json.

    python benchmarks/gpu_speed.py                           1B and 8B shapes: full, LoRA, QLoRA
    python benchmarks/gpu_speed.py --shape pocket --device cpu --steps 3      the same code, no GPU

The *copied* recipe is one that is found in many tutorials, with its arguments under their present
names: float32, batches of 4 rows packed to 40 tokens, paged AdamW. The *recommended* one is the
course's: bfloat16, long packed rows, SFTTrainer's fused loss, fused or 8-bit AdamW, checkpointing
only where the prediction of memory asks for it. Weights are random and nothing is downloaded;
speed and memory do not depend on them. Each case has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gpu_memory
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, PretrainedConfig, TrainerCallback, TrainerState, set_seed
from trl import SFTConfig, SFTTrainer

from course_utils.hardware import fix_bitsandbytes
from course_utils.memory import StepMemory
from course_utils.paths import POCKET_MODEL
from preflight.memory_plan import predict
from preflight.memory_plan.throughput import PEAKS, flops_per_token

METHODS = ("full", "lora", "qlora")
RECIPES = ("copied", "recommended")
GOAL = 5.0  # times the copied recipe's tokens per second
WARM_UP = 2  # steps that are not counted


class StepTimes(TrainerCallback):
    """Counts the tokens and the seconds of the steps after the first ones."""

    def __init__(self) -> None:
        self.seconds, self.tokens = 0.0, 0
        self._started, self._tokens = 0.0, 0

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if state.global_step == WARM_UP:
            self._started, self._tokens = now, state.num_input_tokens_seen
        self.seconds = now - self._started
        self.tokens = state.num_input_tokens_seen - self._tokens


def optimizer(method: str) -> str:
    """Return the recommended optimizer: 8-bit where its state is that of all weights."""
    return "adamw_bnb_8bit" if method == "full" else "adamw_torch_fused"


def settings(recipe: str, method: str, checkpointing: bool, length: int) -> dict[str, Any]:
    """Return the arguments of SFTConfig in which the recipes differ."""
    if recipe == "copied":
        return {
            "per_device_train_batch_size": 4, "max_length": 40, "packing": True, "bf16": False,
            "optim": "paged_adamw_32bit", "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 0.03, "weight_decay": 0.001, "max_grad_norm": 0.3,
            "learning_rate": 2e-4, "activation_checkpointing": False,
        }  # fmt: skip
    return {
        "per_device_train_batch_size": 4, "max_length": length, "packing": True, "bf16": True,
        "optim": optimizer(method),
        "lr_scheduler_type": "cosine", "warmup_steps": 0.03,
        "learning_rate": 2e-5 if method == "full" else 2e-4,
        "activation_checkpointing": checkpointing,
    }  # fmt: skip


def adapter(recipe: str, method: str) -> LoraConfig | None:
    """Return the LoRA of a recipe."""
    if method == "full":
        return None
    copied = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]
    targets = copied if recipe == "copied" else "all-linear"
    return LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")


def predicted(
    config: PretrainedConfig, method: str, recipe: str, options: argparse.Namespace
) -> StepMemory:
    """Return the predicted memory of a recipe's step, without checkpointing."""
    arguments = settings(recipe, method, checkpointing=False, length=options.length)
    return predict(
        config,
        method,
        batch_size=arguments["per_device_train_batch_size"],
        length=arguments["max_length"],
        dtype=dtype(recipe),
        gradient_checkpointing=False,
        optimizer=arguments["optim"],
        peft_config=adapter(recipe, method),
        quantization_config=gpu_memory.quantization() if method == "qlora" else None,
    )


def dtype(recipe: str) -> torch.dtype:
    """Return the dtype of the weights that are not quantized."""
    return torch.float32 if recipe == "copied" else torch.bfloat16


def rows(config: PretrainedConfig, count: int, longest: int) -> Dataset:
    """Return rows of random tokens, their lengths spread as those of short instructions are."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(count).log_normal_(5.3, 0.7, generator=generator).clamp(8, longest).int()
    return Dataset.from_dict(
        {
            "input_ids": [
                torch.randint(5, config.vocab_size, (int(n),), generator=generator).tolist()
                for n in lengths
            ]
        }
    )


def peak(gpu: str) -> float | None:
    """Return the dense 16-bit peak of the GPU that torch calls so, in FLOP/s; None if not known.

    Whole words are compared: an L40 is no L4, and an H100 PCIe not the faster "H100 80GB".
    """
    words = set(re.findall(r"\w+", gpu))
    return next((flops for name, flops in PEAKS.items() if words.issuperset(name.split())), None)


def measure(name: str, method: str, recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return one case: tokens per second, peak memory, share of the chip's peak."""
    case = {"shape": name, "method": method, "recipe": recipe}
    config = gpu_memory.shape(name)
    cuda = options.device == "cuda"
    set_seed(42)
    checkpointing = False
    if cuda:
        guess, memory = predicted(config, method, recipe, options), torch.cuda.mem_get_info()[1]
        if recipe == "recommended":
            checkpointing = guess.peak > 0.85 * memory
        elif guess.peak + guess.host > memory:
            # Pages would then move at every step, and such a GPU can hang.
            return case | {"skipped": "the optimizer's paged state does not fit with the rest"}
    model = gpu_memory.random_model(config, method, options.device, dtype(recipe))
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                output_dir=folder,
                max_steps=WARM_UP + options.steps,
                use_cpu=not cuda,
                include_num_input_tokens_seen="all",
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **settings(recipe, method, checkpointing, options.length),
            ),
            train_dataset=rows(config, options.rows, options.length),
            processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
            peft_config=adapter(recipe, method),
            callbacks=[times],
        )
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    rate = times.tokens / times.seconds
    case |= {
        "gradient_checkpointing": checkpointing,
        "tokens_per_second": round(rate, 1), "tokens": times.tokens,
        "seconds": round(times.seconds, 3),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }  # fmt: skip
    if cuda:
        adapters = 0 if method == "full" else trainer.get_num_trainable_parameters()
        # Attention's own products are left out: packed rows hold texts of many lengths.
        flops = flops_per_token(config, method, length=1, adapter_parameters=adapters)
        fastest = peak(torch.cuda.get_device_name())
        case["share_of_peak"] = fastest and rate * flops / fastest
    return case


def one(options: argparse.Namespace) -> int:
    """Measure the one case that `--one` names, and print it as JSON."""
    name, method, recipe = options.one
    if options.device == "cpu":
        fix_bitsandbytes()
    try:
        case = measure(name, method, recipe, options)
    except torch.OutOfMemoryError as error:
        case = {"shape": name, "method": method, "recipe": recipe}
        case["out_of_memory"] = str(error).partition(". ")[0]
    print(json.dumps(case))
    return 0


def run(options: argparse.Namespace) -> int:
    """Measure every case in a process of its own, print ratios, and write the results.

    A case that fails is noted, and the others are measured; the exit code is 1 then.
    """
    if gpu_memory.lacks_gpu(options):
        return 2
    numbers = {"steps": options.steps, "rows": options.rows, "length": options.length}
    shared = ["--device", options.device]
    shared += [part for key, value in numbers.items() for part in (f"--{key}", value)]
    config = {**numbers, "seed": 42, "goal": GOAL}
    cases = []
    for name in options.shape or ["1B", "8B"]:
        for method in METHODS:
            for recipe in RECIPES:
                command = [sys.executable, __file__, *shared, "--one", name, method, recipe]
                done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    case = {"shape": name, "method": method, "recipe": recipe}
                    cases.append(case | {"failed": f"its process ended with {done.returncode}"})
                else:
                    cases.append(json.loads(done.stdout.splitlines()[-1]))
                print(describe(cases[-1]), flush=True)
                path = gpu_memory.write("gpu_speed", cases, options, config)
            print(f"{name} {method}: {ratio(cases[-2], cases[-1])}", flush=True)
    print(f"written: {path}")
    return 1 if any("failed" in case for case in cases) else 0


def describe(case: dict[str, Any]) -> str:
    """Return a case as a line of text."""
    head = f"{case['shape']:>6} {case['method']:>5} {case['recipe']:11}"
    if "out_of_memory" in case:
        return f"{head} out of memory: {case['out_of_memory']}"
    if "skipped" in case:
        return f"{head} skipped: {case['skipped']}"
    if "failed" in case:
        return f"{head} failed: {case['failed']}"
    parts = [f"{case['tokens_per_second']:,.0f} tokens/s"]
    if case["peak_bytes"]:
        parts.append(f"peak {case['peak_bytes'] / 2**30:.1f} GiB")
    if case.get("share_of_peak"):
        parts.append(f"{case['share_of_peak']:.1%} of the chip's 16-bit peak")
    return f"{head} {', '.join(parts)}"


def ratio(copied: dict[str, Any], recommended: dict[str, Any]) -> str:
    """Return how much faster the recommended recipe is, in words."""
    if "tokens_per_second" not in copied or "tokens_per_second" not in recommended:
        return "no ratio, as one recipe could not be measured"
    times = recommended["tokens_per_second"] / copied["tokens_per_second"]
    return f"recommended / copied = {times:.1f} (goal {GOAL:.0f})"


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", action="append", choices=gpu_memory.SHAPES)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=20, help="counted, after a warm-up")
    parser.add_argument("--rows", type=int, default=2000, help="before packing")
    parser.add_argument("--length", type=int, default=2048, help="of the recommended packed rows")
    parser.add_argument("--out", type=Path, default=gpu_memory.RESULTS, help="for the results")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    return one(options) if options.one else run(options)


if __name__ == "__main__":
    sys.exit(main())
