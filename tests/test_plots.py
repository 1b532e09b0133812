"""The figures: right numbers on them, and a live curve that also works without a notebook."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from course_utils import data, plots
from course_utils.paths import POCKET_MODEL


def test_bars_carry_their_values() -> None:
    """A bar without its number cannot be read."""
    figure = plots.bars({"before": 0.0, "after": 0.931}, "Exact match", "share")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["0.00", "0.93"]


def test_curves_differ_in_more_than_colour() -> None:
    """Readers who do not tell colours apart need the markers."""
    curve = pd.Series([3.0, 2.0, 1.0], index=[10, 20, 30])
    axes = plots.loss_curves({"a": curve, "b": curve + 1}).axes[0]
    assert len({line.get_marker() for line in axes.lines}) == 2
    assert axes.lines[0].get_xdata().tolist() == [10, 20, 30]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize(
    "values, words",
    [([3.0, 1.0], "fell from 3.000"), ([1.0, 3.0], "did not fall"), ([], "No loss")],
)
def test_the_summary_says_what_the_curve_shows(values: list[float], words: str) -> None:
    """The line under a figure is all that some readers have."""
    assert words in plots.summarise(pd.Series(values, dtype=float))


def test_live_loss_without_a_notebook(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a terminal a line for each logged loss, and the curve equals the trainer's own log."""
    live = plots.LiveLoss()
    config = SFTConfig(
        output_dir=str(tmp_path), max_steps=4, logging_steps=2, per_device_train_batch_size=2,
        use_cpu=not torch.cuda.is_available(), bf16=False, activation_checkpointing=False,
        report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32),
        args=config,
        train_dataset=data.load("tickets", "train", form="prompt-completion").select(range(8)),
        processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
        callbacks=[live],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert live.curve.tolist() == pytest.approx([float(loss) for loss in logged])
    assert live.curve.index.tolist() == [2, 4]
    said = capsys.readouterr().out
    assert "step 2 of 4: loss" in said
    assert "step 4)" in said
