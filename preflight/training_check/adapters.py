"""What an adapter does on its model other than meant, or not at all.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from peft import AdaLoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import Trainer, TrainingArguments

from course_utils.setting_checks import unmatched_targets
from preflight.findings import Finding, finding
from preflight.lora_targets import check_targets
from preflight.lora_targets.discovery import Model
from preflight.training_check.adapter_rules import IN_THE_CACHE
from preflight.training_check.method_rules import changes_base
from preflight.training_check.probing import is_a

# What course_utils.hardware.fix_bitsandbytes switches off in layers of bitsandbytes 0.50.
PACKS = "support_avx512bf16_for_cpu"
# What peft 0.21 adds to modules_to_save for these tasks, whether the model has it or not.
ADDED = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def target_findings(model: Model, names: Iterable[str] | str) -> Iterator[Finding]:
    """Yield the target names that match nothing in a model, or not what they seem to."""
    check = check_targets(model, names)
    wrong = [(name.name, name.problem, name.nearest) for name in check.names if name.problem]
    if check.error and not wrong:  # of all the names together
        wrong = [(names, check.error, "")]
    for name, problem, nearest in wrong:
        yield finding(
            "target_modules",
            f"target_modules has {name!r}: {problem}. Allowed are names of layers; of a wrong one "
            "next to a right one peft says nothing.",
            (f"Write {nearest}. " if nearest else "")
            + "lora_targets.discover(model) lists the layers.",
        )


def unmatched_findings(model: PeftModel, config: PeftConfig) -> Iterator[Finding]:
    if missed := unmatched_targets(model):
        yield from target_findings(model.get_base_model().config, missed)
    kept = [name for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)]
    given = {*(getattr(config, "modules_to_save", None) or ())}
    for name in sorted(given.difference(ADDED.get(config.task_type, ()))):
        if not any(module.endswith(name) for module in kept):
            yield finding(
                "modules_to_save",
                f"modules_to_save has {name!r}: matches nothing. Allowed are names of modules; "
                "of a wrong one peft says nothing.",
                "Look for the name in model.named_modules(), such as lm_head or score.",
            )


def rank_findings(model: nn.Module) -> Iterator[Finding]:
    layers = [
        (rank, min(layer.in_features, layer.out_features), name.removeprefix("base_model.model."))
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
        for rank in layer.r.values()
    ]
    over = [one for one in layers if one[0] > one[1]]
    if over:
        rank, side, name = over[0]
        yield finding(
            "rank",
            f"The rank is {rank:,}, above the smaller side of {len(over)} of {len(layers)} layers "
            f"({side} in {name}). Allowed, but of no use: with a rank of {side} an adapter can be "
            "any change of that layer.",
            "Lower r: 8 and 16 are usual.",
            "warning",
        )


def adalora_findings(trainer: Trainer, config: PeftConfig) -> Iterator[Finding]:
    if not isinstance(config, AdaLoraConfig):
        return
    after_steps = [type(one).on_optimizer_step for one in trainer.callback_handler.callbacks]
    if not any("update_and_allocate" in after.__code__.co_names for after in after_steps):
        yield finding(
            "adalora_ranks",
            "No callback's on_optimizer_step calls update_and_allocate: AdaLoRA then keeps "
            f"init_r={config.init_r} ranks in every layer, and target_r={config.target_r} has no "
            "effect. Allowed, but no longer AdaLoRA: no trainer makes that call, and none says so.",
            "Add a callback with model.base_model.update_and_allocate(state.global_step), as "
            "lesson 05a does.",
            "warning",
        )
    if config.orth_reg_weight and is_a(trainer, "SFTTrainer"):
        yield finding(
            "adalora_penalty",
            f"SFTTrainer leaves out the penalty that orth_reg_weight={config.orth_reg_weight} asks "
            "for: it makes the loss from log-probabilities, and AdaLoRA adds the penalty to the "
            "model's own loss. Allowed, and then nothing keeps P and Q near orthogonal.",
            "Train with Trainer, which takes the model's own loss; or do without the penalty.",
            "warning",
        )


def checkpointing_findings(
    args: TrainingArguments | None, config: PeftConfig | None
) -> Iterator[Finding]:
    """Yield a finding if activation checkpointing takes away the cache that holds a prefix."""
    # Of two names for it, the older is an alias since transformers 5.24.
    names = ("activation_checkpointing", "gradient_checkpointing")
    on = next((name for name in names if getattr(args, name, False)), "")
    if on and getattr(config, "peft_type", None) in IN_THE_CACHE:
        yield finding(
            "prefix_checkpointing",
            f"{on} is {getattr(args, on)}, and {config.peft_type.value} hands its "
            f"{config.num_virtual_tokens} virtual tokens over as past keys and values, in a cache. "
            "Checkpointing drops the cache but not the tokens' part of the mask: the first step "
            "fails with 'The size of tensor a … must match the size of tensor b …'. Allowed is "
            "False. It is True by default in SFTConfig.",
            f"Give {on}=False.",
        )


def switched_off_findings(trainer: Trainer, config: PeftConfig) -> Iterator[Finding]:
    """Yield a finding if a trainer takes the model with its adapter off for the base, and errs."""
    own = getattr(trainer, "ref_model", trainer) is None and getattr(trainer, "beta", 1)
    if own and "ref" not in trainer.model.peft_config and changes_base(config):
        yield finding(
            "reference_off",
            f"The reference of this {type(trainer).__name__} is the model with its adapter "
            f"switched off, and with init_lora_weights={config.init_lora_weights!r} that is not "
            "the base: the loss is wrong from the first step (DPO's is not log 2, 0.693, there). "
            "Allowed is a start that leaves the base as it is.",
            "Give init_lora_weights=True, or the base once more as ref_model.",
        )


def copied_findings(trainer: Trainer, config: PeftConfig) -> Iterator[Finding]:
    """Yield a finding if the copy that a trainer makes of its adapter took from the base, too.

    trl 1.16 makes the copy "ref" with the adapter's own config, and peft starts it by that.
    """
    preference = is_a(trainer, "DPOTrainer") or is_a(trainer, "GRPOTrainer")
    alone = getattr(trainer, "ref_model", None) is None and "ref" in trainer.model.peft_config
    if preference and alone and changes_base(config):
        start = getattr(config, "init_lora_weights", None)
        yield finding(
            "reference_copy",
            f"{type(trainer).__name__} copied the adapter as its reference, and a start with "
            f"init_lora_weights={start!r} takes a part out of the base weights: it was taken out "
            "once more, and the model is no longer the one that was given. The loss does not show "
            "it (policy and reference are changed alike). Allowed is a start that leaves the base "
            "as it is.",
            "Set model.peft_config['default'].init_lora_weights = True before you build the "
            "trainer: the copy gets the adapter's weights all the same.",
        )


def quantization_findings(model: nn.Module) -> Iterator[Finding]:
    layers = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    # A head that was tied after it was quantized has plain weights.
    layers = [layer for layer in layers if hasattr(layer.weight, "quant_state")]
    if layers and layers[0].weight.quant_type == "fp4":
        yield finding(
            "fp4",
            "The base model is quantized to fp4, the default of BitsAndBytesConfig, which silently "
            "drops a misspelt bnb_4bit_quant_type. Allowed are fp4 and nf4.",
            'QLoRA has bnb_4bit_quant_type="nf4": set it and load the model again. '
            "quantization.checked_arguments(...) finds misspelt names.",
            "warning",
        )
    packing = [
        layer
        for layer in layers
        if layer.weight.device.type == "cpu" and getattr(layer, PACKS, False)
    ]
    if packing:
        yield finding(
            "repacked",
            f"On this CPU (it has avx512_bf16) bitsandbytes repacks {len(packing)} layers in 4 "
            "bits at the first forward in eval mode. From then on gradients, merges, dequantize() "
            "and saved files are wrong, and nothing says so. Allowed is a model that is never "
            "evaluated, or that is kept from it.",
            "Call hardware.fix_bitsandbytes() of course_utils, then load the model again.",
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
        yield finding(
            "block_size",
            f"{len(cut)} of {len(layers)} layers in 4 bits are {width} wide, which cuts the blocks "
            f"of {block}: on a CPU bitsandbytes computes them wrongly and says nothing. Allowed "
            f"there are multiples of {block}.",
            "Use a GPU, or load this model without quantization.",
        )
