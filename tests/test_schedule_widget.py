"""Schedules: the explorer draws what a trainer would really do."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
from helpers import CALM
from helpers import shown_text as text
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

from course_utils import plots, widgets
from course_utils.schedules import FOLLOW_THE_LOSS, SCHEDULES, own_arguments
from course_utils.widgets import Explorer

TINY = LlamaConfig(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8
)


def logged_rates(folder: Path, **arguments: object) -> list[float]:
    """Return the learning rates that a real training logs."""
    args = TrainingArguments(
        output_dir=str(folder), logging_steps=1, per_device_train_batch_size=2, **CALM, **arguments
    )
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]] * 12, "labels": [[1, 2, 3, 4]] * 12})
    trainer = Trainer(LlamaForCausalLM(TINY), args, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]


@pytest.mark.parametrize("warmup", [0, 3, 0.25])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rates_are_those_that_a_trainer_logs(name, warmup, tmp_path) -> None:
    """A picture of a schedule that no trainer follows would teach wrongly."""
    own = own_arguments(name, 1e-3, 10)
    made = widgets.schedule_summary(name, 1e-3, 10, warmup, own)
    real = logged_rates(
        tmp_path, lr_scheduler_type=name, learning_rate=1e-3, max_steps=10, warmup_steps=warmup,
        lr_scheduler_kwargs=own,
    )  # fmt: skip
    assert made.rates.tolist() == real
    assert made.rates.index.tolist() == list(range(1, 11))


def test_no_schedule_of_the_library_is_left_out() -> None:
    """A new one in a later version must be looked at."""
    from transformers import SchedulerType

    assert {*SCHEDULES, *FOLLOW_THE_LOSS} == {s.value for s in SchedulerType}


def test_constant_ignores_the_warm_up_and_says_so() -> None:
    """Many recipes pair the two."""
    ignoring = widgets.schedule_summary("constant", 2e-4, 100, 0.03)
    heeding = widgets.schedule_summary("constant_with_warmup", 2e-4, 100, 0.03)
    assert (ignoring.rates == 2e-4).all() and ignoring.warmup == 3
    assert "3 asked for, and ignored" in str(ignoring)
    assert heeding.rates.iloc[:4].tolist() == pytest.approx([0, 2e-4 / 3, 4e-4 / 3, 2e-4])
    assert "ignored" not in str(heeding)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_code_makes_the_same_arguments(name, tmp_path) -> None:
    """It is there to be copied."""
    made = widgets.schedule_summary(name, 5e-4, 20, 0.1, own_arguments(name, 5e-4, 20))

    def build(**arguments: object) -> TrainingArguments:
        return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)

    copied = eval(made.code, {"TrainingArguments": build})
    assert copied.lr_scheduler_type == name and copied.max_steps == 20
    assert copied.get_warmup_steps(20) == made.warmup == 2
    assert (copied.lr_scheduler_kwargs or {}) == made.arguments.get("lr_scheduler_kwargs", {})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr_scheduler_type": "cosin"}, "no such schedule.*cosine_with_restarts"),
        ({"lr_scheduler_type": "greedy"}, "follows the evaluation loss"),
        ({"learning_rate": 0}, "above 0"),
        ({"learning_rate": "2e-4"}, "'2e-4'.*above 0"),
        ({"learning_rate": float("nan")}, "above 0"),
        ({"max_steps": 0}, "from 1 on"),
        ({"max_steps": 2.5}, "whole number"),
        ({"warmup_steps": -1}, "between 0 and"),
        ({"warmup_steps": 101}, "between 0 and"),
        ({"lr_scheduler_kwargs": {"num_cycles": 3}}, "unexpected keyword argument 'num_cycles'"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
    ],
)
def test_bad_arguments_are_refused_with_what_is_allowed(arguments, words) -> None:
    """A learner moves every slider to its end."""
    with pytest.raises(ValueError, match=words):
        widgets.schedule_summary(**arguments)


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return widgets.schedule_explorer()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_explorer_shows_what_the_function_gives(explorer, name) -> None:
    """For every schedule, with its own arguments."""
    explorer.controls["lr_scheduler_type"].value = name
    expected = widgets.schedule_summary(
        name, 2e-4, 100, 0.1, own_arguments(name, 2e-4, 100, lowest=0.1, cycles=3, decay=0.2)
    )
    assert expected.table() in explorer.result.data
    assert text(expected.code) in text(explorer.result.data)
    assert f"now: {expected.summary()}" in text(explorer.result.data)


def test_the_explorer_offers_what_the_schedule_takes_and_keeps_the_one_before(explorer) -> None:
    """A control that does nothing misleads."""
    explorer.controls["lr_scheduler_type"].value = "linear"
    off = {name for name, one in explorer.controls.items() if one.disabled}
    assert off == {"lowest", "cycles", "decay"}
    explorer.controls["lr_scheduler_type"].value = "cosine_with_restarts"
    assert not explorer.controls["cycles"].disabled
    shown = explorer.result.data
    explorer.controls["cycles"].value = 5
    assert "num_cycles" in text(explorer.result.data) and explorer.result.data != shown
    assert "before: cosine_with_restarts" in text(explorer.result.data)


@pytest.mark.parametrize("name", ["linear", "polynomial", "warmup_stable_decay"])
def test_every_end_of_every_slider_works(name) -> None:
    """Fewest steps, longest warm-up, most cycles, highest end."""
    explorer = widgets.schedule_explorer(5e-3, 50)
    explorer.controls["lr_scheduler_type"].value = name
    for end in ("min", "max"):
        for control in explorer.controls.values():
            if hasattr(control, end):
                control.value = getattr(control, end)
                assert "<img" in explorer.result.data, text(explorer.result.data)
    assert "max_steps=500," in explorer.result.data


def test_the_explorer_takes_a_short_training() -> None:
    """A control that starts at more steps would show another schedule than was asked for."""
    explorer = widgets.schedule_explorer(max_steps=5)
    assert "max_steps=5," in explorer.result.data and "at step 5." in explorer.result.data


def test_the_explorer_refuses_a_rate_of_zero() -> None:
    """The error comes from the call, not from inside a widget."""
    with pytest.raises(ValueError, match="above 0"):
        widgets.schedule_explorer(learning_rate=0)


def test_many_curves_have_their_legend_below() -> None:
    """Inside the axes, six names would cover the lines that they name."""
    curves = {name: widgets.schedule_summary(name).rates for name in SCHEDULES[:3]}
    curves |= {f"{name} again": curve for name, curve in curves.items()}
    figure = plots.loss_curves(curves, "Schedules", "learning rate")
    (axes,) = figure.axes
    assert axes.get_ylabel() == "learning rate" and axes.get_legend() is None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(curves)
