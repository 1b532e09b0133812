"""The adapter of a plan that is given none, and what its model's plan does not show.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

from peft import LoraConfig
from transformers import PretrainedConfig

from course_utils.configs import build_empty
from preflight.lora_targets import refused_names
from preflight.memory_plan.options import LORA

# What peft refuses, by the config as text: the plans of one model differ in other things.
REFUSED: dict[str, list[str]] = {}


def default_adapter(config: PretrainedConfig, rank: int = LORA["r"]) -> LoraConfig:
    """Return LoRA on all linear layers of a model, but for those that peft refuses by name.

    With one of these among its targets peft raises: out_proj in Mamba's family, say.
    """
    plain = config.to_json_string(use_diff=False)
    if plain not in REFUSED:
        REFUSED[plain] = refused_names(build_empty(config))
    return LoraConfig(**LORA | {"r": rank}, exclude_modules=REFUSED[plain] or None)
