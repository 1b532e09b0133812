"""The network goes away in the middle of a file: a server on this machine stands in for the hub."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from helpers import QuietHandler, python, served

from course_utils.paths import COURSE_ROOT, POCKET_MODEL

COMMIT = "0" * 40
ALWAYS = 10**6


class Hub(QuietHandler):
    """Serves the pocket model; of a file in `server.drops` only the first half, so many times."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        file = POCKET_MODEL / name
        if "/resolve/" not in self.path or not file.is_file():
            self.answer(404, X_Error_Code="EntryNotFound")
            return
        content = file.read_bytes()
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0] or 0) if asked else 0
        headers = {"Accept_Ranges": "bytes", "X_Repo_Commit": COMMIT}
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if asked:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.command == "GET" and self.server.drops.get(name, 0) > 0
        if cut:
            self.server.drops[name] -= 1
            self.close_connection = True
        self.answer(206 if asked else 200, content[start:], cut=cut, **headers)

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    with served(Hub) as (_, server):
        server.drops = {}
        yield server


def call(
    hub: ThreadingHTTPServer, cache: Path, *command: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with the server as the hub, which its client is told before it is imported."""
    variables = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "", "HF_TOKEN": "", "NO_PROXY": "127.0.0.1", "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    return python(*command, **variables | more)


def whole_files(cache: Path) -> dict[str, bool]:
    """Return the files that the cache offers, each with whether it is as on the hub."""
    found = cache.rglob(f"snapshots/{COMMIT}/*")
    return {p.name: p.read_bytes() == (POCKET_MODEL / p.name).read_bytes() for p in found}


def test_a_config_that_breaks_off_is_said_and_not_kept(hub, tmp_path: Path) -> None:
    """The same command works as soon as the network does."""
    command = ("-m", "course_utils", "modules", "nobody/pocket", "--check", "q_proj")
    hub.drops["config.json"] = ALWAYS
    done = call(hub, tmp_path, *command)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "'nobody/pocket' could not be fetched" in done.stderr
    assert "Check the spelling and the connection" in done.stderr
    assert whole_files(tmp_path) == {}
    hub.drops.clear()
    done = call(hub, tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert whole_files(tmp_path) == {"config.json": True}


LOAD = """
import json, sys
from course_utils import models
from transformers import AutoModelForCausalLM, AutoTokenizer
try:
    base = models.base_model()
    AutoTokenizer.from_pretrained(base.path)
    model = AutoModelForCausalLM.from_pretrained(base.path)
    print(json.dumps({"parameters": model.num_parameters()}))
except Exception as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""


def load(hub: ThreadingHTTPServer, cache: Path) -> dict[str, object]:
    """Return what lesson 00's cell says that loads the model."""
    done = call(hub, cache, "-c", LOAD, COURSE_MODEL="nobody/pocket")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_weights_that_break_off_are_not_taken_for_whole(hub, tmp_path: Path) -> None:
    """Once is made good by the client itself; for ever is an error, and then it goes on."""
    hub.drops["model.safetensors"] = ALWAYS
    found = load(hub, tmp_path)
    assert "error" in found, found
    assert "model.safetensors" not in whole_files(tmp_path)
    assert all(whole_files(tmp_path).values())
    hub.drops["model.safetensors"] = 1
    assert load(hub, tmp_path) == {"parameters": 3_737_856}
    assert all(whole_files(tmp_path).values()) and "model.safetensors" in whole_files(tmp_path)


def test_lesson_10_goes_online_where_make_lab_began_offline(hub, tmp_path: Path) -> None:
    """Its cell that switches to a real model, with the name of one that has to be fetched."""
    path = COURSE_ROOT / "notebooks" / "10_scale_up.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = (cell.source for cell in cells if cell.source.startswith('CHOICE = ""'))
    switch = cell.partition("here = ")[0].replace('CHOICE = ""', 'CHOICE = "nobody/pocket"')
    code = (
        "import os\nimport huggingface_hub\nimport transformers\nfrom course_utils import models\n"
    )
    code += f"{switch}\ntransformers.AutoModelForCausalLM.from_pretrained(chosen.path)"
    done = call(hub, tmp_path, "-c", code, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert whole_files(tmp_path).get("model.safetensors") is True
