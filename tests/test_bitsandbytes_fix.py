"""bitsandbytes 0.50 trains wrongly on some CPUs after an evaluation; the fix prevents it.

That it does so without the fix is among the errors of test_troubleshooting.py.
"""

from __future__ import annotations

import textwrap

import pytest
from helpers import python

from course_utils import hardware

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
    """Return the measured change, from a process of its own: the fix lasts as long as one."""
    code = textwrap.dedent(MEASURE).format(before=before, after=after)
    return float(python("-c", code, check=True).stdout.splitlines()[-1])


def test_with_the_fix_an_evaluation_changes_nothing() -> None:
    """QLoRA with eval_steps must train as without; this fails where the fix is taken out."""
    assert change_of_gradients(before="hardware.fix_bitsandbytes()") < 1e-5


def test_a_loaded_model_can_be_fixed() -> None:
    """A model that was loaded before anyone thought of the fix."""
    assert change_of_gradients(after="hardware.fix_bitsandbytes(model)") < 1e-5


@faulty_cpu
def test_a_model_that_was_evaluated_is_refused() -> None:
    """Its scales are rounded for good, so a fix that said nothing would be a false promise."""
    import bitsandbytes as bnb
    import torch

    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu").eval()
    layer.support_avx512bf16_for_cpu = True
    hardware.fix_bitsandbytes(torch.nn.Sequential(layer))
    layer.support_avx512bf16_for_cpu = True  # as it was before the fix
    with torch.no_grad():
        layer(torch.ones(2, 64))
    layer.state_dict()  # puts the weights back in order, though not the scales
    with pytest.raises(RuntimeError, match="load the model again"):
        hardware.fix_bitsandbytes(torch.nn.Sequential(layer))


NEW_NAME = """
import bitsandbytes.nn.modules as layers
from course_utils import hardware
{change}
try:
    print(hardware.fix_bitsandbytes())
except RuntimeError as error:
    print(error)
"""


def answer(change: str) -> str:
    """Return what the fix says in a process where bitsandbytes was changed before."""
    return python("-c", NEW_NAME.format(change=change), check=True).stdout


def test_a_bitsandbytes_without_the_fault_needs_nothing() -> None:
    """What counts is how a layer trains, not which names the library has."""
    change = "layers.has_avx512bf16 = lambda: False"
    assert answer(change).startswith("Not needed")


@faulty_cpu
def test_a_fault_that_the_fix_does_not_reach_is_an_error() -> None:
    """A later bitsandbytes may keep the fault and rename what is replaced."""
    change = "first = layers.Linear4bit.__init__\n"
    change += "def init(self, *a, **k):\n    first(self, *a, **k)\n"
    change += "    self.support_avx512bf16_for_cpu = True\n"
    change += "layers.Linear4bit.__init__ = init"
    assert "does not help with bitsandbytes" in answer(change)


def test_the_second_call_does_nothing() -> None:
    """Every 4-bit lesson calls it, and learners run cells twice."""
    hardware.fix_bitsandbytes()
    assert hardware.fix_bitsandbytes().startswith("Not needed")
