"""How far a training plan can grow on a GPU, and what would make one fit that does not.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor, gcd
from typing import Any

from transformers import PretrainedConfig

from course_utils.memory.step_memory import StepMemory, size_text
from preflight.memory_plan.gpus import GPU
from preflight.memory_plan.options import GENERATIONS, SEVERAL_PASSES
from preflight.memory_plan.predict import Shared, predict
from preflight.memory_plan.sharding import Units, sharded, units
from preflight.memory_plan.stored import methods

GIB = 2**30
LARGEST_BATCH = 1024  # where the search ends
LONGEST = 131072  # tokens, for a model that states no limit
TOKENS = 64  # lengths are searched in steps of this many
SHORTEST = 256  # tokens; a shorter length is not proposed
DEGREES = (2, 4, 8)
SIZES = ("batch_size", "length")


@dataclass(frozen=True)
class Overhead:
    """What a GPU needs beyond the tensors of a step: `fixed` GiB and a `share` of the peak.

    The prediction counts the bytes of tensors. The CUDA context, the workspaces of kernels and the
    gaps between tensors (fragmentation) come on top. The defaults are what others measured. `fixed`
    is the most that lay outside PyTorch in five of the out-of-memory messages named in gpus.py (0.4
    to 0.6 GiB; one process on its GPU). `share` is the median of the gaps in eleven training steps
    (2 to 25% of the tensors), which are in data/results/planners.json with their source.
    """

    fixed: float = 0.6
    share: float = 0.08

    def __post_init__(self) -> None:
        if not (0 <= self.fixed < float("inf") and 0 <= self.share < float("inf")):
            raise ValueError(
                f"An overhead of {self.fixed} GiB + {self.share:.0%} was given. Neither can be "
                "below 0. Give, for example, Overhead(fixed=0.6, share=0.08)."
            )

    def __str__(self) -> str:
        return f"{self.fixed:g} GiB + {100 * self.share:g}%"

    def of(self, peak: int) -> int:
        """Return the overhead of a step with this peak, in bytes."""
        return int(self.fixed * GIB + self.share * peak)


@dataclass(frozen=True)
class Change:
    """One change to a plan: the `setting` to write, and what it saves at the peak, in bytes."""

    name: str
    setting: str
    saving: int
    fits: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.setting}): saves {size_text(self.saving)}"


class Search:
    """What plans for one model need, each simulated once, and what a plan can become on a GPU."""

    def __init__(
        self,
        config: PretrainedConfig,
        overhead: Overhead,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.overhead, self.progress = config, overhead, progress
        self.made: dict[tuple[str, bool], StepMemory] = {}
        self.shared: defaultdict[str, Shared] = defaultdict(Shared)
        # What was asked for one GPU serves the next: method and size -> the bytes by that size.
        self.points: defaultdict[tuple[str, str], dict[int, int]] = defaultdict(dict)

    @cached_property
    def units(self) -> Units:
        return units(self.config)

    def memory(self, plan: Mapping[str, Any]) -> StepMemory:
        """Return what a plan takes."""
        whole = self._predicted(plan, timeline=True)
        return whole if plan["shards"] == 1 else sharded(whole, self.units, plan["shards"])

    def phases(self, plan: Mapping[str, Any]) -> StepMemory:
        """Return the same, perhaps without a timeline, which costs less."""
        return self._predicted(plan, timeline=False) if plan["shards"] == 1 else self.memory(plan)

    def _predicted(self, plan: Mapping[str, Any], timeline: bool) -> StepMemory:
        options = {k: v for k, v in plan.items() if k != "shards"}
        key = repr(sorted(options.items()))
        if (key, True) in self.made:
            return self.made[key, True]
        if (key, timeline) not in self.made:
            if self.progress is not None:
                self.progress("{method}, batch {batch_size}, length {length}".format(**options))
            rest = repr(sorted((k, v) for k, v in options.items() if k not in SIZES))
            self.made[key, timeline] = predict(
                self.config, **options, shared=self.shared[rest], timeline=timeline
            )
        return self.made[key, timeline]

    def needed(self, plan: Mapping[str, Any]) -> int:
        peak = self.phases(plan).peak
        return peak + self.overhead.of(peak)

    def limits(self, plan: Mapping[str, Any], gpu: GPU) -> tuple[int, int]:
        """Return the largest batch and the largest length that fit, 0 where none does."""
        text = self.config.get_text_config()
        context = getattr(text, "max_position_embeddings", None) or LONGEST
        unit = min(TOKENS, context)
        group = _group(plan)
        batch = group * largest(
            lambda n: self.needed({**plan, "batch_size": group * n}),
            gpu.bytes,
            start=plan["batch_size"] // group,
            end=max(LARGEST_BATCH, plan["batch_size"]) // group,
            points=self.points[plan["method"], "batch_size"],
        )
        lengths = self.points[plan["method"], "length"]
        if plan["length"] % unit == 0:  # a point that is known
            lengths[plan["length"] // unit] = self.needed(plan)
        # With the attention kernels in use memory follows the tokens of a batch, however they are
        # divided into rows, so what the batches took is the first guess for the length.
        groups = on_line(self.points[plan["method"], "batch_size"], gpu.bytes)
        batches = group * groups if groups else batch
        tokens = largest(
            lambda n: self.needed({**plan, **with_length(plan, unit * n)}),
            gpu.bytes,
            start=max(1, int(batches * plan["length"] / (plan["batch_size"] * unit))),
            end=context // unit,
            points=lengths,
        )
        return batch, tokens * unit

    def advice(
        self, plan: Mapping[str, Any], gpu: GPU
    ) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
        """Return the change or changes that make a plan fit, and those that alone do not."""
        if self.needed(plan) <= gpu.bytes:
            return (), ()
        tried = []
        for step in self.possible(plan, gpu):
            (change,) = self.changes(plan, [step], gpu)
            if change.fits:
                return (change,), tuple(tried)
            tried.append(change)
        return self.changes(plan, self.together(plan, gpu), gpu), tuple(tried)

    def possible(self, plan: Mapping[str, Any], gpu: GPU) -> list[_Step]:
        """Return the steps from a plan, without those that leave weights that are too large."""
        heavy = self.phases(plan).total("load") + self.overhead.of(0) > gpu.bytes
        allowed = methods(self.config)
        return [
            s
            for s in steps(plan, gpu)
            if s.update.get("method", plan["method"]) in allowed and (s.lightens or not heavy)
        ]

    def together(self, plan: Mapping[str, Any], gpu: GPU) -> list[_Step]:
        """Return steps that make a plan fit only together, [] where nothing does."""
        taken: list[_Step] = []
        now = plan
        while self.needed(now) > gpu.bytes:
            peak = self.phases(now).peak
            saving = (
                step
                for step in self.possible(now, gpu)
                if self.phases({**now, **step.update}).peak < peak
            )
            step = next(saving, None)
            if step is None:
                return []
            taken.append(step)
            now = {**now, **step.update}
        # A later step can make an earlier one needless: QLoRA after LoRA, say.
        for step in taken[:-1]:
            rest = [other for other in taken if other is not step]
            if self.needed(_after(plan, rest)) <= gpu.bytes:
                taken = rest
        return taken

    def changes(
        self, plan: Mapping[str, Any], taken: Sequence[_Step], gpu: GPU
    ) -> tuple[Change, ...]:
        """Return steps as changes, each with what it saves after those before it."""
        changes = []
        for i, step in enumerate(taken):
            before, after = _after(plan, taken[:i]), _after(plan, taken[: i + 1])
            saving = self.phases(before).peak - self.phases(after).peak
            fits = self.needed(after) <= gpu.bytes
            changes.append(Change(step.name, step.setting, saving, fits))
        return tuple(changes)


def _group(plan: Mapping[str, Any]) -> int:
    """Return the rows of which a batch has to have a multiple: GRPO writes whole groups."""
    if plan.get("trainer") != "grpo":
        return 1
    generations = plan.get("num_generations", GENERATIONS)
    return generations // gcd(generations, plan.get("gradient_accumulation_steps", 1))


def with_length(plan: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the settings of another length, of which a completion keeps its share."""
    completion = plan.get("completion_length")
    if completion is None:
        return {"length": length}
    share = max(1, length * completion // plan["length"])
    return {"length": length, "completion_length": share}


def _after(plan: Mapping[str, Any], taken: Sequence[_Step]) -> dict[str, Any]:
    """Return a plan with steps taken."""
    plan = dict(plan)
    for step in taken:
        plan |= step.update
    return plan


@dataclass(frozen=True)
class _Step:
    """A change that can be made to a plan; `lightens` says whether weights are smaller after it."""

    name: str
    setting: str
    update: Mapping[str, Any]
    lightens: bool = False


def steps(plan: Mapping[str, Any], gpu: GPU) -> Iterator[_Step]:
    """Yield what can be changed in a plan, what costs the result least first.

    First what leaves the result as it is and costs time, then the optimizer, the method, the data,
    and at last the number of GPUs.
    """
    method, optimizer = plan["method"], plan.get("optimizer", "adamw_torch_fused")
    batch, trainer = plan["batch_size"], plan.get("trainer") or "sft"
    if not plan.get("gradient_checkpointing", True):
        yield _Step(
            "gradient checkpointing",
            "gradient_checkpointing=True"
            if trainer in SEVERAL_PASSES
            else "activation_checkpointing=True in SFTConfig",
            {"gradient_checkpointing": True},
        )
    if trainer == "dpo" and plan.get("reference") is not False:
        yield _Step(
            "the reference's log-probabilities beforehand",
            "precompute_ref_log_probs=True in DPOConfig",
            {"reference": False},
            lightens=method == "full",
        )
    if plan.get("loss", "fused") != "fused":
        yield _Step("the fused loss", "SFTTrainer, loss='fused'", {"loss": "fused"})
    if batch > 1:
        rounds = batch * plan.get("gradient_accumulation_steps", 1)
        yield _Step(
            "accumulated gradients",
            f"batch_size=1, gradient_accumulation_steps={rounds}",
            {"batch_size": 1, "gradient_accumulation_steps": rounds},
        )
    if gpu.cuda and optimizer.startswith(("adamw", "paged_adamw")):
        if "8bit" not in optimizer:
            yield _Step("8-bit AdamW", "optim='adamw_8bit'", {"optimizer": "adamw_8bit"})
        if not optimizer.startswith("paged"):
            paged = {"optimizer": "paged_adamw_8bit"}
            yield _Step("paged 8-bit AdamW", "optim='paged_adamw_8bit'", paged)
    if method == "full":
        # The weights stay, so where they alone are too large LoRA cannot be the answer.
        yield _Step("LoRA", "method='lora'", {"method": "lora"})
    if method in ("full", "lora", "int8"):
        update = {"method": "qlora"}
        if plan.get("quantization_config") is not None:  # in 8 bits; QLoRA has its own
            update |= {"quantization_config": None}
        yield _Step("QLoRA", "method='qlora'", update, lightens=True)
    length = plan["length"] // 2
    while length >= SHORTEST:
        yield _Step(f"length {length}", f"length={length}", with_length(plan, length))
        length //= 2
    if gpu.cuda and trainer not in SEVERAL_PASSES:
        for degree in (d for d in DEGREES if d > plan["shards"]):
            update = {"shards": degree}
            yield _Step(f"FSDP on {degree} GPUs", f"shards={degree}", update, lightens=True)


def on_line(points: Mapping[int, int], limit: int) -> float | None:
    """Return where the line through the two points nearest to a limit meets it, if there is one."""
    near = sorted(points, key=lambda n: abs(points[n] - limit))[:2]
    rise = points[near[1]] - points[near[0]] if len(near) == 2 else 0
    if rise == 0:
        return None
    return near[0] + (limit - points[near[0]]) * (near[1] - near[0]) / rise


def largest(
    needed: Callable[[int], int],
    limit: int,
    *,
    start: int,
    end: int,
    points: dict[int, int] | None = None,
) -> int:
    """Return the largest n of 1 to `end` for which `needed(n)` is at most `limit`; 0 if none is.

    `needed` must not fall as n grows. The first question is `start`. Memory is close to a straight
    line in n, so the line through the two points nearest to the limit says where to look next; a
    doubling or a halving, where there is no line yet. The answer and the number above it are always
    among the points that were asked; `points` has those of earlier searches, and keeps the new.
    """
    points = {} if points is None else points
    known = {n: held for n, held in points.items() if n <= end}
    low = max((n for n, held in known.items() if held <= limit), default=0)
    high = min((n for n, held in known.items() if held > limit), default=end + 1)
    asked = 0
    while high - low > 1:
        met = on_line(points, limit)
        if asked == 0 and low < start < high:
            n = start
        elif met is None or asked > 8:  # no line, or far from one: halving always ends
            n = 2 * low if high > end and low else (low + high) // 2
        else:
            n = floor(met)
        n = min(max(n, low + 1), high - 1)
        points[n] = needed(n)
        low, high = (n, high) if points[n] <= limit else (low, n)
        asked += 1
    return low
