"""bitsandbytes 0.50 trains wrongly on some CPUs after an evaluation; the mend prevents it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from course_utils import hardware
from course_utils.paths import COURSE_ROOT

faulty_cpu = pytest.mark.skipif(
    "avx512_bf16" not in hardware._cpu_flags(), reason="this CPU has no avx512_bf16: no fault here"
)

# Prints the largest relative change of LoRA's gradients that one forward in eval mode makes.
MEASURE = """
import logging; logging.disable(logging.WARNING)
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from course_utils import hardware
from course_utils.paths import POCKET_MODEL

{before}
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
model = AutoModelForCausalLM.from_pretrained(
    POCKET_MODEL, dtype=torch.float32, quantization_config=nf4, device_map="cpu"
)
{after}
torch.manual_seed(0)
model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
ids = torch.arange(5, 69).reshape(2, 32)

def gradients():
    model.train(); model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return [p.grad.clone() for n, p in model.named_parameters() if "lora_B" in n]

first = gradients()
model.eval()
with torch.no_grad():
    model(input_ids=ids)
second = gradients()
print(max(float((a - b).norm() / a.norm()) for a, b in zip(first, second)))
"""


def change_of_gradients(before: str = "", after: str = "") -> float:
    """Return the measured change, from a process of its own: the mend lasts as long as one."""
    code = textwrap.dedent(MEASURE).format(before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=COURSE_ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def test_with_the_mend_an_evaluation_changes_nothing() -> None:
    """QLoRA with eval_steps must train as without; this fails where the mend is taken out."""
    assert change_of_gradients(before="hardware.mend_bitsandbytes()") < 1e-5


def test_a_loaded_model_can_be_mended() -> None:
    """A model that was loaded before anyone thought of the mend."""
    assert change_of_gradients(after="hardware.mend_bitsandbytes(model)") < 1e-5


@faulty_cpu
def test_a_model_that_was_evaluated_is_refused() -> None:
    """Its scales are rounded for good, so a mend that said nothing would be a false promise."""
    import bitsandbytes as bnb
    import torch

    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu").eval()
    layer.support_avx512bf16_for_cpu = True
    hardware.mend_bitsandbytes(torch.nn.Sequential(layer))
    layer.support_avx512bf16_for_cpu = True  # as it was before the mend
    with torch.no_grad():
        layer(torch.ones(2, 64))
    layer.state_dict()  # puts the weights back in order, though not the scales
    with pytest.raises(RuntimeError, match="load the model again"):
        hardware.mend_bitsandbytes(torch.nn.Sequential(layer))


@faulty_cpu
def test_without_the_mend_the_gradients_go_wrong() -> None:
    """If this fails, bitsandbytes has mended the fault: the mend and its lesson can go."""
    assert change_of_gradients() > 0.5


def test_the_second_call_does_nothing() -> None:
    """Every 4-bit lesson calls it, and learners run cells twice."""
    hardware.mend_bitsandbytes()
    assert hardware.mend_bitsandbytes().startswith("Nothing to mend")
