"""On which GPUs a training plan fits.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PretrainedConfig

from course_utils.configs import build_empty, load_config
from course_utils.display import text_table
from course_utils.memory.step_memory import StepMemory, size_text
from preflight.memory_plan.advice import GIB, Change, Overhead, Search
from preflight.memory_plan.gpus import GPU, GPUS, find_gpu
from preflight.memory_plan.model_notes import model_notes
from preflight.memory_plan.options import SEVERAL_PASSES
from preflight.memory_plan.sharding import check_degree
from preflight.memory_plan.stored import dequantized, holds_fp8

TRAINER_NOTES = {
    "dpo": (
        "DPO: the batch counts pairs, two rows each. The score phase is the reference: an adapter "
        "switched off, or in full fine-tuning a second model, counted as weights."
    ),
    "grpo": (
        "GRPO: the batch counts completions, the length prompt and completion together. All "
        "completions of a step are written at once, by generate and not by vLLM; its cache of keys "
        "and values counts among the temporaries."
    ),
}


@dataclass(frozen=True)
class GPUFit:
    """A plan on a GPU.

    `largest_batch` and `largest_length` are the largest that fit while the rest of the plan stays
    (0: none does; None: not asked for; a length is a multiple of 64 and at most the model's
    context). If the plan does not fit, `changes` are the first change that makes it fit, or several
    in their order where one is not enough (empty: nothing helps); `tried` are those that do not
    make it fit alone.
    """

    gpu: GPU
    method: str
    memory: StepMemory
    overhead: int
    largest_batch: int | None = None
    largest_length: int | None = None
    changes: tuple[Change, ...] = ()
    tried: tuple[Change, ...] = ()

    @property
    def needed(self) -> int:
        """The peak and the overhead together, in bytes."""
        return self.memory.peak + self.overhead

    @property
    def fits(self) -> bool:
        """Whether the GPU has the bytes that are needed."""
        return self.needed <= self.gpu.bytes


@dataclass(frozen=True)
class GPUFitTable:
    """Plans on GPUs, as a table; `fits[gpu, method]` is one of its rows.

    `unquantized` is the share of the parameters that bitsandbytes leaves as they are because they
    are 3-D tensors, in which several experts lie; 0 if no method quantizes. `about` is what there
    is to know of the model, in sentences.
    """

    rows: tuple[GPUFit, ...]
    overhead: Overhead = field(default_factory=Overhead)
    unquantized: float = 0.0
    about: tuple[str, ...] = ()

    def __getitem__(self, key: tuple[str | float | GPU, str]) -> GPUFit:
        gpu, method = find_gpu(key[0]), key[1]
        for row in self.rows:
            if (row.gpu, row.method) == (gpu, method):
                return row
        pairs = ", ".join(f"({r.gpu.name!r}, {r.method!r})" for r in self.rows)
        raise ValueError(f"There is no row {(gpu.name, method)}. Allowed are {pairs}.")

    @property
    def notes(self) -> list[str]:
        """What the table does not show, in sentences."""
        gpus = {row.gpu for row in self.rows}
        notes = [
            f"The overhead ({self.overhead}) is no simulation: CUDA's context took 0.4 to 0.6 GiB "
            "where it was read, and the gaps between tensors 2 to 25% of their size (median 8%).",
            *self.about,
        ]
        idle = sorted({name for row in self.rows for name in row.memory.settings.get("idle", ())})
        if idle:
            notes.append(f"No gradient reaches what would be trained in {', '.join(idle)}.")
        trainers = {row.memory.settings.get("trainer") for row in self.rows}
        notes += [TRAINER_NOTES[name] for name in TRAINER_NOTES if name in trainers]
        if self.unquantized:
            notes.append(
                f"{self.unquantized:.0%} of the parameters are experts in 3-D tensors. "
                "bitsandbytes quantizes linear layers alone, so these keep their dtype."
            )
        emulating = sorted(gpu.name for gpu in gpus if gpu.cuda and not gpu.bf16)
        if emulating:
            cast = "; with QLoRA, cast the adapter to float32 once SFTTrainer is made"
            notes.append(
                f"{', '.join(emulating)} only emulates bfloat16: train in float16, which takes "
                f"the same bytes{cast if any(row.method == 'qlora' for row in self.rows) else ''}."
            )
        if any(not gpu.cuda for gpu in gpus):
            notes.append(
                "Apple GPUs are judged by what CUDA would take; they share the machine's memory."
            )
        host = max((row.memory.host for row in self.rows), default=0)
        if host:
            notes.append(f"Up to {host / GIB:.1f} GiB of paged state lie in the machine's memory.")
        return notes

    def to_frame(self) -> pd.DataFrame:
        """Return the table; sizes are in GiB."""
        records = []
        for row in self.rows:
            record = {
                "GPU": row.gpu.name,
                "has": round(row.gpu.memory, 2),
                "method": row.method,
                "predicted": round(row.memory.peak / GIB, 2),
                "overhead": round(row.overhead / GIB, 2),
                "fits": row.fits,
            }
            if any(r.largest_batch is not None for r in self.rows):
                record |= {
                    "largest batch": row.largest_batch,
                    "largest length": row.largest_length,
                }
            if any(r.changes for r in self.rows):
                record["would fit with"] = " + ".join(c.name for c in row.changes)
            records.append(record)
        return pd.DataFrame(records)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; sizes are in bytes, but a GPU's in GiB."""
        memories = {row.method: row.memory.to_dict() for row in self.rows}
        rows = [
            {
                "gpu": asdict(row.gpu),
                "method": row.method,
                "needed": row.needed,
                "overhead": row.overhead,
                "fits": row.fits,
                "largest_batch": row.largest_batch,
                "largest_length": row.largest_length,
                "changes": [asdict(change) for change in row.changes],
                "tried": [asdict(change) for change in row.tried],
            }
            for row in self.rows
        ]
        overhead = asdict(self.overhead)
        return {"memory": memories, "overhead": overhead, "rows": rows, "notes": self.notes}

    def __repr__(self) -> str:
        return "\n".join([self.to_frame().to_string(index=False), *self.notes])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return self.to_frame().to_html(index=False) + notes


def fit_gpus(
    model: str | Path | PretrainedConfig,
    gpus: str | float | GPU | Iterable[str | float | GPU] | None = None,
    methods: str | Sequence[str] = ("full", "lora", "qlora"),
    *,
    batch_size: int = 1,
    length: int = 1024,
    shards: int = 1,
    overhead: Overhead | None = None,
    limits: bool = False,
    advice: bool = False,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> GPUFitTable:
    """Return on which GPUs a model's training fits, by simulation.

    `gpus` are names, sizes in GiB or `GPU`s (None: all that the course knows); `options` go to
    `predict` as they are; with `shards` that many GPUs share the model. `limits` also searches the
    largest batch and the largest length, and `advice` what would make a plan fit that does not:
    both are answered by simulations alone, some five to ten of them for each GPU and method.
    `progress` is called with a few words on each plan before it is simulated.

    Raises:
        ValueError: if a GPU, a method or an option is not one of those allowed.
        FileNotFoundError, RuntimeError: as `load_config` and `predict` raise them.
    """
    check_degree(shards)
    if shards > 1 and options.get("trainer") in SEVERAL_PASSES:
        raise ValueError(
            f"shards={shards} with trainer={options['trainer']!r}. FSDP is planned for the "
            "trainers sft and trainer alone. Leave shards out."
        )
    config = load_config(model)
    overhead = overhead or Overhead()
    chosen = list(GPUS) if gpus is None else [find_gpu(gpu) for gpu in _several(gpus)]
    wanted = [methods] if isinstance(methods, str) else list(methods)
    if not chosen or not wanted:
        raise ValueError(
            f"{len(chosen)} GPUs and {len(wanted)} methods were given. There has to be at least "
            "one of each. Leave gpus out for all that the course knows."
        )
    kept = opened = Search(config, overhead, progress)
    if holds_fp8(config):
        opened = Search(dequantized(config), overhead, progress)
    sizes = {"batch_size": batch_size, "length": length, "shards": shards}
    rows = []
    for method in wanted:
        plan = {"method": method} | sizes | options
        for gpu in chosen:
            search = kept if gpu.fp8 else opened
            memory = search.memory(plan)
            largest = search.limits(plan, gpu) if limits else (None, None)
            remedy = search.advice(plan, gpu) if advice else ((), ())
            rows.append(GPUFit(gpu, method, memory, overhead.of(memory.peak), *largest, *remedy))
    rows.sort(key=lambda row: chosen.index(row.gpu))
    quantized = options.get("quantization_config") is not None
    quantizes = quantized or not {"qlora", "int8"}.isdisjoint(wanted)
    experts = _share_of_experts(config) if quantizes else 0.0
    return GPUFitTable(tuple(rows), overhead, experts, tuple(model_notes(config)))


def _share_of_experts(config: PretrainedConfig) -> float:
    """Return the share of a mixture's parameters that are 3-D tensors; 0 for other models."""
    if not getattr(config.get_text_config(), "num_experts_per_tok", None):
        return 0.0
    parameters = list(build_empty(config).parameters())
    return sum(p.numel() for p in parameters if p.dim() == 3) / sum(p.numel() for p in parameters)


def _several(gpus: Any) -> list[Any]:
    return [gpus] if isinstance(gpus, str | int | float | GPU) else list(gpus)


def _phases_text(memory: StepMemory) -> list[str]:
    """Return what each phase takes, where a step has more of them than SFT's."""
    if not {"generate", "score"} & memory.phases.keys():
        return []
    sizes = ", ".join(f"{phase} {size_text(memory.total(phase))}" for phase in memory.phases)
    return [f"highest in each phase: {sizes}"]


def plan_text(result: GPUFitTable) -> str:
    """Return what was found about one method as text: its parts, where it fits, what to do."""
    row = result.rows[0]
    alike = len({r.memory.peak for r in result.rows}) == 1
    what = row.method if alike else f"{row.method} on {row.gpu.name}"
    held = [(name, size_text(n)) for name, n in row.memory.at_peak.items() if n > 2**16]
    held += [
        ("sum", size_text(row.memory.peak)),
        (f"overhead ({result.overhead})", size_text(row.overhead)),
        ("needed", size_text(row.needed)),
    ]
    if row.memory.host:
        held.append(("in the machine's memory", size_text(row.memory.host)))
    lines = [
        text_table(held, (f"{what}, peak in the {row.memory.peak_phase} phase", "")),
        *_phases_text(row.memory),
        "",
    ]
    for fits, words in ((True, "fits"), (False, "does not fit")):
        names = [f"{r.gpu.name} ({r.gpu.memory:.1f})" for r in result.rows if r.fits == fits]
        if names:
            lines.append(f"{words}: {', '.join(names)}")
    if row.largest_batch is not None:
        lines.append(f"largest batch {row.largest_batch}, largest length {row.largest_length}")
    if row.changes:
        lines.append("would fit with " + "; then ".join(map(str, row.changes)))
    elif not row.fits and row.largest_batch is not None:
        lines.append("nothing that was tried makes it fit")
    lines += [f"not enough alone: {change}" for change in row.tried]
    return "\n".join([*lines, "", *result.notes])
