"""The lessons' explorers in JupyterLab, by keyboard and by mouse in a real browser."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from course_utils import serving
from course_utils.paths import COURSE_ROOT

tool = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
SCREENSHOTS = COURSE_ROOT / "build" / "screenshots"
MINUTE = 60_000  # in the browser's milliseconds; the machine may be busy
# The status bar says so only once the kernel answers; before, "Run All Cells" asks for a kernel.
READY = "Python 3 (ipykernel) | Idle"
SETUP = """\
import torch
from course_utils import models, widgets
from preflight import explorers
base = models.base_model()
generator = torch.Generator().manual_seed(0)
samples = {name: torch.randn(64, 512, generator=generator) for name in ("first", "second")}
"""
# Lesson -> its cell, and moves: a control's label; steps of a slider or list, or entry of a menu;
# words that the explorer then shows.
LESSONS: dict[str, tuple[str, tuple[tuple[str, int | str, str], ...]]] = {
    "02_models_and_memory": (
        'explorers.memory_planner("llama-3.1-8b", gpu="T4")',
        (
            ("model", "qwen3-0.6b", "Fits T4"),
            ("batch size", 1, "per_device_train_batch_size=2,"),
            ("length", -1, "max_length=512,"),
            ("gradient checkpointing", 1, "activation_checkpointing=False,"),
            ("optimizer", "adamw_8bit", 'optim="adamw_8bit",'),
            ("GPU", "L4 (22.0 GiB)", "Fits L4"),
            ("method", "int8", "load_in_8bit=True,"),
        ),
    ),
    "03_quantization": (
        "widgets.quantization_explorer(samples)",
        (
            ("type", "fp4 (4 bits)", 'bnb_4bit_quant_type="fp4",'),
            ("block size", 1, "blocks are always of 64"),
            ("double quantization", 1, "bnb_4bit_use_double_quant=True,"),
            ("weights", "second", "RMS error"),
        ),
    ),
    "04_lora": (
        "explorers.lora_explorer(base.path)",
        (
            ("rank r", 1, "r=16,"),
            ("alpha", 1, "lora_alpha=32,"),
            ("dropout", 1, "lora_dropout=0.05,"),
            ("bias", "lora_only", 'bias="lora_only",'),
            ("targets", "by name", 'target_modules=["q_proj"],'),
            ("names", 1, 'target_modules=["q_proj", "k_proj"],'),
        ),
    ),
    "06_training_arguments": (
        "widgets.schedule_explorer()",
        (
            ("learning rate", 1, "learning_rate=0.0005,"),
            ("steps", 1, "max_steps=110,"),
            ("warm-up (share)", 1, "warmup_steps=0.11,"),
            ("schedule", "cosine_with_restarts", '"num_cycles": 3'),
            ("cycles", 1, '"num_cycles": 4'),
            ("schedule", "warmup_stable_decay", '"num_decay_steps": 22'),
            ("lowest (share)", 1, '"min_lr_ratio": 0.15'),
            ("decay (share)", 1, '"num_decay_steps": 28'),
        ),
    ),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of the lessons' cells in a JupyterLab without the user's settings."""
    home = tmp_path_factory.mktemp("lab")
    cells = [new_code_cell(source) for source in (SETUP, *(call for call, _ in LESSONS.values()))]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, home / "explorers.ipynb")
    settings = {
        "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
    }
    (home / "overrides.json").write_text(json.dumps(settings))
    port, token = serving.free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.port={port}", f"--notebook-dir={home}"]
    command += [f"--LabApp.{kind}_dir={home}" for kind in ("app_settings", "user_settings")]
    environment = {
        **os.environ,
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "PYTHONPATH": str(COURSE_ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, f"--LabApp.workspaces_dir={home}"], env=environment, stdout=log, stderr=log
        )
        try:
            wait_for_port(port, server, home / "log")
            yield f"http://127.0.0.1:{port}/lab/tree/explorers.ipynb?reset&token={token}"
        finally:
            server.terminate()
            server.wait(60)


def wait_for_port(port: int, server: subprocess.Popen, log: Path) -> None:
    """Return once something listens.

    Raises:
        RuntimeError: if the server ended, with its log, or does not listen after two minutes.
    """
    for _ in range(240):
        if server.poll() is None:
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    return
        time.sleep(0.5)
    raise RuntimeError(f"JupyterLab does not listen on port {port}: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def page(lab: str) -> Iterator[Any]:
    """Yield the page with all explorers drawn; no error may come to its console."""
    faults: list[str] = []
    with tool.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda m: m.type == "error" and faults.append(m.text))
        page.goto(lab)
        page.get_by_text(READY).wait_for(timeout=2 * MINUTE)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.locator(".jp-Cell").last.locator("img").wait_for(timeout=5 * MINUTE)
        yield page
        browser.close()
    assert not faults


@pytest.mark.parametrize("name", LESSONS)
def test_an_explorer_follows_the_keyboard(name: str, page: Any) -> None:
    """The reader sees the browser, not the functions that the other tests call."""
    call, moves = LESSONS[name]
    lesson = nbformat.read(COURSE_ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert call in [cell.source for cell in lesson.cells], "the cell tested is that of the lesson"
    cell = cell_of(page, name)
    controls = cell.locator(".widget-inline-hbox:not(.widget-label)").count()
    assert controls == len({label for label, *_ in moves}), "each control is moved"
    shown = cell.locator(".widget-output").first
    for label, target, words in moves:
        before = shown.inner_html()
        place = place_of(cell, label)
        for key in keys(place, target):
            page.keyboard.press(key)
        changed = "([part, before]) => part.innerHTML != before"
        page.wait_for_function(changed, arg=[shown.element_handle(), before], timeout=2 * MINUTE)
        tool.expect(shown).to_contain_text(words, timeout=2 * MINUTE)
        assert shown.locator("img[alt]").count() == 1
    cell.screenshot(path=SCREENSHOTS / f"{name[:2]}_moved.png")


def test_a_slider_that_is_dragged_draws_when_it_is_released(page: Any) -> None:
    """By mouse; what is passed on the way is not drawn."""
    cell = cell_of(page, "06_training_arguments")
    place, shown = place_of(cell, "warm-up (share)"), cell.locator(".widget-output")
    before = shown.inner_html()
    box = place.locator(".noUi-handle").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    for distance in (20, 40, 60):
        page.mouse.move(box["x"] + distance, box["y"] + box["height"] / 2)
        time.sleep(0.5)
    assert shown.inner_html() == before
    page.mouse.up()
    share = place.locator(".widget-readout").inner_text().rstrip("0")
    tool.expect(shown).to_contain_text(f"warmup_steps={share},", timeout=MINUTE)


def test_the_button_trains_and_draws_the_loss(page: Any) -> None:
    """By mouse."""
    cell = cell_of(page, "04_lora")
    cell.locator("button.widget-button").click()
    curve = cell.locator(".widget-output").last
    tool.expect(curve).to_contain_text("Loss fell from", timeout=2 * MINUTE)
    assert curve.locator("img[alt]").count() == 1
    tool.expect(cell.locator("button.widget-button")).to_be_enabled()
    cell.screenshot(path=SCREENSHOTS / "04_trained.png")


def cell_of(page: Any, name: str) -> Any:
    """Return the cell that has the explorer of a lesson."""
    return page.locator(".jp-Cell").nth(1 + list(LESSONS).index(name))


def place_of(cell: Any, label: str) -> Any:
    """Return where the control of a label is."""
    return cell.locator(".widget-inline-hbox", has=cell.page.get_by_text(label, exact=True))


def keys(place: Any, target: int | str) -> list[str]:
    """Focus a control, and return the keys that move it, of those that JupyterLab leaves to it."""
    control = place.locator("[role=slider], select, input").first
    control.focus()
    if isinstance(target, str):
        entries = [one.replace("\xa0", " ") for one in control.locator("option").all_inner_texts()]
        steps = entries.index(target) - control.evaluate("menu => menu.selectedIndex")
        return ["Space", *["ArrowDown" if steps > 0 else "ArrowUp"] * abs(steps), "Enter"]
    if control.evaluate("control => control.multiple"):
        return ["Control+ArrowDown", "Space"] * target
    if control.get_attribute("type") == "checkbox":
        return ["Space"]
    return ["ArrowRight" if target > 0 else "ArrowLeft"] * abs(target)
