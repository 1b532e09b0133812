#!/usr/bin/env bash
# DoraCaching keeps the norm of one scale and of one adapter, whatever comes after.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0 (CPU).
# DoraCaching keeps what DoRA computes anew in each forward; rescale_adapter_scale weakens or
# strengthens an adapter for a while. Both are context managers of peft.helpers.
# Guess: inside DoraCaching an adapter at half its scale answers as it does without the cache; and
# an adapter whose weights are loaded into the place of another answers as itself.
# Seen: after one forward the norm in the cache stays that of the full scale, and of the first
#       weights; nothing but training mode or a forward outside empties it. At half the scale, at
#       twice, and with other weights loaded, the logits are off by a large part of the effect. No
#       error and no warning. At its own scale the cache is exact, and LoRA has none to be wrong.
# Leave the caching before a scale or weights change, and run one forward outside.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 peft==0.21.2
"$place/venv/bin/python" - <<'PYTHON'
import warnings

import torch
from peft import (
    LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict,
)
from peft.helpers import DoraCaching, rescale_adapter_scale
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.arange(1, 13)[None]


def adapted(seed, use_dora):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    ))
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, use_dora=use_dora,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora).eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=ids).logits


def scaled(factor, use_dora):
    """Logits at a scale, with a forward at the full one before."""
    model = adapted(1, use_dora)
    logits(model)
    with rescale_adapter_scale(model, factor):
        return logits(model)


def loaded_over(use_dora):
    """Logits after a second adapter was loaded into the place of the first."""
    model = adapted(1, use_dora)
    logits(model)
    set_peft_model_state_dict(model, get_peft_model_state_dict(adapted(2, use_dora)))
    return logits(model)


cases = {
    "full scale": lambda dora: scaled(1.0, dora), "half": lambda dora: scaled(0.5, dora),
    "twice": lambda dora: scaled(2.0, dora), "other weights": loaded_over,
}
same = True
for kind, use_dora in {"LoRA": False, "DoRA": True}.items():
    bare = logits(adapted(1, use_dora).unload())
    for name, run in cases.items():
        true = run(use_dora)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with DoraCaching():
                cached = run(use_dora)
        texts = [str(w.message).lower() for w in caught]
        about = sum("cach" in text or "scal" in text for text in texts)
        off = float((cached - true).abs().max() / (true - bare).abs().max())
        print(f"{kind}, {name:13} cached off by {off:.2f} of the effect; {about} warnings")
        wrong = use_dora and name != "full scale"
        same &= (off > 0.1 if wrong else off < 1e-4) and about == 0
if not same:
    raise SystemExit("changed since it was written")
print("as it was seen")
PYTHON
