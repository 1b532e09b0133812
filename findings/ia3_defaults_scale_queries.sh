#!/usr/bin/env bash
# IA3 without target_modules scales queries in place of keys in most decoders that peft knows.
#
# peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU).
# The method scales keys, values and the inner activations of the MLP (Liu et al. 2022, section 3.3).
# Guess: peft's table of defaults does so for every architecture in it.
# Seen: for Llama and Mistral it does. For Qwen2, Qwen3, Gemma, Gemma 2, Gemma 3 and Phi it scales
#       queries and values; for OPT queries and keys, and no values. A scaled query and a scaled key
#       change the attention in the same way, but with grouped-query attention there are several
#       times as many query heads, so the adapter has another size than the method's. For Mixtral the
#       table still names `w2`, which no layer is called since transformers 5, so the MLPs are left
#       out. Nothing is warned of.
# Name the layers yourself: IA3Config(target_modules=[...], feedforward_modules=[...]).
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$place/venv/bin/python" - <<'PYTHON'
import warnings

import torch
from peft import IA3Config, get_peft_model
from transformers import (
    AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GemmaConfig, LlamaConfig, MistralConfig,
    MixtralConfig, OPTConfig, PhiConfig, Qwen2Config, Qwen3Config,
)

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}
OPT = {
    "vocab_size": 64, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "word_embed_proj_dim": 32,
}
SEEN = {
    "llama": (LlamaConfig, SMALL, ["down_proj", "k_proj", "v_proj"]),
    "mistral": (MistralConfig, SMALL, ["down_proj", "k_proj", "v_proj"]),
    "qwen2": (Qwen2Config, SMALL, ["down_proj", "q_proj", "v_proj"]),
    "qwen3": (Qwen3Config, SMALL | {"head_dim": 8}, ["down_proj", "q_proj", "v_proj"]),
    "gemma": (GemmaConfig, SMALL | {"head_dim": 8}, ["down_proj", "q_proj", "v_proj"]),
    "gemma2": (Gemma2Config, SMALL | {"head_dim": 8}, ["down_proj", "q_proj", "v_proj"]),
    "gemma3_text": (Gemma3TextConfig, SMALL | {"head_dim": 8}, ["down_proj", "q_proj", "v_proj"]),
    "phi": (PhiConfig, SMALL, ["fc2", "q_proj", "v_proj"]),
    "opt": (OPTConfig, OPT, ["fc2", "k_proj", "q_proj"]),
    "mixtral": (MixtralConfig, SMALL | {"num_local_experts": 2}, ["k_proj", "v_proj"]),
}
wrong = []
for name, (config, sizes, expected) in SEEN.items():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(**sizes))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = get_peft_model(model, IA3Config(task_type="CAUSAL_LM"), low_cpu_mem_usage=True)
    found = sorted({n.split(".")[-1] for n in adapted.targeted_module_names})
    about_layers = [str(w.message) for w in caught if "target" in str(w.message).lower()]
    print(f"{name:12} scales {', '.join(found)}; {len(about_layers)} warnings about targets")
    if found != expected or about_layers:
        wrong.append(name)
if wrong:
    raise SystemExit(f"changed since it was written: {', '.join(wrong)}")
print("as it was seen")
PYTHON
