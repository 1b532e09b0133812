#!/usr/bin/env bash
# transformers 5.24.0 loads an adapter with the newest peft, and then cannot save or switch it.
#
# transformers 5.24.0, peft 0.21.2 (the newest release on 30 November 2026), torch 2.13.0 (CPU).
# Guess: the newest transformers and the newest peft, which pip installs together without a complaint,
# work together; or everything that needs peft refuses at once.
# Seen: from_pretrained(adapter) and load_adapter work, and the model answers with the adapter. Then
#       save_pretrained, set_adapter, disable_adapters, active_adapters, delete_adapter and, on
#       another model, add_adapter raise ValueError: they want peft 0.22.0, which is not released. A
#       model that was loaded in this way can be trained, and not saved.
# Peft's own classes are not concerned: PeftModel.from_pretrained, get_peft_model, their
# save_pretrained. transformers 5.23.0 asks for peft 0.20.0 here.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 peft==0.21.2
PLACE=$place "$place/venv/bin/python" - <<'PYTHON'
import os
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
base, adapter, again = (os.path.join(os.environ["PLACE"], name) for name in ("base", "lora", "out"))
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)
LlamaForCausalLM(config).save_pretrained(base)
lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
get_peft_model(LlamaForCausalLM.from_pretrained(base), lora).save_pretrained(adapter)

ids = torch.arange(1, 9)[None]
with torch.no_grad():
    without = AutoModelForCausalLM.from_pretrained(base)(input_ids=ids).logits
    model = AutoModelForCausalLM.from_pretrained(adapter).eval()
    effect = float((model(input_ids=ids).logits - without).abs().max())
print(f"from_pretrained(adapter): loaded, effect on the logits {effect:.3f}")
calls = {
    "save_pretrained": lambda: model.save_pretrained(again),
    "set_adapter": lambda: model.set_adapter("default"),
    "disable_adapters": model.disable_adapters,
    "active_adapters": model.active_adapters,
    "delete_adapter": lambda: model.delete_adapter("default"),
    "add_adapter": lambda: AutoModelForCausalLM.from_pretrained(base).add_adapter(lora),
}
refused = []
for name, call in calls.items():
    try:
        call()
        print(f"{name:17} works")
    except ValueError as error:
        refused.append(name)
        print(f"{name:17} {error}")
if effect < 0.001 or refused != list(calls):
    raise SystemExit("changed since it was written")
print("as it was seen")
PYTHON
