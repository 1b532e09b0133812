"""What there is to know of a model before its plan is believed.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from course_utils.configs import build_empty, is_multimodal
from preflight.lora_targets import refused_names
from preflight.lora_targets.layers import find_layers
from preflight.memory_plan import stored


def model_notes(config: PretrainedConfig) -> list[str]:
    """Return sentences on how a plan treats a model that is more than a plain decoder."""
    notes = stored.notes(config)
    model = build_empty(config)
    if is_multimodal(config):
        notes.append(
            "The plan is for rows of text alone: images and sound take more. LoRA on the language "
            "model alone: the targets that `modules --suggest dense-linear` prints."
        )
    if left_out := refused_names(model):
        notes.append(
            f"peft refuses {', '.join(left_out)} in models of type {config.model_type!r}: adapters "
            "are on the other linear layers, unless the plan names its own."
        )
    if any(layer.kind == "state-space" for layer in find_layers(model)):
        notes.append(
            "State-space layers are simulated in PyTorch's own code, as they run without "
            "mamba-ssm, causal-conv1d or flash-linear-attention; with these they take less."
        )
    return notes
