"""Train LoRA and QLoRA with the model divided over the processes; say what each process holds.

    torchrun --nproc_per_node 2 recipes/shard.py

It runs on CPUs, to show what FSDP2 does. On GPUs accelerate does the same from fsdp2.yaml.
"""

import json

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed

from course_utils import data
from course_utils.hardware import fix_bitsandbytes
from course_utils.paths import POCKET_MODEL


def prepare(quantization: BitsAndBytesConfig | None) -> torch.nn.Module:
    """Return the model with its adapter, in train mode."""
    model = AutoModelForCausalLM.from_pretrained(
        POCKET_MODEL, dtype=torch.float32, quantization_config=quantization
    )
    set_seed(0)  # every process draws the same adapter
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora).train()


def size(tensors: list[torch.Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def train(model: torch.nn.Module, batches: list[list[str]]) -> list[float]:
    """Return the losses of a step a batch, in nats per token; each process has some of the rows."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=5e-3), []
    for texts in batches:
        mine = texts[dist.get_rank() :: dist.get_world_size()]
        rows = tokenizer(mine, padding=True, return_tensors="pt")
        labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
        items = (labels[:, 1:] != -100).sum()
        dist.all_reduce(items)  # the tokens of all processes
        mean = items / dist.get_world_size()  # FSDP averages the gradients
        loss = model(**rows, labels=labels, num_items_in_batch=mean, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item() / dist.get_world_size())
    return losses


fix_bitsandbytes()
dist.init_process_group("gloo")
world = dist.get_world_size()
mesh = dist.init_device_mesh("cpu", (world,))
nf4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.float32
)
texts = data.load("tickets", "train", form="text")["text"][:32]
for method, quantization in {"lora": None, "qlora": nf4}.items():
    model = prepare(quantization)
    whole = size(list(model.parameters()))
    if world > 1:
        for layer in model.get_base_model().model.layers:
            fully_shard(layer, mesh=mesh)  # a unit that is gathered and released as one
        fully_shard(model, mesh=mesh)  # the rest
    held = size([p.to_local() if world > 1 else p for p in model.parameters()])
    losses = train(model, [texts[i : i + 8] for i in range(0, 32, 8)])
    if dist.get_rank() == 0:
        print(json.dumps({"method": method, "whole": whole, "held": held, "losses": losses}))
dist.destroy_process_group()
