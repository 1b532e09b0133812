"""COURSE_MODEL: every way to get it wrong has an answer that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.errors import GatedRepoError
from transformers import AutoConfig, BertConfig, LlamaConfig

from course_utils import models
from course_utils.paths import POCKET_MODEL


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def choose(monkeypatch: pytest.MonkeyPatch, name: str | Path) -> models.BaseModel:
    monkeypatch.setenv(models.VARIABLE, str(name))
    return models.base_model()


@pytest.mark.parametrize("value", [None, "", "  "])
def test_the_pocket_model_is_the_default(monkeypatch: pytest.MonkeyPatch, value) -> None:
    """An empty variable is what a shell script leaves behind; it must not be a folder."""
    monkeypatch.delenv(models.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(models.VARIABLE, value)
    assert models.base_model() == models.BaseModel(str(POCKET_MODEL), "pocket-llama", True)


def test_a_folder_with_a_model_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A fine-tuned copy on disk is the most common choice."""
    folder = tmp_path / "mine"
    LlamaConfig().save_pretrained(folder)
    (folder / "model.safetensors").touch()
    assert choose(monkeypatch, folder) == models.BaseModel(str(folder), "mine", False)


def test_a_folder_that_is_missing_or_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library would say that a repo id must be in the form 'repo_name'."""
    with pytest.raises(FileNotFoundError, match="does not exist"):
        choose(monkeypatch, tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"without a config.json \(it holds nothing\)"):
        choose(monkeypatch, tmp_path)


def test_a_config_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A clone without its large files."""
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights in safetensors"):
        choose(monkeypatch, tmp_path)


def test_an_adapter_is_not_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder that lesson 00 saves is a tempting choice."""
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="base_model_name_or_path"):
        choose(monkeypatch, tmp_path)


def test_an_encoder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """BERT has a causal head in the library, but an encoder-only T5 or ViT has none."""
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="'vit'"):
        choose(monkeypatch, tmp_path)


def test_a_broken_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A config that is cut off, or names no type."""
    (tmp_path / "model.safetensors").touch()
    for text in ("{", "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="cannot be read as a model"):
            choose(monkeypatch, tmp_path)


def test_offline_and_not_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual case in a workshop: a hub name and no network."""
    with pytest.raises(RuntimeError, match="connection"):
        choose(monkeypatch, "nobody/no-such-model")


def test_a_gated_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's refusal, as transformers passes it on."""
    from types import SimpleNamespace

    def refuse(name: str) -> None:
        response = SimpleNamespace(headers={}, request=None, status_code=401)
        cause = GatedRepoError("401 Client Error", response=response)
        raise OSError("You are trying to access a gated repo.") from cause

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(RuntimeError, match="HF_TOKEN"):
        choose(monkeypatch, "meta-llama/Llama-3.2-1B")


def test_bert_counts_as_what_the_library_says() -> None:
    """The list is the library's own, so a new architecture needs no change here."""
    assert "llama" in models.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert BertConfig.model_type in models.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
