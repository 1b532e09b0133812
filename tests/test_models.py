"""COURSE_MODEL: what it may be; book/bad_input.yaml has what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
from helpers import QuietHandler, python, served
from transformers import LlamaConfig

from course_utils import models
from course_utils.paths import POCKET_MODEL


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


@pytest.mark.parametrize("given", ["mine", "~/mine"])
def test_a_folder_with_a_model_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str
) -> None:
    """A fine-tuned copy on disk is the most common choice; a notebook's %env expands no "~"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = tmp_path / "mine"
    LlamaConfig().save_pretrained(folder)
    (folder / "model.safetensors").touch()
    name = given if given.startswith("~") else folder
    assert choose(monkeypatch, name) == models.BaseModel(str(folder), "mine", False)


@pytest.mark.parametrize("kind", ["vit", "bart"])
def test_what_does_not_write_left_to_right_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """The library loads BERT and BART as causal models too, with a head that was never trained."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=f"'{kind}', which does not write"):
        choose(monkeypatch, tmp_path)


def test_code_of_a_repository_is_never_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """transformers asks whether to run it, and a learner who answers yes has run it."""
    auto_map = {"AutoConfig": "configuration_mine.MyConfig"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto_map}))
    (tmp_path / "model.safetensors").touch()
    trace = tmp_path / "it-ran"
    (tmp_path / "configuration_mine.py").write_text(
        f"open({str(trace)!r}, 'w')\nfrom transformers import PretrainedConfig\n"
        "class MyConfig(PretrainedConfig):\n    model_type = 'mine'\n"
    )
    monkeypatch.setattr("builtins.input", lambda question: "y")
    with pytest.raises(ValueError, match="never runs code of a repository"):
        choose(monkeypatch, tmp_path)
    assert not trace.exists()


def test_a_broken_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A config that is cut off, names no type, or holds a word for a number."""
    (tmp_path / "model.safetensors").touch()
    for text in ("{", "{}", "[]", '{"model_type": "llama", "hidden_size": "wide"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="cannot be read as a model"):
            choose(monkeypatch, tmp_path)


class Hub(QuietHandler):
    """Refuses as the hub does: its status and its X-Error-Code decide what its client raises."""

    answers: ClassVar = {
        "gated": (403, {"X_Error_Code": "GatedRepo"}),
        "absent": (401, {"X_Error_Code": "RepoNotFound"}),
        "expired": (401, {}),  # a token that is not valid any more
    }

    def do_HEAD(self) -> None:
        status, headers = self.answers[self.path.split("/")[1]]
        self.answer(status, **headers)

    do_GET = do_HEAD


def ask(names: list[str], cache: Path, **variables: str) -> dict[str, str]:
    """Return what base_model says to each name, from a process of its own.

    The hub's client reads its environment variables once, when it is imported.
    """
    code = (
        "import json, os, sys\nfrom course_utils import models\nmessages = {}\n"
        "for name in sys.argv[1:]:\n    os.environ[models.VARIABLE] = name\n"
        "    try: models.base_model()\n"
        "    except RuntimeError as error: messages[name] = str(error)\n"
        "print(json.dumps(messages))"
    )
    online = {"HF_HUB_OFFLINE": "", "HF_TOKEN": "", "NO_PROXY": "127.0.0.1"}
    done = python("-c", code, *names, check=True, **online | {"HF_HOME": str(cache)} | variables)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_token_that_is_not_valid_is_named(tmp_path: Path) -> None:
    """The hub says 401 to a misspelt name as well, which no token would help."""
    with served(Hub) as (address, _):
        messages = ask(["expired/model"], tmp_path, HF_ENDPOINT=address)
    assert "token is not valid" in messages["expired/model"]


def test_a_causal_model_is_what_the_library_says() -> None:
    """The lists are the library's own, so a new architecture needs no change here."""
    for kind in ("llama", "qwen3", "gpt2", "gemma3"):
        assert kind in models.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        assert kind not in models.MODEL_FOR_MASKED_LM_MAPPING_NAMES
