#!/usr/bin/env bash
# A model with a trained prefix generates as its base model, while its forward passes are right.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0 (CPU).
# Guess: generate() takes the token that a forward pass ranks first, as it does with LoRA; at worst
# something is raised, since the two libraries pass the prefix along as a cache.
# Seen: prefix tuning changes what the model computes, loss and forward passes included, and the
#       greedy answer is the base model's, token by token. transformers 5.24 named the argument
#       `cache` that was past_key_values. generate() hands over an empty one by the new name, peft
#       the prefix by the old, and the empty one wins. No error; a FutureWarning speaks of a rename.
#       With transformers 5.23.0 the answer is the one that forward passes give.
# Until peft follows, use transformers 5.23 to answer with a prefix.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
cat > "$place/try.py" <<'PYTHON'
import torch
import transformers
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

NEW = 16
prompt = torch.arange(1, 9)[None]
MASK = torch.ones_like(prompt)


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=None,
        eos_token_id=None,
    )).eval()


@torch.no_grad()
def by_hand(model):
    ids = prompt
    for _ in range(NEW):
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], dim=1)
    return ids


def answer(model):
    return model.generate(
        input_ids=prompt, attention_mask=MASK, max_new_tokens=NEW, do_sample=False
    )


KINDS = {
    "LoRA": LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=8, task_type="CAUSAL_LM"),
}
of_base = answer(base())
for kind, config in KINDS.items():
    torch.manual_seed(1)
    model = get_peft_model(base(), config).eval()
    for name, weight in model.named_parameters():
        if "prompt_encoder" in name:  # as if trained
            torch.nn.init.normal_(weight, std=3.0)
    true, got = by_hand(model), answer(model)
    print(f"transformers {transformers.__version__}, {kind}: of {NEW} tokens "
          f"{int((got != true).sum())} unlike the forward passes', "
          f"{int((got != of_base).sum())} unlike the base model's, "
          f"which are {int((true != of_base).sum())} apart")
PYTHON
for version in 5.23.0 5.24.0; do
    "$place/venv/bin/pip" install --quiet --disable-pip-version-check \
        torch==2.13.0 "transformers==$version" peft==0.21.2
    "$place/venv/bin/python" -W ignore "$place/try.py" 2>/dev/null | tee -a "$place/seen"
done
# Right are 0 tokens unlike the forward passes'; the fault is 0 unlike the base model's.
grep -q "5.23.0, prefix: .* 0 unlike the forward" "$place/seen" \
    && test "$(grep -c "LoRA: .* 0 unlike the forward" "$place/seen")" = 2 \
    && grep "5.24.0, prefix" "$place/seen" | grep -v " 0 unlike the forward" \
        | grep -v "are 0 apart" | grep -q " 0 unlike the base" \
    || { echo "changed since it was written"; exit 1; }
echo "as it was seen"
