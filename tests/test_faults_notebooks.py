"""Lessons as they are really run: interrupted, cells twice and out of order, restarted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import SECOND_ADAPTER, Kernel, code_cells, kernel

from course_utils.paths import COURSE_ROOT

NOTEBOOKS = COURSE_ROOT / "notebooks"
# Of the lesson's data what is enough for its asserts: a test that is short goes by more often.
FEWER = """
tickets["train"] = tickets["train"].select(range(240))
tickets["test"] = tickets["test"].select([*range(12), *range(120, 132)])
"""
METERED = """
import time, warnings
warnings.simplefilter("ignore")
from course_utils import data, models
from course_utils.memory import MeterCallback
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

class Wait(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            print("in the second step", flush=True)
            time.sleep(60)

def measured(meter, *more):
    config = SFTConfig(
        "runs/faults", max_steps=3, per_device_train_batch_size=2, use_cpu=True, bf16=False,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )
    rows = data.load("tickets", "train").select(range(8))
    path = models.base_model().path
    SFTTrainer(path, config, train_dataset=rows, callbacks=[meter, *more]).train()
"""
EXPLORER = "explorer = widgets.schedule_explorer()\nexplorer"


@pytest.fixture
def lesson_kernel(tmp_path) -> Iterator[Kernel]:
    """A kernel where the lessons run, with settings of its own for Jupyter and IPython."""
    with kernel(NOTEBOOKS, IPYTHONDIR=str(tmp_path)) as one:
        yield one


@pytest.mark.long
def test_interrupted_and_run_again_lesson_00_goes_on(lesson_kernel: Kernel) -> None:
    """Ctrl-C in the training, the same cell again, then the rest; and back to the base model."""
    cells = code_cells("00")
    (training,) = [i for i, source in enumerate(cells) if "trainer.train()" in source]
    (loaded,) = [i for i, source in enumerate(cells) if source.startswith("tickets = ")]
    before = [
        i
        for i, source in enumerate(cells[:training])
        if source.startswith("base = ") or "before" in source
    ]
    for i, source in enumerate(cells[:training]):
        lesson_kernel.well(source)
        if i == loaded:
            lesson_kernel.well(FEWER)
    broken_off = lesson_kernel.run(cells[training], interrupt_at="Figure")
    assert broken_off.error.startswith("KeyboardInterrupt")
    assert "Loss fell" not in broken_off.text

    again = lesson_kernel.well(cells[training])
    assert not [words for words in SECOND_ADAPTER if words in again.text], again.text
    assert again.text.count("Figure") == 1 and again.updates == 2, "one figure that grows"
    assert "(step 5)" in again.text, "it should begin again at the first step"
    for source in cells[training + 1 :]:
        lesson_kernel.well(source)
    for i in before:  # the model is loaded again, and their claims hold for it alone
        lesson_kernel.well(cells[i])

    lesson_kernel.restart()
    assert lesson_kernel.run("trainer").error.startswith("NameError")
    for source in cells[: loaded + 1]:
        lesson_kernel.well(source)


def test_the_meter_stops_at_a_step_that_is_interrupted(lesson_kernel: Kernel) -> None:
    """It follows every operation, so that left behind it would slow down all that comes after."""
    lesson_kernel.well(METERED)
    stack = "print(len(_get_current_dispatch_mode_stack()))"
    broken_off = lesson_kernel.run(
        "left = MeterCallback()\nmeasured(left, Wait())", interrupt_at="in the second step"
    )
    assert broken_off.error.startswith("KeyboardInterrupt")
    assert lesson_kernel.well(stack).text == "0\n"
    lesson_kernel.well("meter = MeterCallback()\nmeasured(meter)")
    assert lesson_kernel.well(stack).text == "0\n"
    lesson_kernel.well("assert left.memory is None\nassert meter.memory.peak > 10e6")
    # One that is broken off inside a cell that goes on is stopped by the next training.
    lesson_kernel.well(
        "class Fails(TrainerCallback):\n"
        "    def on_step_begin(self, args, state, control, **kwargs):\n"
        "        assert state.global_step == 0\n"
        "again = MeterCallback()\n"
        "try:\n    measured(MeterCallback(), Fails())\n"
        "except AssertionError:\n    measured(again)\n"
        "else:\n    raise RuntimeError('it did not fail')\n"
        "assert again.memory.peak == meter.memory.peak"
    )
    assert lesson_kernel.well(stack).text == "0\n"


def test_an_explorer_works_when_its_cell_is_run_again(lesson_kernel: Kernel) -> None:
    """The cell three times: one explorer each time, and the last one follows its controls."""
    lesson_kernel.well("from course_utils import widgets")
    for _ in range(3):
        assert lesson_kernel.well(EXPLORER).text.count("Schedule explorer") == 1
    lesson_kernel.well('explorer.controls["lr_scheduler_type"].value = "linear"')
    shown = lesson_kernel.well("print('now: linear' in explorer.result.data)")
    assert shown.text == "True\n"
