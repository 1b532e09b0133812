"""The lessons' explorers in JupyterLab, by keyboard and by mouse in a real browser.

Each explorer in the browser has its twin in the test's process, whose controls are set by code:
after each move the page has to show the twin's numbers, picture and code.
"""

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

import ipywidgets
import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from course_utils import serving
from course_utils.paths import COURSE_ROOT
from course_utils.widgets import Explorer

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
# Lesson -> its cell, and the moves: a control; steps of a slider or list, entry of a menu.
LESSONS: dict[str, tuple[str, tuple[tuple[str, int | str], ...]]] = {
    "02_models_and_memory": (
        'explorers.memory_planner("llama-3.1-8b", gpu="T4")',
        (
            ("model", "qwen3-0.6b"),
            ("batch_size", 1),
            ("length", -1),
            ("gradient_checkpointing", 1),
            ("optimizer", "adamw_8bit"),
            ("gpu", "L4 (22.0 GiB)"),
            ("method", "int8"),
        ),
    ),
    "03_quantization": (
        "widgets.quantization_explorer(samples)",
        (("kind", "fp4 (4 bits)"), ("block_size", 1), ("double_quant", 1), ("sample", "second")),
    ),
    "04_lora": (
        "explorers.lora_explorer(base.path)",
        (
            ("r", 1),
            ("lora_alpha", 1),
            ("lora_dropout", 1),
            ("bias", "lora_only"),
            ("targets", "by name"),
            ("names", 1),
        ),
    ),
    "06_training_arguments": (
        "widgets.schedule_explorer()",
        (
            ("learning_rate", 1),
            ("max_steps", 1),
            ("warmup_steps", 1),
            ("lr_scheduler_type", "cosine_with_restarts"),
            ("cycles", 1),
            ("lr_scheduler_type", "warmup_stable_decay"),
            ("lowest", 1),
            ("decay", 1),
        ),
    ),
}
# Text and pictures of some HTML, as the browser understands it.
SEEN = """htmls => htmls.map(html => {
    const part = document.createElement("div");
    part.innerHTML = html;
    return [part.textContent, [...part.querySelectorAll("img")].map(image => image.src)];
})"""


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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the kernel: the twins' figures have to be equal
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
    torch.set_num_threads(threads)
    assert not faults


@pytest.mark.parametrize("name", LESSONS)
def test_an_explorer_shows_what_its_function_gives(name: str, page: Any) -> None:
    """The reader sees the browser, not the functions that the other tests call."""
    call, moves = LESSONS[name]
    lesson = nbformat.read(COURSE_ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert call in [cell.source for cell in lesson.cells], "the cell tested is that of the lesson"
    twin, cell = twin_of(call), page.locator(".jp-Cell").nth(1 + list(LESSONS).index(name))
    for control, one in twin.controls.items():
        assert one.description in place_of(cell, twin, control).inner_text()
    check(page, cell, twin)
    assert {control for control, _ in moves} == set(twin.controls), "each control is moved"
    for control, target in moves:
        press(page, place_of(cell, twin, control), twin.controls[control], target)
        follow(twin.controls[control], target)
        check(page, cell, twin)
        for other, one in twin.controls.items():
            disabled = place_of(cell, twin, other).locator(":disabled, [disabled]").count()
            assert bool(disabled) == one.disabled, other
    cell.screenshot(path=SCREENSHOTS / f"{name[:2]}_moved.png")


def test_a_slider_that_is_dragged_draws_when_it_is_released(page: Any) -> None:
    """By mouse; what is passed on the way is not drawn."""
    call, _ = LESSONS["06_training_arguments"]
    cell = page.locator(".jp-Cell").last
    shown = cell.locator(".widget-output").inner_html()
    place = place_of(cell, twin_of(call), "warmup_steps")
    box = place.locator(".noUi-handle").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    for distance in (20, 40, 60):
        page.mouse.move(box["x"] + distance, box["y"] + box["height"] / 2)
        time.sleep(0.5)
    assert cell.locator(".widget-output").inner_html() == shown
    page.mouse.up()
    share = place.locator(".widget-readout").inner_text()
    cell.get_by_text(f"warmup_steps={share.rstrip('0')},").wait_for(timeout=MINUTE)


def test_the_button_trains_and_draws_the_loss(page: Any) -> None:
    """By mouse; it trains here and there, and the curves are the same."""
    call, _ = LESSONS["04_lora"]
    cell = page.locator(".jp-Cell").nth(3)
    button, twin = cell.locator("button.widget-button"), twin_of(call)
    for control, target in LESSONS["04_lora"][1]:
        follow(twin.controls[control], target)
    twin.training.manual_button.click()
    button.click()
    check(page, cell, twin, twin.training)
    page.wait_for_function("b => !b.disabled", arg=button.element_handle(), timeout=MINUTE)
    cell.screenshot(path=SCREENSHOTS / "04_trained.png")


def twin_of(call: str) -> Explorer:
    """Return what the cell of a lesson shows, made here."""
    scope: dict[str, Any] = {}
    exec(SETUP, scope)
    return eval(call, scope)


def place_of(cell: Any, twin: Explorer, name: str) -> Any:
    """Return where a control is in the browser."""
    return cell.locator(".widget-inline-hbox").nth(list(twin.controls).index(name))


def press(page: Any, place: Any, control: ipywidgets.Widget, target: int | str) -> None:
    """Move a control in the browser, by the keys that JupyterLab leaves to it."""
    if isinstance(control, ipywidgets.Checkbox):
        keys = ["Space"]
    elif isinstance(control, ipywidgets.SelectMultiple):
        keys = ["Control+ArrowDown", "Space"] * target
    elif isinstance(control, ipywidgets.Dropdown):
        steps = entries(control).index(target) - control.index
        keys = ["Space", *["ArrowDown" if steps > 0 else "ArrowUp"] * abs(steps), "Enter"]
    else:
        keys = ["ArrowRight" if target > 0 else "ArrowLeft"] * abs(target)
    place.locator("[role=slider], select, input").first.focus()
    for key in keys:
        page.keyboard.press(key)


def follow(control: ipywidgets.Widget, target: int | str) -> None:
    """Move a control of the twin as `press` does the one in the browser."""
    if isinstance(control, ipywidgets.Checkbox):
        control.value = not control.value
    elif isinstance(control, ipywidgets.SelectMultiple):
        control.index = (*control.index, control.index[-1] + target)
    elif isinstance(control, ipywidgets.Dropdown):
        control.index = entries(control).index(target)
    elif isinstance(control, ipywidgets.SelectionSlider):
        control.index += target
    else:
        control.value = round(control.value + target * control.step, 6)


def entries(menu: ipywidgets.Dropdown) -> list[str]:
    """Return what the reader sees of a menu's entries."""
    return [one[0] if isinstance(one, tuple) else one for one in menu.options]


def check(page: Any, cell: Any, *twins: Explorer) -> None:
    """Wait until the page shows what its twins do; fail with both if it never does."""
    expected = page.evaluate(SEEN, [twin.result.data for twin in twins])
    deadline = time.monotonic() + 120
    outputs = cell.locator(".widget-output .jp-RenderedHTML")
    while (seen := page.evaluate(SEEN, outputs.evaluate_all(INNER))) != expected:
        if time.monotonic() > deadline:
            assert [text for text, _ in seen] == [text for text, _ in expected]
            assert seen == expected, "the pictures differ"
        time.sleep(0.1)


INNER = "parts => parts.map(part => part.innerHTML)"
