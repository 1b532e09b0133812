#!/usr/bin/env bash
# LoRA on replicated layers: merging gives another model, and none that can be saved.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0 (CPU).
# layer_replication=[[0, 3], [1, 4]] makes six layers of four: layers 1 and 2 come twice, each time
# with an adapter of its own, and share their weights, which costs no memory.
# Guess: merge_and_unload gives six layers that compute the same, as it does for any plain LoRA, and
# the adapter switched off is the base model.
# Seen: no error and no warning, and the merged logits are off by most of what the adapter
#       does: both adapters of a shared weight are added into it, so that each copy carries both.
#       Saving the merged model raises an error about shared tensors. Switched off or unloaded, six
#       layers stay: not the base model. The adapter itself, saved and loaded again, is exact.
# Keep such an adapter apart, or give each copy weights of its own before merging.
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
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.arange(1, 13)[None]


def base():
    torch.manual_seed(0)
    # A config for each: the number of layers in it is raised.
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )).eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=ids).logits


def gap(one, other):
    return float((one - other).abs().max())


def adapted(**options):
    torch.manual_seed(1)
    lora = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **options
    )
    return get_peft_model(base(), lora).eval()


found = {}
for kind, options in {
    "plain": {}, "replicated": {"layer_replication": [[0, 3], [1, 4]]},
}.items():
    model = adapted(**options)
    true = logits(model)
    with model.disable_adapter():
        off = gap(logits(model), logits(base()))
    place = os.path.join(os.environ["PLACE"], kind)
    model.save_pretrained(place)
    again = gap(logits(PeftModel.from_pretrained(base(), place).eval()), true)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        merged = model.merge_and_unload()
    about = sum("merg" in str(w.message) or "replic" in str(w.message) for w in caught)
    try:
        merged.save_pretrained(place + "-merged")
        saved = "saved"
    except RuntimeError as error:
        saved = str(error)[:48]
    effect = gap(true, logits(base()))
    found[kind] = (gap(logits(merged), true) / effect, off / effect, again, saved == "saved", about)
    print(f"{kind:10} merged off by {found[kind][0]:.2f} of the effect, switched off by "
          f"{found[kind][1]:.2f}, loaded again by {again:.0e}; merged model: {saved}; {about} warnings")
same, other = found["plain"], found["replicated"]
if not (same[0] < 1e-4 and same[1] == 0 and same[3] and other[0] > 0.1 and other[1] > 0.1
        and other[2] < 1e-5 and not other[3] and other[4] == 0):
    raise SystemExit("changed since it was written")
print("as it was seen")
PYTHON
