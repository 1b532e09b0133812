#!/usr/bin/env bash
# LoRA on Mamba's dt_proj trains nothing, and nothing says so.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0 (CPU).
# dt_proj is a linear layer like in_proj and x_proj, and peft takes it by name or as "all-linear".
# Guess: its adapter learns as theirs do, or peft refuses it, as it refuses out_proj and conv1d.
# Seen: peft wraps it without a warning. The model's code multiplies by dt_proj.weight itself and
#       never calls the layer, so the adapter changes no output and gets no gradient, while it counts
#       among the trainable parameters. The same goes for Falcon-Mamba and Jamba.
# Leave dt_proj out: LoraConfig(target_modules=["in_proj", "x_proj"]).
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
from transformers import AutoModelForCausalLM, FalconMambaConfig, JambaConfig, MambaConfig

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
JAMBA = {
    "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 1,
    "mamba_d_state": 4, "mamba_dt_rank": 4,
}
KINDS = {
    "mamba": MambaConfig(**SMALL, state_size=4),
    "falcon_mamba": FalconMambaConfig(**SMALL, state_size=4),
    "jamba": JambaConfig(**SMALL, **JAMBA),
}
NAMES = ("in_proj", "x_proj", "dt_proj")
wrong = []
for kind, config in KINDS.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = get_peft_model(
            model, LoraConfig(r=4, target_modules=[*NAMES], init_lora_weights=False)
        )
    ids = torch.randint(0, 64, (2, 16))
    adapted(input_ids=ids, labels=ids).loss.backward()
    with_gradient = {}
    for name in NAMES:
        parts = [p for n, p in adapted.named_parameters() if f"{name}.lora_" in n]
        with_gradient[name] = f"{sum(p.grad is not None for p in parts)} of {len(parts)}"
    about = [str(w.message) for w in caught if "dt_proj" in str(w.message)]
    print(f"{kind:13} adapters with a gradient: {with_gradient}; {len(about)} warnings of dt_proj")
    counts = [with_gradient[name].split(" of ") for name in NAMES]
    full = [got == of and of != "0" for got, of in counts]
    nothing = counts[2][0] == "0" and counts[2][1] != "0"
    if not (full[0] and full[1] and nothing) or about:
        wrong.append(kind)
if wrong:
    raise SystemExit(f"changed since it was written: {', '.join(wrong)}")
print("as it was seen")
PYTHON
