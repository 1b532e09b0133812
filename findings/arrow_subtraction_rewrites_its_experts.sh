#!/usr/bin/env bash
# Arrow's general knowledge subtraction rewrites the adapters that it routes between.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0 (CPU).
# create_arrow_model loads several LoRAs and routes each token to some of them; with use_gks=True
# the mean of general LoRAs is taken away from each first.
# Guess: the subtraction is a part of the router: a single expert, switched to with
# set_adapter("task_0"), stays what it was, and a saved model loads again as itself.
# Seen: the first forward subtracts in place. From then on task_0 alone is another adapter, and
#       save_pretrained writes the changed one over the expert's name. The model built again from
#       what was saved subtracts a second time: its logits are off by a large part of what the
#       adapters do. No error and no warning. Saved before the first forward it is exact, and so is
#       Arrow without the subtraction.
# Keep the experts' own folders, and build the model from them each time.
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
from peft import ArrowConfig, LoraConfig, PeftModel, create_arrow_model, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

PLACE = os.environ["PLACE"]
ids = torch.arange(1, 13)[None]


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )).eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=ids).logits


def gap(one, other):
    return float((one - other).abs().max())


def expert(seed):
    model = base()
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    folder = os.path.join(PLACE, f"expert-{seed}")
    get_peft_model(model, lora).save_pretrained(folder)
    return folder


def arrow(tasks, general):
    settings = ArrowConfig(top_k=2, use_gks=bool(general), rng_seed=0)
    return create_arrow_model(base(), tasks, settings, general_adapter_paths=general).eval()


tasks, general = [expert(seed) for seed in (1, 2, 3)], [expert(4)]
bare = logits(base())
one = logits(PeftModel.from_pretrained(base(), tasks[0]).eval())
found = {}
for kind, more, saved_first in [
    ("no subtraction", None, False), ("saved before", general, True),
    ("saved after", general, False),
]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = arrow(tasks, more)
        folder = os.path.join(PLACE, kind)
        if saved_first:
            model.save_pretrained(folder)
        routed = logits(model)
        if not saved_first:
            model.save_pretrained(folder)
        model.set_adapter("task_0")
        alone = gap(logits(model), one) / gap(one, bare)
        names = [os.path.join(folder, f"task_{i}") for i in range(len(tasks))]
        again = arrow(names, [os.path.join(folder, "gks_0")] if more else None)
        built = gap(logits(again), routed) / gap(routed, bare)
    texts = [str(w.message).lower() for w in caught]
    about = sum(word in text for text in texts for word in ("arrow", "gks", "subtr"))
    found[kind] = (alone, built, about)
    print(f"{kind:15} task_0 alone off by {alone:.2f} of its effect, the saved model built again "
          f"by {built:.2f}; {about} warnings")
sound, early, late = found.values()
if not (max(sound[:2]) < 1e-4 and early[1] < 1e-4 and min(early[0], *late[:2]) > 0.1
        and sound[2] == early[2] == late[2] == 0):
    raise SystemExit("changed since it was written")
print("as it was seen")
PYTHON
