"""Memory of training steps on a GPU, with the prediction; written to build/gpu/.

    python benchmarks/gpu_memory.py headline            one QLoRA step of a 70B shape in under 48 GB
    python benchmarks/gpu_memory.py compare             1B and 8B shapes: full, LoRA, QLoRA
    python benchmarks/gpu_memory.py compare --shape pocket --device cpu   the same code, no GPU

Weights are random, and quantized layer by layer, so nothing is downloaded and a model that fits
only in 4 bits can be made. Every step is one of SFTTrainer.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    set_seed,
)
from transformers.quantizers import AutoHfQuantizer
from trl import SFTConfig, SFTTrainer

from course_utils.configs import load_config
from course_utils.files import write_whole
from course_utils.hardware import fix_bitsandbytes
from course_utils.memory import MeterCallback, StepMemory
from course_utils.paths import CONFIGS, COURSE_ROOT, POCKET_MODEL
from preflight.memory_plan import predict

RESULTS = COURSE_ROOT / "build" / "gpu"
SCHEMA = 1
GIB = 2**30
LIMIT = 48e9  # the headline of the QLoRA paper: 65B on one GPU of 48 GB (Dettmers et al., 2023)
SHAPES = {
    "pocket": POCKET_MODEL,
    "1B": CONFIGS / "llama-3.2-1b.json",
    "8B": CONFIGS / "llama-3.1-8b.json",
    "70B": CONFIGS / "llama-3.1-70b.json",
}
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")
DTYPE = torch.bfloat16


def shape(name: str) -> PretrainedConfig:
    """Return the config of a shape, which has its name: a path would end up in the results."""
    config = load_config(SHAPES[name])
    config.name_or_path = name
    return config


def quantization() -> BitsAndBytesConfig:
    """Return QLoRA's own settings: NF4, double quantization, computing in bfloat16."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPE,
    )


def adapter() -> LoraConfig:
    """Return the LoRA that every method but full fine-tuning trains."""
    return LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")


def random_model(
    config: PretrainedConfig, method: str, device: str, dtype: torch.dtype = DTYPE
) -> nn.Module:
    """Return a model of random weights on a device.

    For QLoRA its linear layers are in 4 bits and the others in bfloat16, whatever `dtype` says.
    """
    if method != "qlora":
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    quantizer = AutoHfQuantizer.from_config(quantization(), pre_quantized=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
    quantizer.preprocess_model(model, dtype=DTYPE, device_map={"": device})
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = _random_parameter(parameter, device)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    model.tie_weights()
    model.hf_quantizer = quantizer
    return quantizer.postprocess_model(model)


def _random_parameter(parameter: nn.Parameter, device: str) -> nn.Parameter:
    """Return a parameter's like with random values, quantized at once if it is to be."""
    values = torch.empty(parameter.shape, dtype=DTYPE, device=device)
    if parameter.dim() == 1:  # a norm's scale
        return nn.Parameter(values.fill_(1.0))
    values.normal_(std=0.02)
    if not isinstance(parameter, bnb.nn.Params4bit):
        return nn.Parameter(values)
    return bnb.nn.Params4bit(
        values,
        requires_grad=False,
        blocksize=parameter.blocksize,
        compress_statistics=parameter.compress_statistics,
        quant_type=parameter.quant_type,
        quant_storage=parameter.quant_storage,
    ).to(device)


def train(config: PretrainedConfig, method: str, options: argparse.Namespace) -> StepMemory:
    """Train two steps with SFTTrainer; return the memory of the second."""
    set_seed(42)
    model = random_model(config, method, options.device)
    rows = torch.randint(5, config.vocab_size, (2 * options.batch_size, options.length)).tolist()
    meter = MeterCallback(step=2)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=options.batch_size,
            max_steps=2,
            max_length=None,
            activation_checkpointing=options.gradient_checkpointing,
            optim="adamw_torch_fused",
            bf16=True,
            use_cpu=options.device == "cpu",
            dataset_kwargs={"skip_prepare_dataset": True},
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model,
            args=arguments,
            train_dataset=Dataset.from_dict({"input_ids": rows}),
            processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
            peft_config=None if method == "full" else adapter(),
            callbacks=[meter],
        )
        try:
            trainer.train()
        finally:
            meter.stop()  # else it stays on after an error, and keeps the model
    return meter.memory


def predicted(config: PretrainedConfig, method: str, options: argparse.Namespace) -> StepMemory:
    """Return the prediction of the same step."""
    return predict(
        config,
        method,
        batch_size=options.batch_size,
        length=options.length,
        dtype=DTYPE,
        gradient_checkpointing=options.gradient_checkpointing,
        peft_config=None if method == "full" else adapter(),
        quantization_config=quantization() if method == "qlora" else None,
        device=options.device,
    )


def case(name: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return one row of the results: what was predicted, what was measured, and their ratio."""
    config = shape(name)
    guess = predicted(config, method, options)
    row = {
        "shape": name,
        "method": method,
        "gradient_checkpointing": options.gradient_checkpointing,
        "batch_size": options.batch_size,
        "length": options.length,
        "predicted": guess.to_dict(),
    }
    if options.device == "cuda" and guess.peak > 0.95 * torch.cuda.mem_get_info()[0]:
        return row | {"skipped": "predicted to take more than this GPU has free"}
    try:
        real = train(config, method, options)
    except torch.OutOfMemoryError as error:
        return row | {"out_of_memory": str(error).partition(". ")[0]}
    finally:
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
    # On a GPU the allocator is the judge; without one, the meter.
    peak = max(real.allocator.values(), default=real.peak)
    return row | {"measured": real.to_dict(), "peak": peak, "ratio": guess.peak / peak}


def describe(row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    checkpointing = "checkpointing" if row["gradient_checkpointing"] else "no checkpointing"
    head = f"{row['shape']:>6} {row['method']:>5} {checkpointing:16}"
    guess = row["predicted"]["peak"] / GIB
    if "peak" not in row:
        why = row.get("skipped") or row["out_of_memory"]
        return f"{head} predicted {guess:7.3f} GiB, not measured: {why}"
    return (
        f"{head} predicted {guess:7.3f} GiB, measured {row['peak'] / GIB:7.3f} GiB, "
        f"ratio {row['ratio']:.4f}"
    )


def write(
    name: str, rows: list[dict[str, Any]], options: argparse.Namespace, config: dict[str, Any]
) -> Path:
    """Write the results as JSON; return the file."""
    device = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"cpu ({platform.machine()})"
    )
    data = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).date().isoformat(),
        "device": device,
        "versions": {library: metadata.version(library) for library in LIBRARIES},
        "config": config,
        "cases": rows,
    }
    path = options.out / f"{name}.json"
    write_whole(path, json.dumps(data, indent=1) + "\n")
    return path


def lacks_gpu(options: argparse.Namespace) -> bool:
    """Return whether the GPU that was asked for is missing; say so."""
    if options.device != "cuda" or torch.cuda.is_available():
        return False
    print(
        "No CUDA GPU is visible to PyTorch. This script measures one: run it on a machine that has "
        "one, or try its code with --shape pocket --device cpu.",
        file=sys.stderr,
    )
    return True


def run(options: argparse.Namespace) -> int:
    """Run what the command line asks for; return the exit code."""
    if lacks_gpu(options):
        return 2
    if options.device == "cpu":
        fix_bitsandbytes()
    rows = []
    if options.command == "headline":
        names, plans = options.shape or ["70B"], [("qlora", True)]
    else:
        names = options.shape or ["1B", "8B"]
        plans = [(m, c) for m in ("full", "lora", "qlora") for c in (True, False)]
    config = {"dtype": "bfloat16", "optimizer": "adamw_torch_fused", "seed": 42, "rank": 16}
    for name in names:
        for method, options.gradient_checkpointing in plans:
            rows.append(case(name, method, options))
            print(describe(rows[-1]), flush=True)
            path = write(f"gpu_memory_{options.command}", rows, options, config)
    print(f"written: {path}")
    if options.command == "headline":
        fits = all(row.get("peak", LIMIT) < LIMIT for row in rows)
        print(f"under {LIMIT / 1e9:.0f} GB: {'yes' if fits else 'no'}")
        return 0 if fits else 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=("headline", "compare"))
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
