"""The recipe files are those that lesson 10 writes, and the planning formula knows its limits."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from transformers import Gemma3Config, Gemma3TextConfig, GPT2Config, MambaConfig, MixtralConfig

from course_utils.paths import COURSE_ROOT
from preflight.memory_plan.throughput import flops_per_token, tokens_per_second

NOTEBOOKS = COURSE_ROOT / "notebooks"
RECIPES = NOTEBOOKS / "recipes"


def test_the_files_are_those_that_the_lesson_writes(tmp_path: Path, monkeypatch) -> None:
    """A recipe changed in the lesson, or in the file, and not in the other would drift."""
    cells = nbformat.read(NOTEBOOKS / "10_scale_up.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    imports = [cell.source for cell in code[1:4]]
    tagged = [cell.source for cell in code if "recipes" in cell.metadata.get("tags", [])]
    assert len(tagged) >= 4
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    exec("\n".join(imports + tagged), {"__name__": "lesson"})
    written = {path.name: path.read_text() for path in (tmp_path / "recipes").iterdir()}
    assert written == {path.name: path.read_text() for path in RECIPES.glob("*.yaml")}


def test_every_command_of_the_lesson_names_files_that_exist() -> None:
    source = (NOTEBOOKS / "10_scale_up.ipynb").read_text(encoding="utf-8")
    named = set(re.findall(r"recipes/(\w+\.(?:yaml|py))", source))
    assert named >= {"recipe.yaml", "fsdp2.yaml", "train.py", "shard.py"}
    assert not {name for name in named if not (RECIPES / name).exists()}


def test_flops_of_a_mixture_count_the_experts_that_a_token_visits() -> None:
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 96}
    one, two = (
        flops_per_token(
            MixtralConfig(
                num_local_experts=8, num_experts_per_tok=visited, num_attention_heads=4,
                num_key_value_heads=4, **shape,
            ),
            "full",
            length=1,
        )
        for visited in (1, 2)
    )  # fmt: skip
    expert = 3 * 64 * 128  # gate, up, down
    assert two - one == pytest.approx(6 * 2 * expert)


@pytest.mark.parametrize("tied", [True, False])
def test_flops_leave_out_the_tables_of_embeddings(tied: bool) -> None:
    """GPT-2 looks up positions as well as tokens; the head is a matrix, tied to a table or not."""
    config = GPT2Config(
        n_embd=64, n_layer=2, n_head=4, n_positions=512, vocab_size=96, tie_word_embeddings=tied
    )
    layer = 64 * 3 * 64 + 64 * 64 + 2 * 64 * 256  # attention's four matrices, and the two after it
    attention = 3 * 4 * 2 * 64
    assert flops_per_token(config, "full", length=1) == 6 * (2 * layer + 96 * 64) + attention


def test_flops_of_a_model_for_pictures_are_those_of_its_text() -> None:
    """A token of the text is not seen by the encoder of the pictures."""
    text = Gemma3TextConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=96,
        num_attention_heads=4, num_key_value_heads=4, head_dim=16,
    )  # fmt: skip
    assert flops_per_token(Gemma3Config(text_config=text)) == flops_per_token(text)


def test_speed_grows_with_gpus_and_their_use() -> None:
    assert tokens_per_second(1e9, "H100 80GB", gpus=2, utilisation=0.5) == pytest.approx(989e3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: flops_per_token("llama-3.2-1b", "lorra"), "full, lora, qlora"),
        (lambda: flops_per_token("llama-3.2-1b", length=0), "from 1 on"),
        (lambda: flops_per_token(MambaConfig()), "'mamba'.*Allowed are models that attend"),
        (lambda: tokens_per_second(0, "T4"), "above 0"),
        (lambda: tokens_per_second(1e9, "T4", utilisation=40), "share"),
        (lambda: tokens_per_second(1e9, "RTX 4090"), "L40S"),
    ],
)
def test_what_is_wrong_is_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
