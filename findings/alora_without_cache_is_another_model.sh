#!/usr/bin/env bash
# An activated LoRA generates another text without a cache than with one.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0 (CPU).
# aLoRA adapts only the tokens from its invocation sequence on. Guess: use_cache=False costs time and
# changes nothing, as it does for a plain LoRA.
# Seen: generate() notes once how many tokens from the end the invocation stands. Without a cache each
#       step runs the whole, longer text, and the same number is counted from its new end: the
#       adapter leaves the invocation, then the prompt, one token a step. Greedy answers differ from
#       the second token on. With a cache they are those of a loop that runs the model by hand. No
#       warning.
# Generate with the cache.
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
from transformers import LlamaConfig, LlamaForCausalLM

NEW, INVOCATION = 24, [5, 6, 7]
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=None,
    eos_token_id=None,
)
prompt = torch.tensor([[11, 42, 3, 17, *INVOCATION, 21, 9, 33, 50, 2]])


@torch.no_grad()
def by_hand(model):
    ids = prompt
    for _ in range(NEW):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def answer(model, use_cache):
    return model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW,
        do_sample=False, use_cache=use_cache,
    )


counts = {}
for kind, options in {"LoRA": {}, "aLoRA": {"alora_invocation_tokens": INVOCATION}}.items():
    torch.manual_seed(0)
    lora = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **options
    )
    model = get_peft_model(LlamaForCausalLM(config), lora).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        true = by_hand(model)
        counts[kind] = [int((answer(model, cache) != true).sum()) for cache in (True, False)]
    about = sum("cache" in str(w.message) or "alora" in str(w.message).lower() for w in caught)
    print(f"{kind:5} tokens of {NEW} unlike those by hand: {counts[kind][0]} with a cache, "
          f"{counts[kind][1]} without; {about} warnings")
if counts["LoRA"] != [0, 0] or counts["aLoRA"][0] != 0 or counts["aLoRA"][1] < 4 or about:
    raise SystemExit("changed since it was written")
print("as it was seen")
PYTHON
