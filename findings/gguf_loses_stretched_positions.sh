#!/usr/bin/env bash
# transformers reads a GGUF file and leaves out how its positions are stretched.
#
# transformers 5.24.0, gguf 0.19.0, torch 2.13.0 (CPU).
# A GGUF file says how rotary positions are scaled: llama.rope.scaling.type and .factor, or, for
# Llama 3.1 and later, a tensor rope_freqs.weight.
# Guess: AutoModelForCausalLM.from_pretrained(folder, gguf_file=...) builds the model that was
# written, or says what it cannot read: rope.freq_base arrives, and the reader has code for the
# scaling of gpt-oss.
# Seen: for the llama architecture all three (linear, yarn, Llama 3's tensor) are dropped. The
#       loaded model is, bit for bit, the same weights without scaling, and its config says
#       rope_type 'default', next to a max_position_embeddings that only holds with scaling. No
#       error, no warning, no line in the log. Without scaling the model comes back exactly.
# Fine-tuning from such a file trains another model. Take the config from the original repository.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 gguf==0.19.0
PLACE=$place "$place/venv/bin/python" - <<'PYTHON'
import logging
import os
import warnings

import numpy as np
import torch
import transformers
from gguf import GGUFWriter, RopeScalingType
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

PLACE, WIDTH, HEADS, KEY_HEADS, LAYERS, CONTEXT = os.environ["PLACE"], 64, 4, 2, 2, 2048
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
OF_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
KINDS = {
    "no scaling": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 8.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 256},
}
said = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())
transformers.utils.logging.add_handler(handler)
transformers.utils.logging.disable_progress_bar()


def model(rope):
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, tie_word_embeddings=False,
        max_position_embeddings=CONTEXT, rope_parameters={"rope_theta": 10000.0, **rope},
    )).eval()
    with torch.no_grad():  # Larger than at birth, so that attention looks at positions at all.
        for layer in made.model.layers:
            layer.self_attn.q_proj.weight.mul_(16)
            layer.self_attn.k_proj.weight.mul_(16)
    return made


def interleaved(weight, heads):
    """Rows in the order in which GGUF keeps rotary weights."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(made, rope, path):
    file = GGUFWriter(path, "llama")
    file.add_vocab_size(64)
    file.add_block_count(LAYERS)
    file.add_context_length(CONTEXT)
    file.add_embedding_length(WIDTH)
    file.add_feed_forward_length(128)
    file.add_head_count(HEADS)
    file.add_head_count_kv(KEY_HEADS)
    file.add_layer_norm_rms_eps(made.config.rms_norm_eps)
    file.add_rope_freq_base(10000.0)
    file.add_rope_dimension_count(WIDTH // HEADS)
    if rope["rope_type"] in ("linear", "yarn"):
        file.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        file.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        file.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        plain = model(KINDS["no scaling"]).model.rotary_emb.inv_freq
        file.add_tensor("rope_freqs.weight", (plain / made.model.rotary_emb.inv_freq).numpy())
    for name, tensor in made.state_dict().items():
        stem, values = name.removesuffix(".weight"), tensor.numpy()
        if stem in WHOLE:
            target = WHOLE[stem]
        else:
            _, _, layer, part = stem.split(".", 3)
            target = f"blk.{layer}.{OF_LAYER[part]}"
            if part.endswith(("q_proj", "k_proj")):
                values = interleaved(values, HEADS if part.endswith("q_proj") else KEY_HEADS)
        file.add_tensor(target + ".weight", np.ascontiguousarray(values))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


@torch.no_grad()
def logits(made):
    return made(input_ids=torch.arange(512)[None] % 64).logits


def gap(one, other):
    return float((one - other).abs().max())


bare, same = logits(model(KINDS["no scaling"])), True
for kind, rope in KINDS.items():
    made, name = model(rope), f"{kind.replace(' ', '-')}.gguf"
    write(made, rope, os.path.join(PLACE, name))
    said.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = AutoModelForCausalLM.from_pretrained(PLACE, gguf_file=name, dtype=torch.float32)
    about = [text for text in [*said, *(str(w.message) for w in caught)] if "rope" in text.lower()]
    true, found = logits(made), logits(read.eval())
    off = (true.argmax(-1) != found.argmax(-1)).float().mean()
    read_as = read.config.rope_parameters["rope_type"]
    print(f"{kind:10} off by {gap(found, true):.3f} of {float(true.abs().max()):.2f}, the first "
          f"choice differs at {off:.0%}; from the model without scaling {gap(found, bare):.0e}; "
          f"read as {read_as!r}; {len(about)} warnings")
    same &= gap(found, bare) < 1e-4 and read_as == "default" and not about
    same &= gap(found, true) < 1e-4 if kind == "no scaling" else gap(found, true) > 0.05
if not same:
    raise SystemExit("changed since it was written")
print("as it was seen")
PYTHON
