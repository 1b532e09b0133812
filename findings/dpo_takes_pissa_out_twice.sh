#!/usr/bin/env bash
# Making a DPOTrainer of a model with a PiSSA adapter changes the model, and its first loss is ln 2.
#
# trl 1.16.0, peft 0.21.2, transformers 5.24.0, torch 2.13.0 (CPU).
# PiSSA moves the largest part of each weight into the adapter, so that base and adapter together
# are the model as it was. Given a PeftModel, DPOTrainer copies the adapter as the reference. Guess:
# a copy changes nothing; if anything, the reference is off, which a first loss unlike ln 2 shows.
# Seen: the copy is added from the adapter's own config, which takes PiSSA's part out of the base
#       weights once more, under both adapters. The logits move by more than a tenth of their range
#       before any step. Policy and reference are changed alike, so the first loss is ln 2 and the
#       margin 0, as they should be. OLoRA does the same; LoRA's own start changes nothing. No error,
#       and no warning that says so.
# Set peft_config["default"].init_lora_weights = True before the trainer is made.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 peft==0.21.2 trl==1.16.0
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
import math
import warnings

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

warnings.simplefilter("ignore")
words = ["<pad>", "</s>", "the", "cat", "sat", "on", "mat", "me", "where", "?"]
raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")
pair = {"prompt": "where ?", "chosen": " the cat sat on the mat", "rejected": " the cat sat on me"}
rows = Dataset.from_list([pair] * 4)
ids = torch.tensor([[8, 9, 2, 3, 4, 5, 2, 6]])


@torch.no_grad()
def logits(model):
    return model(input_ids=ids).logits


def seen(start, copied=None):
    """Return how far the logits move, as a share of their range, and the first loss."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, pad_token_id=0, eos_token_id=1,
        bos_token_id=None, initializer_range=0.3,
    ))
    model = get_peft_model(model, LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=start, task_type="CAUSAL_LM",
    )).eval()
    before = logits(model)
    if copied is not None:
        model.peft_config["default"].init_lora_weights = copied
    trainer = DPOTrainer(
        model, args=DPOConfig(output_dir="out", use_cpu=True, bf16=False, report_to="none"),
        train_dataset=rows, eval_dataset=rows, processing_class=tokenizer,
    )
    moved = (logits(trainer.model.eval()) - before).abs().max() / (before.max() - before.min())
    return float(moved), trainer.evaluate()["eval_loss"]


found = {
    "LoRA": seen(True), "PiSSA": seen("pissa"), "OLoRA": seen("olora"),
    "PiSSA, copied as LoRA": seen("pissa", copied=True),
}
for name, (moved, loss) in found.items():
    print(f"{name:22} logits moved by {moved:6.1%} of their range, first loss {loss:.4f}")
still = all(found[name][0] < 1e-4 for name in ("LoRA", "PiSSA, copied as LoRA"))
changed = all(found[name][0] > 0.1 for name in ("PiSSA", "OLoRA"))
if not (still and changed and all(abs(loss - math.log(2)) < 1e-4 for _, loss in found.values())):
    raise SystemExit("changed since it was written")
print("as it was seen")
PYTHON
