"""COURSE_MODEL: every way to get it wrong has an answer that says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from transformers import LlamaConfig

from course_utils import models
from course_utils.paths import COURSE_ROOT, POCKET_MODEL


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


@pytest.mark.parametrize("kind", ["vit", "bert", "t5", "bart"])
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
    with pytest.raises(ValueError, match="cannot be read as a model"):
        choose(monkeypatch, tmp_path)
    assert not trace.exists()


def test_a_file_a_home_folder_and_a_bad_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A notebook's %env expands no "~", and a path to the weights is not the model's folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = tmp_path / "mine"
    LlamaConfig().save_pretrained(folder)
    (folder / "model.safetensors").touch()
    assert choose(monkeypatch, "~/mine") == models.BaseModel(str(folder), "mine", False)
    with pytest.raises(ValueError, match="is a file"):
        choose(monkeypatch, folder / "model.safetensors")
    with pytest.raises(ValueError, match="nor a name that the hub allows"):
        choose(monkeypatch, "my model!")


def test_a_broken_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A config that is cut off, names no type, or holds a word for a number."""
    (tmp_path / "model.safetensors").touch()
    for text in ("{", "{}", "[]", '{"model_type": "llama", "hidden_size": "wide"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="cannot be read as a model"):
            choose(monkeypatch, tmp_path)


class Hub(BaseHTTPRequestHandler):
    """Refuses as the hub does: its status and its X-Error-Code decide what its client raises."""

    answers: ClassVar = {
        "gated": (403, "GatedRepo"),
        "absent": (401, "RepoNotFound"),
        "expired": (401, ""),  # a token that is not valid any more
    }

    def do_HEAD(self) -> None:
        status, code = self.answers[self.path.split("/")[1]]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


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
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        env=kept | {"HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"} | variables,
        cwd=COURSE_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_offline_and_not_in_the_cache(tmp_path: Path) -> None:
    """The usual case in a workshop: a hub name and no network."""
    messages = ask(["nobody/no-such-model"], tmp_path, HF_HUB_OFFLINE="1")
    assert "no copy of it is on this machine" in messages["nobody/no-such-model"]
    assert "HF_HUB_OFFLINE" in messages["nobody/no-such-model"]


def test_what_the_hub_refuses(tmp_path: Path) -> None:
    """The hub says 401 to a misspelt name as well, which no licence or token would fix."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = [f"{owner}/model" for owner in Hub.answers]
    try:
        messages = ask(names, tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    assert "needs permission" in messages["gated/model"]
    assert "HF_TOKEN" in messages["gated/model"]
    assert "token is not valid" in messages["expired/model"]
    assert "is not on the hub" in messages["absent/model"]
    assert "Check the spelling" in messages["absent/model"]


def test_a_causal_model_is_what_the_library_says() -> None:
    """The lists are the library's own, so a new architecture needs no change here."""
    for kind in ("llama", "qwen3", "gpt2", "gemma3"):
        assert kind in models.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        assert kind not in models.MODEL_FOR_MASKED_LM_MAPPING_NAMES
