"""The figures: right numbers on them, and a live curve that also works without a notebook."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from helpers import CALM
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from course_utils import data, plots, quantization
from course_utils.memory import StepMemory
from course_utils.paths import POCKET_MODEL
from preflight.gpu_plots import plot_fits, summarise_fits
from preflight.memory_plan import fit_gpus, predict


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


def test_a_sweep_has_its_settings_as_ticks_and_says_its_extremes() -> None:
    """A reader looks for "rank 8" on the axis, and for where the lowest loss is."""
    line = pd.Series({1: 0.3, 8: 0.1, 64: 0.2})
    figure = plots.sweep({"a": line, "b": 2 * line}, "Loss", "rank", noise=(0.09, 0.11))
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "8", "64"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.lines[1].get_ydata().tolist() == pytest.approx([0.6, 0.2, 0.4])
    assert len({line.get_marker() for line in axes.lines}) == 2
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b", "seeds alone"]
    assert plots.summarise_sweep({"a": line}) == "a: lowest 0.1000 at 8, highest 0.3000 at 1."


@pytest.mark.parametrize("lines, log", [({}, "xy"), ({"a": pd.Series([1.0])}, "z")])
def test_a_sweep_without_lines_or_with_a_wrong_axis_is_refused(lines: dict, log: str) -> None:
    """An empty figure would pass for a result."""
    with pytest.raises(ValueError, match="line with a point"):
        plots.sweep(lines, "Loss", "rank", log=log)


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
        activation_checkpointing=False, **CALM,
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
    printed = capsys.readouterr().out
    assert "step 2 of 4: loss" in printed and "step 4)" in printed


@pytest.fixture(scope="module")
def step() -> StepMemory:
    """Return the memory of a small LoRA step."""
    return predict(str(POCKET_MODEL), "lora", batch_size=2, length=128)


def test_memory_bars_carry_parts_and_sums(step: StepMemory) -> None:
    """Every bar ends with its sum; categories differ in hatching too, and are named."""
    figure = plots.memory_bars({"LoRA": step, "again": step}, {"LoRA": step})
    axes = figure.axes[0]
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    assert ticks == ["LoRA\npredicted", "LoRA\nmeasured", "again\npredicted"]
    texts = [text.get_text() for text in axes.texts]
    assert texts.count(f"{step.peak / 2**20:.1f} MiB") == 3
    assert f"{max(step.at_peak.values()) / 2**20:.1f}" in texts
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [k for k, v in step.at_peak.items() if v]
    looks = {(p.get_facecolor(), p.get_hatch()) for p in legend.get_patches()}
    assert len({hatch for _, hatch in looks}) == len(legend.get_patches())
    assert "measured" in plots.summarise_memory({"LoRA": step}, {"LoRA": step})
    assert "+0.0%" in plots.summarise_memory({"LoRA": step}, {"LoRA": step})
    with pytest.raises(ValueError, match="same name"):
        plots.memory_bars({"LoRA": step}, {"QLoRA": step})


def test_memory_over_a_step_marks_its_phases(step: StepMemory) -> None:
    """The areas add up to what lives at each moment."""
    axes = plots.memory_over_step(step).axes[0]
    words = " ".join(text.get_text() for text in axes.texts)
    for phase in dict.fromkeys(sample.phase for sample in step.timeline):
        assert phase in words
    top = max(path.vertices[:, 1].max() for area in axes.collections for path in area.get_paths())
    most = max(sum(sample.bytes.values()) for sample in step.timeline)
    assert top == pytest.approx(most / 2**20, rel=1e-6)
    assert step.peak_phase in plots.summarise_step(step)


def test_plot_fits_says_so_in_words() -> None:
    """A grid whose cells can be read without their colour."""
    found = fit_gpus(str(POCKET_MODEL), ["T4", 0.5], ["lora", "full"], length=128)
    axes = plot_fits(found).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 4
    assert sum(text.endswith(": fits") for text in texts) == 2
    assert sum(text.endswith(": too large") for text in texts) == 2
    assert summarise_fits(found) == (
        "Fits: lora on 1 of 2 (smallest T4), full on 1 of 2 (smallest T4)."
    )


def test_quantization_errors_are_a_density_and_named() -> None:
    """Outlines that could be compared by eye only if each holds the same area."""
    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    reports = [quantization.explore(weights, kind) for kind in ("fp4", "nf4")]
    figure = plots.quantization_errors(reports)
    for patch, report in zip(figure.axes[0].patches, reports, strict=True):
        values, edges, _ = patch.get_data()
        area = sum(values) * (edges[1] - edges[0])
        assert area == pytest.approx(sum(report.counts) / report.parameters)
    assert len({patch.get_linestyle() for patch in figure.axes[0].patches}) == 2
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["fp4, blocks of 64: 4.5 bits", "nf4, blocks of 64: 4.5 bits"]
    summary = plots.summarise_errors(reports)
    assert summary.index("nf4") < summary.index("fp4")  # the smaller error first
    with pytest.raises(ValueError, match="explore"):
        plots.quantization_errors([])


@pytest.fixture
def compared() -> pd.DataFrame:
    """A comparison's table: b is beaten by a, c costs more and is better, d failed."""
    return pd.DataFrame(
        {
            "peak MiB": [10.0, 20.0, 30.0, float("nan")],
            "peak MiB ±": [1.0, float("nan"), 0.0, float("nan")],
            "exact match": [0.8, 0.7, 0.9, float("nan")],
            "exact match ±": [0.05, float("nan"), 0.02, float("nan")],
        },
        index=["a", "b", "c", "d"],
    )


def test_the_pareto_front_has_what_nothing_beats(compared: pd.DataFrame) -> None:
    assert plots.pareto_front(compared, "peak MiB") == ["a", "c"]
    # Where lower is better, b is the best, and c is beaten by both others.
    assert plots.pareto_front(compared, "peak MiB", lower_is_better=True) == ["a", "b"]
    equal = pd.DataFrame({"cost": [1, 1], "exact match": [0.5, 0.5]}, index=["x", "y"])
    assert plots.pareto_front(equal, "cost") == ["x", "y"]
    with pytest.raises(ValueError, match="no column 'time'"):
        plots.pareto_front(compared, "time")


def test_a_trade_off_shows_every_row_that_has_both_figures(compared: pd.DataFrame) -> None:
    figure = plots.trade_off(compared, "peak MiB", log=True)
    [axes] = figure.axes
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Pareto front", "a", "b", "c"]
    assert axes.get_xscale() == "log"
    front = axes.lines[0]
    assert list(front.get_xdata()) == [10, 30] and list(front.get_ydata()) == [0.8, 0.9]
    summary = plots.summarise_trade_off(compared, "peak MiB")
    assert "a (exact match 0.8 at peak MiB 10); c" in summary and "b (" not in summary
    with pytest.raises(ValueError, match="every run failed"):
        plots.trade_off(compared.loc[["d"]], "peak MiB")


def test_loss_bands_reach_from_the_lowest_to_the_highest_seed() -> None:
    seeds = pd.DataFrame({"seed 0": [3.0, 1.0], "seed 1": [2.0, 2.0]}, index=[5, 10])
    figure = plots.loss_bands({"lora": seeds})
    [axes] = figure.axes
    assert list(axes.lines[0].get_ydata()) == [2.5, 1.5]
    corners = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == (1.0, 3.0)
    assert plots.summarise_bands({"lora": seeds}).endswith("lora 1.5000 (1.0000 to 2.0000).")
    with pytest.raises(ValueError, match=r"compare\.curves"):
        plots.loss_bands({})
