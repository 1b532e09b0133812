"""Memory planners next to each other, on peaks that others measured: data/results/planners.json.

    python benchmarks/planners.py            a few minutes; installs the planners from PyPI

The table of book/neighbours.md is written from the record.

Each planner is installed at a fixed version into a temporary folder and is asked for every case of
planners.yaml that it can express, with the settings that fit the case best. A case that it has no
setting for (4 bits, say, or other targets) is left out for it. Where a planner names its allowance
for what lies outside PyTorch's allocator, and for safety, that part is taken off for a case whose
peak is what the allocator handed out, and a planner's allowance for reserve stays in for one whose
peak is what it held.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from neighbours import Environment, markdown, put
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from course_utils.configs import load_config
from course_utils.files import write_whole
from course_utils.memory import StepMemory
from course_utils.paths import COURSE_ROOT
from preflight.memory_plan import predict

CASES = Path(__file__).with_suffix(".yaml")
RESULTS = COURSE_ROOT / "data" / "results" / "planners.json"
SCHEMA = 1
GIB = 2**30
PLANNERS = {
    "vramcalc": "0.1.2",
    "fitcheck-llm": "0.3.1",
    "canifinetune": "0.4.1",
    "ftuneai": "0.4.1",
    "peft-doctor": "0.9.2",
}
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
SHIPPED = {"Llama-3.2-1B", "Llama-3.2-3B", "Llama-3.1-8B"}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LEFT_OUT = {
    "batch": 1,
    "rank": 16,
    "targets": ATTENTION,
    "amp": False,
    "checkpointing": False,
    "attention": "sdpa",
}

Case = dict[str, Any]


class Cannot(Exception):
    """A planner has no setting for this case."""


@cache
def content() -> dict[str, Any]:
    """Return what planners.yaml holds."""
    return yaml.safe_load(CASES.read_text(encoding="utf-8"))


def cases() -> list[Case]:
    """Return the cases with all their settings, and `peak` in bytes."""
    rows = []
    for row in content()["cases"]:
        source = content()["sources"][row["source"]]
        peak = round(row["peak"] * source["unit"])
        machine = {key: source[key] for key in ("kind", "gpu_gib", "keeps")}
        rows.append({**LEFT_OUT, **row, **machine, "peak": peak})
    return rows


def shape(name: str) -> PretrainedConfig:
    """Return a model's config: a shipped one, or one that planners.yaml has the numbers of."""
    if name in SHIPPED:
        return load_config(name.lower())
    return AutoConfig.for_model("qwen2", **content()["shapes"][name])


def trainer_step(case: Case) -> StepMemory:
    """Return this course's prediction of a case: a step of Trainer with its settings."""
    own = case["source"] == "canifinetune"
    adapter = {"r": case["rank"], "target_modules": case["targets"], "task_type": "CAUSAL_LM"}
    return predict(
        shape(case["model"]),
        case["method"],
        batch_size=case["batch"],
        length=case["length"],
        dtype="float32" if case["amp"] else "bfloat16",
        mixed_precision="bf16" if case["amp"] else "no",
        gradient_checkpointing=case["checkpointing"],
        optimizer="paged_adamw_8bit" if own else "adamw_torch",
        attention=case["attention"],
        padding=case["source"] == "peft",
        loss="full",
        peft_config=None if case["method"] == "full" else LoraConfig(**adapter),
        prepare_for_kbit=own and case["method"] == "qlora",
    )


def course(case: Case) -> int:
    """Return the predicted peak of a case in bytes, with what its loop keeps longer than Trainer.

    Trainer lets go of the logits before the backward pass, and of the gradients after the
    optimizer's step.
    """
    step = trainer_step(case)
    size = 4 if step.settings["prepare_for_kbit"] else 2  # its output layer is in float32
    logits = case["batch"] * case["length"] * shape(case["model"]).vocab_size * size
    gradients = step.phases["optimizer"]["gradients"]
    peak = 0
    for sample in step.timeline:
        alive = sum(sample.bytes.values())
        if sample.phase == "backward" and "logits" in case["keeps"]:
            alive += logits
        if sample.phase in ("forward", "backward") and "gradients" in case["keeps"]:
            alive += gradients - sample.bytes["gradients"]
        peak = max(peak, alive)
    return peak


class Others:
    """The planners of others, in an environment of their own.

    Each method asks one for a case and returns bytes; it raises Cannot where that planner has no
    setting for the case.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._environment = Environment(place, PLANNERS)
        for name in {case["model"] for case in cases()}:
            self._keep(name)

    def _keep(self, name: str) -> None:
        """Write a config where a folder is asked for, and where huggingface_hub's cache has it."""
        config = shape(name)
        config.architectures = [
            {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[config.model_type]
        ]
        revision = "0" * 40
        cached = self.place / "cache" / f"models--shape--{name}"
        for folder in (self.place / name, cached / "snapshots" / revision):
            config.save_pretrained(folder)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(revision)

    def _run(self, program: str, *arguments: object) -> str:
        offline = {"HF_HUB_CACHE": str(self.place / "cache"), "HF_HUB_OFFLINE": "1"}
        # A plan that does not fit a GPU ends with 1, and is an answer.
        return self._environment.run(program, *arguments, variables=offline, found=(1,))

    def vramcalc(self, case: Case) -> int:
        if case["method"] == "qlora" or case["targets"] != ATTENTION:
            raise Cannot
        given = {
            "mode": "train",
            "batch": case["batch"],
            "seq_len": case["length"],
            "lora_rank": case["rank"] if case["method"] == "lora" else None,
            "grad_checkpoint": case["checkpointing"],
            "precision": "amp" if case["amp"] else "pure",
            "attn_impl": case["attention"],
        }
        return int(self._python(VRAMCALC, str(self.place / case["model"]), given))

    def fitcheck_llm(self, case: Case) -> int:
        if case["amp"]:
            raise Cannot  # --precision sets what is computed in and what is stored
        options = {
            "--vram-mib": 10**6,
            "--batch-size": case["batch"],
            "--seq-len": case["length"],
            "--optimizer": "adam8bit" if case["source"] == "canifinetune" else "adamw",
        }
        flags = []
        if case["method"] == "full":
            options["--optimizer-dtype"] = "bf16"  # the states have the weights' type
            flags.append("--no-lora")
        else:
            options |= {"--lora-r": case["rank"], "--lora-targets": ",".join(case["targets"])}
        if case["method"] == "qlora":
            options["--quant"] = "nf4"
            flags.append("--double-quant")
        if case["checkpointing"]:
            flags.append("--grad-checkpoint")
        if case["attention"] != "eager":
            flags.append("--flash-attn")
        answer = self._json("fitcheck", f"shape/{case['model']}", "--json", options, flags)
        memory = answer["memory_mib"]
        return round((memory["total"] - _allowance(case, memory["overhead"])) * 2**20)

    def canifinetune(self, case: Case) -> int:
        scopes = {tuple(ATTENTION): "attention", ("q_proj", "v_proj"): "conservative"}
        if case["amp"] or tuple(case["targets"]) not in scopes:
            raise Cannot  # --base-dtype is of weights and computing
        options = {
            "--gpu-vram-gb": case["gpu_gib"],
            "--method": case["method"],
            "--seq-len": case["length"],
            "--micro-batch-size": case["batch"],
            "--lora-rank": case["rank"],
            "--target-scope": scopes[tuple(case["targets"])],
            "--optimizer": "paged_adamw_8bit"
            if case["source"] == "canifinetune"
            else "adamw_torch",
            "--attn": case["attention"],
        }
        flags = [f"--{'' if case['checkpointing'] else 'no-'}gradient-checkpointing", "--offline"]
        model = f"shape/{case['model']}"
        answer = self._json("canifinetune", "estimate", "--model", model, "--json", options, flags)
        memory = answer["memory"]
        own = memory["total_estimated_gb"] - memory["safety_margin_gb"]
        return round((own - _allowance(case, memory["cuda_overhead_gb"])) * GIB)

    def ftuneai(self, case: Case) -> int:
        targets = {
            tuple(ATTENTION): "attention_all",
            ("q_proj", "v_proj"): "attention",
        }
        if case["amp"] or tuple(case["targets"]) not in targets:
            raise Cannot
        config = shape(case["model"])
        spec = {
            "name": case["model"],
            "parameters": parameters(config),
            "hidden_size": config.hidden_size,
            "num_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_kv_heads": config.num_key_value_heads,
            "intermediate_size": config.intermediate_size,
            "vocab_size": config.vocab_size,
            "max_seq_length": 32768,
        }
        given = {
            "model": case["model"],
            "method": case["method"],
            "quantization": "4bit" if case["method"] == "qlora" else "none",
            "batch_size": case["batch"],
            "seq_length": case["length"],
            "gradient_checkpointing": case["checkpointing"],
            "optimizer": "adam_8bit" if case["source"] == "canifinetune" else "adamw",
            "lora_rank": case["rank"],
            "lora_target": targets[tuple(case["targets"])],
            "flash_attention": case["attention"] != "eager",
        }
        memory = json.loads(self._python(FTUNEAI, spec, given))
        return round((memory["total_gb"] - _allowance(case, memory["overhead_gb"])) * GIB)

    def peft_doctor(self, case: Case) -> int:
        config = shape(case["model"])
        options = {
            "--model": config.model_type,
            "--params-billion": parameters(config) / 1e9,
            "--hidden-size": config.hidden_size,
            "--num-layers": config.num_hidden_layers,
            "--seq-len": case["length"],
            "--batch-size": case["batch"],
            "--output": "json",
        }
        flags = {"full": ["--no-lora"], "lora": [], "qlora": ["--qlora"]}[case["method"]]
        if not case["checkpointing"]:
            flags = [*flags, "--no-gradient-checkpointing"]
        answer = self._json("peft-doctor", "estimate", options, flags)
        total = answer["metadata"]["estimated_total_gb"]
        (issue,) = (one for one in answer["issues"] if one["code"] == "estimate.total_vram")
        overhead = issue["details"]["overhead_gb"]
        return round((total - _allowance(case, overhead)) * GIB)

    def _json(self, program: str, *arguments: Any) -> dict[str, Any]:
        """Run a program with options by name, flags and words; return the JSON that it prints."""
        words: list[object] = []
        for argument in arguments:
            if isinstance(argument, dict):
                words += [word for pair in argument.items() for word in pair]
            elif isinstance(argument, list):
                words += argument
            else:
                words.append(argument)
        return json.loads(self._run(program, *words))

    def _python(self, code: str, *values: object) -> str:
        """Run a few lines with values as JSON in its arguments; return what they print."""
        return self._run("python", "-c", code, *map(json.dumps, values))


FTUNEAI = """\
import sys, json, dataclasses
from ftuneai import Estimator
from ftuneai.core.models import ModelSpec
from ftuneai.loader import load_models
spec, given = map(json.loads, sys.argv[1:])
load_models()[spec["name"]] = ModelSpec(**spec)
print(json.dumps(dataclasses.asdict(Estimator(**given).estimate_memory())))
"""
VRAMCALC = """\
import sys, json
from vramcalc import estimate
model, given = map(json.loads, sys.argv[1:])
print(estimate(model, **given).total)
"""


def _allowance(case: Case, overhead: float) -> float:
    """Return the part of a planner's overhead that is no part of the measured peak."""
    return overhead if case["kind"] == "allocated" else 0.0


def parameters(config: PretrainedConfig) -> int:
    """Return how many parameters a config's model has."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def measure(ask: Callable[[Case], int], asked: list[Case]) -> dict[str, Any]:
    """Ask a planner for all cases; return the ratios to what was measured, and seconds a case.

    `ratios` has a number for each case, or None where the planner has no setting for it.
    """
    ratios: list[float | None] = []
    started = time.perf_counter()
    for case in asked:
        try:
            ratios.append(round(ask(case) / case["peak"], 4))
        except Cannot:
            ratios.append(None)
    answered = sum(ratio is not None for ratio in ratios)
    return {"ratios": ratios, "seconds": round((time.perf_counter() - started) / answered, 2)}


def gaps() -> dict[str, float]:
    """Return what PyTorch's allocator held beyond the tensors, as a share of the tensors.

    `median`, `least` and `most` of the cases whose source gives both.
    """
    shares = [row["reserved"] / row["peak"] - 1 for row in content()["cases"] if "reserved" in row]
    found = {"median": statistics.median(shares), "least": min(shares), "most": max(shares)}
    return {"cases": len(shares)} | {name: round(share, 3) for name, share in found.items()}


def table(record: dict[str, Any]) -> str:
    """Return a record as a table in markdown: the errors of each planner, all and by source."""
    of = [case["source"] for case in record["cases"]]
    sources = list(dict.fromkeys(of))
    head = ["planner", "cases", "median error", "worst", *(f"median, {n}" for n in sources), "s"]
    rows = []
    for name, found in record["planners"].items():
        errors = {source: [] for source in sources}
        for source, ratio in zip(of, found["ratios"], strict=True):
            if ratio is not None:
                errors[source].append(abs(ratio - 1))
        every = [error for some in errors.values() for error in some]
        rows.append(
            [
                f"{name} {record['versions'].get(name, '')}".strip(),
                f"{len(every)} of {len(of)}",
                f"{statistics.median(every):.1%}",
                f"{max(every):.1%}",
                *(f"{statistics.median(some):.1%}" if some else "–" for some in errors.values()),
                f"{found['seconds']:.1f}",
            ]
        )
    return markdown(head, rows)


def main() -> int:
    asked = cases()
    with tempfile.TemporaryDirectory() as place:
        others = Others(Path(place))
        planners = {
            "this course": measure(course, asked),
            "this course, as in Trainer": measure(lambda case: trainer_step(case).peak, asked),
        }
        for name in PLANNERS:
            planners[name] = measure(getattr(others, name.replace("-", "_")), asked)
    record = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: metadata.version(name) for name in LIBRARIES} | PLANNERS,
        "cases": [{key: case[key] for key in ("source", "model", "method")} for case in asked],
        "gaps": gaps(),
        "planners": planners,
    }
    write_whole(RESULTS, json.dumps(record, indent=1) + "\n")
    put(table(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
