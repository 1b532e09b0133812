"""The pretraining script: it trains, saves what the lessons load, and survives a kill."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from course_utils.paths import DATA

SCRIPT = DATA / "build" / "pretrain.py"


def command(folder: Path, *more: str) -> list[str]:
    arguments = ["--documents", "400", "--save-steps", "4", "--output", folder / "model"]
    return [sys.executable, SCRIPT, *map(str, arguments), "--work", str(folder / "work"), *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted short run."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(command(folder), check=True, capture_output=True)
    return folder


@pytest.mark.long
def test_it_saves_a_model_that_loads_and_its_record(whole: Path) -> None:
    """What `make data-model` leaves behind is what the lessons and the card read."""
    model = AutoModelForCausalLM.from_pretrained(whole / "model")
    tokenizer = AutoTokenizer.from_pretrained(whole / "model")
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(tokenizer)
    facts = json.loads((whole / "model" / "training.json").read_text())
    assert facts["documents"] == 400
    assert 2 < facts["heldout_loss"] < 8.03, "better than chance, ln 3072"


@pytest.mark.long
def test_killed_and_resumed_it_ends_with_the_same_weights(whole: Path, tmp_path: Path) -> None:
    """An hour's training that a power cut ends must not start again, nor end elsewhere."""
    run = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # The state of the trainer is what a checkpoint writes last.
    checkpoint = tmp_path / "work" / "checkpoint-4" / "trainer_state.json"
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    run.kill()
    run.wait()
    assert checkpoint.exists()
    assert not (tmp_path / "model").exists(), "killed too late to test anything"
    subprocess.run(command(tmp_path, "--resume"), check=True, capture_output=True)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    expected = load_file(whole / "model" / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.long
def test_the_encoder_decoder_is_trained_too(tmp_path: Path) -> None:
    """The other model of the script, on few documents."""
    subprocess.run(command(tmp_path, "--model", "t5"), check=True, capture_output=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    assert model.num_parameters() <= 4e6
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template is None
