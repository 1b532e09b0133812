"""How many tokens a second a training can process: its FLOPs per token, and a GPU's share of them.

A model, not a measurement: the share of a GPU's peak that a training reaches is an input.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PretrainedConfig

from course_utils.configs import build_empty, load_config
from preflight.memory_plan.gpus import GPU, find_gpu

METHODS = ("full", "lora", "qlora")
# Dense peak of the matrix units in bfloat16 (T4: float16), in FLOP/s, from NVIDIA's data sheets.
PEAKS = {
    "T4": 65e12,
    "L4": 121e12,
    "L40S": 362e12,
    "A100 40GB": 312e12,
    "A100 80GB": 312e12,
    "H100 80GB": 989e12,
    "H200": 989e12,
}
# The share of the peak, counted in model FLOPs. LoRA of Qwen 7B, 14B and 72B on A100s, rows of
# 2,048 tokens: 0.32, 0.37 and 0.35; QLoRA 0.24 to 0.27 (QwenLM/Qwen, README, "Profiling of Memory
# and Speed", 2023). Pretraining of Llama 3 on H100s: 0.38 to 0.43 (arXiv 2407.21783, table 4).
UTILISATION = 0.3


def flops_per_token(
    model: str | Path | PretrainedConfig,
    method: str = "lora",
    *,
    length: int = 1024,
    adapter_parameters: int = 0,
    gradient_checkpointing: bool = False,
) -> float:
    """Return the floating-point operations of forward and backward for one token of a row.

    Forward takes 2 for each parameter in a matrix product (Kaplan et al., arXiv 2001.08361, section
    2.1) and 4 × layers × width of the attention × length for attention, not halved for the causal
    mask (PaLM, arXiv 2204.02311, appendix B). Backward takes 2 for the gradient of the input and 2
    for that of the weight; frozen weights have no second part, which leaves 4 of 6 (Schulman et
    al., "LoRA Without Regret", 2025). Of a mixture's experts, those that a token visits count.
    Checkpointing computes the layers forward once more. The rounding of a quantized base, norms,
    activation functions and tables of embeddings (of tokens, of positions) are left out; of a model
    for pictures or sounds, all but its text model is. `model` is what `configs.load_config` takes.

    Raises:
        ValueError: if the method is unknown, the length is not a number from 1 on, or the model has
            no attention.
        FileNotFoundError, RuntimeError: as `configs.load_config`.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown. Allowed are {', '.join(METHODS)}.")
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"length={length!r}. Allowed is a whole number from 1 on, in tokens.")
    config = load_config(model)
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        raise ValueError(
            f"A model of type {config.model_type!r} was given, whose config has no "
            "num_attention_heads. Allowed are models that attend, as Llama, Qwen and GPT-2 do. "
            "Give one of these."
        )
    layers, head = _matrix_parameters(config)
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    attention = 4 * text.num_hidden_layers * width * length
    flops = (6 if method == "full" else 4) * (layers + head) + 6 * adapter_parameters
    flops += 3 * attention
    if gradient_checkpointing:
        flops += 2 * (layers + adapter_parameters) + attention
    return float(flops)


def tokens_per_second(
    flops: float, gpu: str | GPU, *, gpus: int = 1, utilisation: float = UTILISATION
) -> float:
    """Return the tokens that a number of GPUs process in a second at so many FLOPs a token.

    `utilisation` is the share of the peak that is reached, counted in the FLOPs that are passed
    (model FLOPs utilisation if they are without checkpointing: PaLM, arXiv 2204.02311, appendix B).

    Raises:
        ValueError: if the peak of the GPU is not known, or a number is out of range.
    """
    name = find_gpu(gpu).name
    if name not in PEAKS:
        raise ValueError(
            f"The peak of {name!r} is not known. Allowed are {', '.join(PEAKS)}. For another, "
            "divide its dense bfloat16 peak × utilisation by the FLOPs."
        )
    if not flops > 0 or not 0 < utilisation <= 1 or gpus < 1:
        raise ValueError(
            f"flops={flops}, gpus={gpus}, utilisation={utilisation}. FLOPs are above 0, GPUs from "
            "1 on, and utilisation is a share above 0 and up to 1."
        )
    return gpus * PEAKS[name] * utilisation / flops


def _matrix_parameters(config: PretrainedConfig) -> tuple[int, int]:
    """Return the parameters that a token is multiplied with: those in layers, and the head's."""
    model = build_empty(config)
    text = config.get_text_config()
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    visited = text.num_experts_per_tok / experts if experts else 1.0
    head = model.get_output_embeddings()
    # Of several models in one, that of the text: a token of it is not seen by a picture's encoder.
    several = text is not config and not config.is_encoder_decoder
    body = model.get_decoder() if several else model
    # A table is looked up; a tied head is that of the tokens, used once more as a matrix.
    apart = {id(m.weight) for m in body.modules() if isinstance(m, nn.Embedding) or m is head}
    layers = sum(
        p.numel() * (visited if ".experts." in name else 1.0)
        for name, p in body.named_parameters()
        if p.dim() > 1 and id(p) not in apart
    )
    return int(layers), head.weight.numel() if head is not None else 0
