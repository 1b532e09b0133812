#!/usr/bin/env bash
# create_loraplus_optimizer takes weight_decay and decays nothing.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0 (CPU).
# Its docstring says of further keyword arguments that they are passed to the optimizer.
# Guess: create_loraplus_optimizer(model, AdamW, ..., weight_decay=0.1) decays the adapter as
# AdamW(..., weight_decay=0.1) does, and without the argument AdamW's own 0.01 holds.
# Seen: the value reaches AdamW's defaults, and each parameter group says weight_decay=0.0, which
#       wins. With 0.1, and without the argument, a step on a gradient of zero leaves every weight
#       as it was. No error and no warning. Only loraplus_weight_decay, which stands in no signature
#       and no docstring, decays; what is in B then at loraplus_lr_ratio times the rate of A.
# Pass loraplus_weight_decay, and look at optimizer.param_groups.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 peft==0.21.2
"$place/venv/bin/python" - <<'PYTHON'
import warnings

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM

RATE, RATIO = 0.01, 16
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)


def plain(model, **options):
    return AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, **options)


def plus(model, **options):
    return create_loraplus_optimizer(model, AdamW, lr=RATE, loraplus_lr_ratio=RATIO, **options)


def kept(build, options):
    """What is left of the length of A and of B after a step on gradients of zero; the warnings."""
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(LlamaForCausalLM(config), lora)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = build(model, **options)
    named = list(model.named_parameters())
    parts = {key: [p for n, p in named if key in n] for key in ("lora_A", "lora_B")}
    before = {key: sum(float(p.detach().norm()) for p in part) for key, part in parts.items()}
    for part in parts.values():
        for parameter in part:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    left = {key: sum(float(p.detach().norm()) for p in part) for key, part in parts.items()}
    about = sum("decay" in str(w.message) for w in caught)
    return [*(round(left[key] / before[key], 5) for key in parts), about]


cases = [
    ("AdamW, weight_decay=0.1", plain, {"weight_decay": 0.1}, [0.999, 0.999, 0]),
    ("AdamW, no argument", plain, {}, [0.9999, 0.9999, 0]),
    ("LoRA+, weight_decay=0.1", plus, {"weight_decay": 0.1}, [1.0, 1.0, 0]),
    ("LoRA+, no argument", plus, {}, [1.0, 1.0, 0]),
    ("LoRA+, loraplus_weight_decay=0.1", plus, {"loraplus_weight_decay": 0.1}, [0.999, 0.984, 0]),
]
same = True
for name, build, options, expected in cases:
    found = kept(build, options)
    same &= found == expected
    print(f"{name:33} left of A {found[0]:.4f}, of B {found[1]:.4f}; {found[2]} warnings")
if not same:
    raise SystemExit("changed since it was written")
print("as it was seen")
PYTHON
