"""The commands of the preflight, such as check and memory: what each prints, and returns.

Used by lessons: none.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from preflight.findings import FindingsReport


def check(options: argparse.Namespace) -> int:
    """Print what is wrong with a dataset; return 1 if it should not be trained on as it is."""
    from preflight import dataset_check

    report = dataset_check.check(
        options.dataset,
        tokenizer=None if options.tokenizer is None else _tokenizer(options.tokenizer),
        max_length=options.max_length,
        eval_dataset=options.eval,
        trainer=options.trainer,
        assistant_only_loss=options.assistant_only_loss,
        every_row=options.every_row,
    )
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    return 0 if report.ok else 1


def _tokenizer(name: str) -> Any:
    """Return the tokenizer of a folder or of the hub."""
    from transformers import AutoTokenizer

    from course_utils.paths import located

    place = located(name)
    try:
        # Without an explicit False, transformers would ask and run what the answer is.
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # a folder without one fails in any way
        reason = " ".join(str(error).split())
        raise ValueError(
            f"--tokenizer is {name!r}, and no tokenizer can be loaded from there. Allowed are a "
            "folder with a tokenizer.json, or a model's name on the Hugging Face Hub. Check the "
            f"path, or the name and the connection. (transformers: {reason[:150]})"
        ) from error


@contextmanager
def _quick_imports() -> Iterator[None]:
    """Spare a third of the time that the libraries take to load in a process of a command's own.

    Nothing is compiled there, and what they make is never garbage.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        with patch.dict(os.environ, {"TORCHDYNAMO_DISABLE": "1"}):
            yield
        gc.freeze()
    finally:
        gc.enable()


def memory(options: argparse.Namespace) -> int:
    """Print what a training step takes and on which GPUs it fits; return 1 if not on the named."""
    with _quick_imports():
        from tqdm import tqdm

        from course_utils import configs
        from preflight.memory_plan import (
            GENERATIONS,
            GPUS,
            Overhead,
            fit_gpus,
            gpu_table,
            plan_text,
        )

    if options.list:
        if options.json:
            gpus = [dataclasses.asdict(gpu) for gpu in GPUS]
            print(json.dumps({"models": configs.shipped(), "gpus": gpus}, indent=2))
        else:
            print("models: " + ", ".join(configs.shipped()), gpu_table(), sep="\n\n")
        return 0
    if not options.model:
        raise ValueError(
            "No model was given. Give --model, or --list to see the models and GPUs that the "
            "course knows."
        )
    loss = "full" if options.trainer == "trainer" else "fused"
    if options.loss is not None and options.trainer is not None and options.loss != loss:
        raise ValueError(
            f"--loss is {options.loss} with --trainer {options.trainer}, whose loss is {loss}. "
            "Leave one of them out."
        )
    peft_config = _adapter(options)
    batch = options.batch_size
    if batch is None:  # of GRPO, a group
        batch = options.num_generations or GENERATIONS if options.trainer == "grpo" else 1
    # A line on a terminal while plans are simulated, and gone when they are.
    layout = "{desc} ({n} plans simulated, {elapsed})"
    with tqdm(bar_format=layout, leave=False, disable=None) as bar:

        def show(plan: str) -> None:
            bar.set_description_str(plan)
            bar.update()

        result = fit_gpus(
            options.model,
            options.gpu,
            options.method,
            batch_size=batch,
            length=options.length,
            shards=options.shards,
            overhead=Overhead(options.overhead, options.overhead_share / 100),
            limits=options.gpu is not None,
            advice=options.gpu is not None,
            dtype=options.dtype,
            gradient_checkpointing=options.gradient_checkpointing,
            optimizer=options.optimizer,
            loss=options.loss or loss,
            padding=options.padding,
            attention=options.attention,
            mixed_precision=options.mixed_precision,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            peft_config=peft_config,
            progress=show,
            **_preferences(options),
        )
    print(json.dumps(result.to_dict(), indent=2) if options.json else plan_text(result))
    return 1 if options.gpu is not None and not result.rows[0].fits else 0


def _preferences(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `predict` that go with DPO and GRPO, as far as they were given."""
    named = ("reference", "completion_length", "num_generations")
    given = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    if "num_generations" in given and options.trainer != "grpo":
        raise ValueError(
            f"--num-generations is {options.num_generations} with --trainer "
            f"{options.trainer or 'sft'}, whose step writes no completions. It goes with "
            "--trainer grpo. Leave it out."
        )
    if options.trainer in ("dpo", "grpo"):
        given["trainer"] = options.trainer
    return given


def _adapter(options: argparse.Namespace) -> Any:
    """Return the config of peft that was asked for, None if the method's own is to be taken."""
    named = {
        option: value
        for option, value in (
            ("--rank", options.rank),
            ("--targets", options.targets),
            ("--peft-config", options.peft_config),
        )
        if value is not None
    }
    if not named:
        return None
    if options.method == "full":
        option, value = next(iter(named.items()))
        raise ValueError(
            f"{option} is {value} with --method full, which has no adapter. Leave {option} out, or "
            "choose lora, qlora or int8."
        )
    from course_utils import configs
    from preflight import adapters, memory_plan

    if options.targets is not None and options.peft_config is None:
        return adapters.lora(options.model, options.rank, options.targets)
    if options.peft_config is None:
        return memory_plan.default_adapter(configs.load_config(options.model), options.rank)
    if len(named) > 1:
        raise ValueError(
            f"{next(iter(named))} is given with --peft-config, and both say what the adapter is. "
            "Leave one of them out."
        )
    return adapters.from_file(options.peft_config)


def modules(options: argparse.Namespace) -> int:
    """Print what LoRA can target in a model; return 1 if a name to check is wrong."""
    from preflight import adapters, lora_targets

    parts: dict[str, Any] = {}
    if options.check is not None:
        names = adapters.target_names(options.check)
        parts["check"] = lora_targets.check_targets(options.model, names, options.rank)
    if options.suggest is not None:
        parts["suggestion"] = lora_targets.suggest(options.model, options.suggest, options.rank)
    if not parts:
        parts["table"] = lora_targets.discover(options.model, options.rank)
    if options.json:
        print(json.dumps({name: part.to_dict() for name, part in parts.items()}, indent=2))
    else:
        print(*parts.values(), sep="\n\n")
    return 0 if "check" not in parts or parts["check"].ok else 1


def _show(report: FindingsReport, as_json: bool) -> int:
    """Print a report; return the exit code, 1 if it has an error."""
    if as_json:
        print(json.dumps({"ok": report.ok, **dataclasses.asdict(report)}, indent=2))
    else:
        print(report)
    return 0 if report.ok else 1


def adapter(options: argparse.Namespace) -> int:
    """Print whether an adapter's folder will be the model that was trained; return 1 if not."""
    with _quick_imports():
        from preflight.adapter_check import as_plain_lora, check_adapter

        folder = as_plain_lora(options.folder, options.plain) if options.plain else options.folder
        report = check_adapter(folder, options.base)
    return _show(report, options.json)


def training(options: argparse.Namespace) -> int:
    """Print what is wrong with the settings in a recipe; return 1 if it should not be trained."""
    from trl import (
        DatasetMixtureConfig,
        ModelConfig,
        ScriptArguments,
        SFTConfig,
        TrlParser,
        get_peft_config,
    )

    from preflight.training_check import check_settings

    if not Path(options.recipe).is_file():
        raise FileNotFoundError(
            f"'{options.recipe}' is not a file. Allowed is a recipe in YAML, as `trl sft --config` "
            "takes it. Check the path."
        )
    # The four that `trl sft` reads.
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    # The GPU that a recipe is for need not be here: without use_cpu, bf16 would be refused.
    here = ["--config", options.recipe, "--use_cpu", "true"]
    _, args, model, _ = parser.parse_args_and_config(here)
    report = check_settings(args, get_peft_config(model), model.model_name_or_path)
    return _show(report, options.json)


def add_commands(commands: Any) -> None:
    """Add check, memory, modules and adapter to the commands of a parser, by `add_subparsers`."""
    command = commands.add_parser("check", help="examine a dataset before training on it")
    command.add_argument(
        "dataset", help="a JSONL, JSON, CSV or Parquet file, a folder, or a hub name"
    )
    command.add_argument("--tokenizer", help="a model's folder or hub name, to check lengths too")
    command.add_argument("--max-length", type=int, default=1024, help="in tokens (default: 1024)")
    command.add_argument("--eval", help="a second dataset that must not overlap with the first")
    command.add_argument(
        "--trainer",
        help="sft, dpo or grpo (default: sft, and of pairs of answers both sft and dpo)",
    )
    command.add_argument(
        "--assistant-only-loss", action="store_true", help="as your SFTConfig has it"
    )
    command.add_argument(
        "--every-row", action="store_true", help="tokenise all rows of a large dataset, not some"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=check)

    command = commands.add_parser("memory", help="what training a model takes, and on which GPUs")
    command.add_argument(
        "--model", help="a shipped name (--list), a config.json, a folder, or a hub name"
    )
    command.add_argument(
        "--method", default="lora", help="full, lora, qlora or int8 (default: lora)"
    )
    command.add_argument("--rank", type=int, help="of the adapters (default: 16)")
    command.add_argument(
        "--targets",
        metavar="NAMES",
        help="what LoRA adapts: q_proj,v_proj for example (default: all-linear)",
    )
    command.add_argument(
        "--peft-config",
        metavar="FILE",
        help="the adapter: an adapter_config.json, or the arguments of LoraConfig in YAML",
    )
    command.add_argument(
        "--batch-size",
        type=int,
        help="rows a step; pairs with dpo, completions with grpo (default: 1, of grpo a group)",
    )
    command.add_argument("--length", type=int, default=1024, help="tokens a row (default: 1024)")
    command.add_argument(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute activations a second time instead of keeping them (default: yes)",
    )
    command.add_argument(
        "--optimizer", default="adamw_torch_fused", help="as TrainingArguments calls it in optim"
    )
    command.add_argument("--dtype", default="bfloat16", help="of the weights (default: bfloat16)")
    command.add_argument(
        "--mixed-precision",
        choices=("no", "bf16", "fp16"),
        help="of the passes (default: bf16 with SFTTrainer, no with Trainer)",
    )
    command.add_argument(
        "--trainer",
        choices=("sft", "trainer", "dpo", "grpo"),
        help="SFTTrainer, Trainer, DPOTrainer or GRPOTrainer (default: sft)",
    )
    command.add_argument(
        "--reference",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the step asks a reference model (default: yes with dpo, no with grpo, beta being 0)",
    )
    command.add_argument(
        "--completion-length",
        type=int,
        help="with grpo: tokens of --length that are written (default: 256, at most half)",
    )
    command.add_argument(
        "--num-generations", type=int, help="with grpo: completions for a prompt (default: 8)"
    )
    command.add_argument(
        "--loss", help="the loss alone: fused as SFTTrainer's, or full as Trainer's"
    )
    command.add_argument(
        "--attention", help="sdpa, eager or flash_attention_2 (default: transformers chooses)"
    )
    command.add_argument(
        "--padding", action="store_true", help="rows differ in length and are padded to the longest"
    )
    command.add_argument(
        "--gradient-accumulation-steps", type=int, default=1, help="as TrainingArguments has it"
    )
    command.add_argument(
        "--gpu", help="one GPU by name or GiB: also how far it goes, or what would make it fit"
    )
    command.add_argument(
        "--shards", type=int, default=1, help="GPUs that share the model by FSDP (default: 1)"
    )
    command.add_argument(
        "--overhead", type=float, default=0.6, help="beyond the tensors, in GiB (default: 0.6)"
    )
    command.add_argument(
        "--overhead-share", type=float, default=8.0, help="and in %% of the peak (default: 8)"
    )
    command.add_argument("--list", action="store_true", help="the models and GPUs known")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=memory)

    command = commands.add_parser("modules", help="what LoRA can target in a model")
    command.add_argument(
        "model", help="a shipped name (memory --list), a config.json, a folder, or a hub name"
    )
    command.add_argument(
        "--check", metavar="NAMES", help="which of these names, joined by commas, match what"
    )
    command.add_argument(
        "--suggest", metavar="KIND", help="arguments for LoraConfig: attention, dense-linear, ..."
    )
    command.add_argument("--rank", type=int, default=8, help="of the adapters (default: 8)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=modules)

    command = commands.add_parser("adapter", help="will this folder be the model that was trained?")
    command.add_argument("folder", help="an adapter's folder, as model.save_pretrained writes it")
    command.add_argument(
        "--base",
        help="its base: a shipped name, a config.json, a folder or a hub name",
    )
    command.add_argument(
        "--plain", help="first write it to this folder as plain LoRA, scaled alike by every engine"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=adapter)


def add_training(commands: Any) -> None:
    """Add training, which only ``python -m preflight`` has."""
    command = commands.add_parser("training", help="are the settings of a recipe sound?")
    command.add_argument("recipe", help="a YAML file as `trl sft --config` takes it")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=training)
