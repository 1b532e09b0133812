"""What goes wrong in training without an error: found before it starts.

>>> check_settings(args, peft_config, model)  # before the trainer is built
>>> check_trainer(trainer)  # before trainer.train()

What the libraries refuse themselves, in words that help, is left to them.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

from datasets import Dataset
from peft import AdaLoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import Trainer, TrainingArguments

from course_utils.setting_checks import setting_problems, unmatched_targets
from preflight.dataset_check import Finding
from preflight.dataset_check.report import findings_html
from preflight.lora_targets import check_targets
from preflight.lora_targets.discovery import Model

IGNORED = -100  # the label that the loss skips
NAMED = 5  # rows that a finding names


@dataclass(frozen=True)
class TrainingReport:
    """What is wrong with settings or a trainer; shows as a table in a notebook.

    `about` says in a line what is trained.
    """

    about: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True if no finding is an error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def require_ok(self) -> None:
        """Raise ValueError, with all that is wrong and what to do, unless the report is ok."""
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if errors:
            raise ValueError("\n".join(f"{error.what} {error.fix}" for error in errors))

    def __str__(self) -> str:
        found = [*map(str, self.findings)] or ["Nothing found."]
        return "\n\n".join([self.about, *found])

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.about)}</p>{findings_html(self.findings)}"


def _finding(code: str, what: str, fix: str, severity: str = "error") -> Finding:
    """Return a finding about the whole training."""
    return Finding(severity, code, what, 0, (), fix)


def check_settings(
    args: TrainingArguments | None = None,
    peft_config: PeftConfig | None = None,
    model: Model | None = None,
) -> TrainingReport:
    """Return what is wrong with training arguments and a PEFT config, before a trainer is built.

    With `model` (a model without an adapter, or what `lora_targets.discover` takes) the config's
    target_modules are held against it, too.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: as `lora_targets.discover`, for `model`.
    """
    given = [type(one).__name__ for one in (args, peft_config) if one is not None]
    findings = list(_setting_findings(args, peft_config))
    targets = getattr(peft_config, "target_modules", None)
    if model is not None and targets:
        findings += _target_findings(
            model, targets if isinstance(targets, str) else sorted(targets)
        )
    return TrainingReport(" and ".join(given) or "no settings", tuple(findings))


def _setting_findings(
    args: TrainingArguments | None, config: PeftConfig | None
) -> Iterator[Finding]:
    """Yield what is wrong with settings by themselves, without a model."""
    for problem in setting_problems(args, config):
        yield _finding(problem.code, problem.what, problem.fix)


def _target_findings(model: Model, names: Iterable[str] | str) -> Iterator[Finding]:
    """Yield the target names that match nothing in a model, or not what they seem to."""
    check = check_targets(model, names)
    wrong = [(name.name, name.problem, name.nearest) for name in check.names if name.problem]
    if check.error and not wrong:  # of all the names together
        wrong = [(names, check.error, "")]
    for name, problem, nearest in wrong:
        yield _finding(
            "target_modules",
            f"target_modules has {name!r}: {problem}. Allowed are names of layers; of a wrong one "
            "next to a right one peft says nothing.",
            (f"Write {nearest}. " if nearest else "")
            + "lora_targets.discover(model) lists the layers.",
        )


def check_trainer(trainer: Trainer) -> TrainingReport:
    """Return what is wrong with a Trainer or SFTTrainer that is built and not trained yet.

    Next to its settings: how much is trained, names that matched nothing, ranks above a layer's
    size, a base model quantized otherwise than meant, rows without a label. Nothing is changed and
    no random number drawn, so the training goes as it would have.
    """
    model = base = trainer.model
    if isinstance(model, PeftModel):
        base, config = model.get_base_model(), model.active_peft_config
        trained, total = model.get_nb_trainable_parameters()
        findings = [
            *_setting_findings(trainer.args, config),
            *_unmatched(model, config),
            *_ranks(model),
            *_adalora(trainer, config),
        ]
    else:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        findings = list(_setting_findings(trainer.args, None))
    if trained == total:
        findings.append(
            _finding(
                "all_weights",
                f"All {total:,} parameters are trained: there is no adapter. Allowed, and right "
                "for full fine-tuning.",
                "For LoRA give the trainer peft_config=LoraConfig(...).",
                "warning",
            )
        )
    about = (
        f"{type(trainer).__name__} on {type(base).__name__}: trains {trained:,} of {total:,} "
        f"parameters ({trained / total:.2%}) at learning rate {trainer.args.learning_rate}"
    )
    return TrainingReport(
        about, (*findings, *_quantized(model), *_rows(trainer.train_dataset, base))
    )


def _unmatched(model: PeftModel, config: PeftConfig) -> Iterator[Finding]:
    if missed := unmatched_targets(model):
        yield from _target_findings(model.get_base_model().config, missed)
    kept = [name for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)]
    for name in getattr(config, "modules_to_save", None) or ():
        if not any(module.endswith(name) for module in kept):
            yield _finding(
                "modules_to_save",
                f"modules_to_save has {name!r}: matches nothing. Allowed are names of modules; "
                "of a wrong one peft says nothing.",
                "Look for the name in model.named_modules(), such as lm_head or score.",
            )


def _ranks(model: nn.Module) -> Iterator[Finding]:
    layers = [
        (rank, min(layer.in_features, layer.out_features), name.removeprefix("base_model.model."))
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
        for rank in layer.r.values()
    ]
    over = [one for one in layers if one[0] > one[1]]
    if over:
        rank, side, name = over[0]
        yield _finding(
            "rank",
            f"The rank is {rank:,}, above the smaller side of {len(over)} of {len(layers)} layers "
            f"({side} in {name}). Allowed, but of no use: with a rank of {side} an adapter can be "
            "any change of that layer.",
            "Lower r: 8 and 16 are usual.",
            "warning",
        )


def _adalora(trainer: Trainer, config: PeftConfig) -> Iterator[Finding]:
    if not isinstance(config, AdaLoraConfig):
        return
    after_steps = [type(one).on_optimizer_step for one in trainer.callback_handler.callbacks]
    if not any("update_and_allocate" in after.__code__.co_names for after in after_steps):
        yield _finding(
            "adalora_ranks",
            "No callback's on_optimizer_step calls update_and_allocate: AdaLoRA then keeps "
            f"init_r={config.init_r} ranks in every layer, and target_r={config.target_r} has no "
            "effect. Allowed, but no longer AdaLoRA: no trainer makes that call, and none says so.",
            "Add a callback with model.base_model.update_and_allocate(state.global_step), as "
            "lesson 05a does.",
            "warning",
        )
    # By name, so that a check of a plain Trainer need not import trl.
    if config.orth_reg_weight and any(c.__name__ == "SFTTrainer" for c in type(trainer).__mro__):
        yield _finding(
            "adalora_penalty",
            f"SFTTrainer leaves out the penalty that orth_reg_weight={config.orth_reg_weight} asks "
            "for: it makes the loss from log-probabilities, and AdaLoRA adds the penalty to the "
            "model's own loss. Allowed, and then nothing keeps P and Q near orthogonal.",
            "Train with Trainer, which takes the model's own loss; or do without the penalty.",
            "warning",
        )


def _quantized(model: nn.Module) -> Iterator[Finding]:
    layers = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    if layers and layers[0].weight.quant_type == "fp4":
        yield _finding(
            "fp4",
            "The base model is quantized to fp4, the default of BitsAndBytesConfig, which silently "
            "drops a misspelt bnb_4bit_quant_type. Allowed are fp4 and nf4.",
            'QLoRA has bnb_4bit_quant_type="nf4": set it and load the model again. '
            "quantization.checked_arguments(...) finds misspelt names.",
            "warning",
        )
    # Of such widths bitsandbytes 0.50 mixes up the blocks' scales on a CPU, but not on a GPU.
    sizes = [
        (layer.in_features, layer.weight.quant_state.blocksize)
        for layer in layers
        if layer.weight.device.type == "cpu"
    ]
    cut = [(width, block) for width, block in sizes if width % block and width % 16 == 0]
    if cut:
        width, block = cut[0]
        yield _finding(
            "block_size",
            f"{len(cut)} of {len(layers)} layers in 4 bits are {width} wide, which cuts the blocks "
            f"of {block}: on a CPU bitsandbytes computes them wrongly and says nothing. Allowed "
            f"there are multiples of {block}.",
            "Use a GPU, or load this model without quantization.",
        )


def _rows(rows: object, model: nn.Module) -> Iterator[Finding]:
    if not isinstance(rows, Dataset):  # what streams is not read in advance
        return
    if not len(rows):
        yield _finding(
            "no_rows",
            "train_dataset has 0 rows. Allowed is 1 or more; SFTTrainer drops rows of which "
            "max_length leaves no answer.",
            "Raise max_length; dataset_check.check(dataset, tokenizer) names the rows.",
        )
    if "labels" in rows.column_names:
        # A causal model predicts from the second token on.
        first = int(type(model).__name__.endswith("ForCausalLM"))
        empty = [
            place
            for place, labels in enumerate(rows.with_format(None)["labels"])
            if isinstance(labels, list) and all(label == IGNORED for label in labels[first:])
        ]
        if empty:
            what = (
                "Rows in which no token is predicted: each label is masked (-100), or there is one "
                "token alone. They teach nothing, and a batch of them logs a loss of 0.0."
            )
            fix = "Raise max_length, fix the column that masks them, or drop the rows."
            some = tuple(empty[:NAMED])
            yield Finding("error", "no_labels", what, len(empty), some, fix, "train")
