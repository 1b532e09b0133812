"""The lessons' widgets in JupyterLab, by keyboard in a real browser.

Beside each widget in the browser stands its twin in the test's process, whose controls are set by
code: after each key the page has to show the twin's numbers, picture and code. The short form runs
only the cells that the widget needs; the long one runs the lesson from top to bottom.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ipywidgets
import nbformat
import pytest
import torch

from course_utils import serving, widgets
from course_utils.models import base_model
from course_utils.paths import COURSE_ROOT
from course_utils.widgets.explorer import Explorer
from preflight import explorers

tool = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
SCREENSHOTS = COURSE_ROOT / "build" / "screenshots"
MINUTE = 60_000  # in the browser's milliseconds; the machine may be busy
WIDGET = ".jp-OutputArea-output .widget-vbox"
# The status bar says so only once the kernel answers; before, "Run All Cells" asks for a kernel.
READY = "Python 3 (ipykernel) | Idle"
# What the parts below the controls show: text and picture of the page, or of a twin's HTML.
STEP = {"ArrowRight": 1, "ArrowDown": 1, "ArrowLeft": -1}
SHOWN = """(htmls) => {
    const parts = htmls ?? [...document.querySelectorAll("WIDGET > .widget-html")].slice(1)
        .map(part => part.querySelector(".widget-html-content").innerHTML);
    return parts.map(html => {
        const part = document.createElement("div");
        part.innerHTML = html;
        const faded = part.querySelector('[style*="opacity"]') !== null;
        return [part.textContent, part.querySelector("img")?.src ?? "", faded];
    });
}""".replace("WIDGET", WIDGET)


@dataclass(frozen=True)
class Lesson:
    """A lesson with a widget: how its cells begin that the widget needs, and the keys to press."""

    file: str
    needs: tuple[str, ...]
    widget: str
    twin: Callable[[], Explorer]
    moves: tuple[tuple[str, int | str], ...]  # control; steps of a slider or list, entry of a menu


def samples() -> dict[str, torch.Tensor]:
    """Return what the cell of lesson 03 gives the explorer, made in the same way."""
    from transformers import AutoModelForCausalLM

    base = base_model()
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return {
        "random normal": torch.randn(1024, 512, generator=torch.Generator().manual_seed(0)),
        base.name: torch.cat([m.weight.data.reshape(-1, 64) for m in linear]),
    }


LESSONS = {
    "02": Lesson(
        "02_models_and_memory",
        (),
        "explorers.memory_planner(",
        lambda: explorers.memory_planner("llama-3.1-8b", gpu="T4"),
        (
            ("batch_size", 1),
            ("length", -1),
            ("gradient_checkpointing", 1),
            ("optimizer", "adamw_8bit"),
            ("gpu", "L4 (22.0 GiB)"),
            ("method", "int8"),
            ("model", "qwen3-0.6b"),
        ),
    ),
    "03": Lesson(
        "03_quantization",
        ("import copy", "base = models", "quantile =", "fp4 = torch", "in_blocks =", "samples ="),
        "widgets.quantization_explorer(",
        lambda: widgets.quantization_explorer(samples()),
        (
            ("kind", "fp4 (4 bits)"),
            ("block_size", 1),
            ("double_quant", 1),
            ("sample", "pocket-llama"),
        ),
    ),
    "04": Lesson(
        "04_lora",
        ("import json", "base = models"),
        "explorers.lora_explorer(",
        lambda: explorers.lora_explorer(base_model().path),
        (
            ("r", 1),
            ("lora_alpha", 1),
            ("lora_dropout", 1),
            ("bias", "lora_only"),
            ("targets", "by name"),
            ("names", 1),
        ),
    ),
    "06": Lesson(
        "06_training_arguments",
        (),
        "widgets.schedule_explorer(",
        widgets.schedule_explorer,
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


def write_lesson(lesson: Lesson, folder: Path, whole: bool) -> None:
    """Write a lesson's notebook without outputs; unless whole, only what its widget needs."""
    notebook = nbformat.read(COURSE_ROOT / "notebooks" / f"{lesson.file}.ipynb", as_version=4)
    needs = ("# The course's helpers", *lesson.needs, lesson.widget)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    if not whole:
        cells = [c for c in cells if any(s.startswith(needs) for s in c.source.splitlines())]
        assert len(cells) == len(needs), [cell.source for cell in cells]
        notebook.cells = cells
    nbformat.write(notebook, folder / f"{lesson.file}.ipynb")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Yield address, token and folder of a JupyterLab that knows nothing of the user's settings."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "course" / "notebooks"
    folder.mkdir(parents=True)
    for name in ("data", "course_utils"):
        (home / "course" / name).symlink_to(COURSE_ROOT / name)
    settings = {
        "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
    }
    (home / "overrides.json").write_text(json.dumps(settings))
    port = serving.free_port()
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
    ]
    command += [f"--notebook-dir={folder}", f"--LabApp.app_settings_dir={home}"]
    command += [f"--LabApp.user_settings_dir={home}", f"--LabApp.workspaces_dir={home}"]
    environment = {
        **os.environ,
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for_port(port, server, home / "log")
            yield f"http://127.0.0.1:{port}", token, folder
        finally:
            server.terminate()
            server.wait(60)


def wait_for_port(port: int, server: subprocess.Popen, log: Path) -> None:
    """Return once something listens.

    Raises:
        RuntimeError: if the server ended, with what it said, or does not listen after two minutes.
    """
    for _ in range(240):
        if server.poll() is None:
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    return
        time.sleep(0.5)
    raise RuntimeError(f"JupyterLab does not listen on port {port}: {log.read_text()[-3000:]}")


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """Yield a thread for the twin: in Playwright's own runs a loop, so it would draw later."""
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with tool.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        yield browser
        browser.close()


def move(page: object, place: object, control: ipywidgets.Widget, target: int | str) -> None:
    """Move a control in the browser, by the keys that JupyterLab leaves to it."""
    if isinstance(control, ipywidgets.Checkbox):
        keys = ["Space"]
    elif isinstance(control, ipywidgets.SelectMultiple):
        keys = ["Control+ArrowDown", "Space"] * target
    elif isinstance(control, ipywidgets.Dropdown):
        steps = labels(control).index(target) - control.index
        keys = ["Space", *["ArrowDown" if steps > 0 else "ArrowUp"] * abs(steps), "Enter"]
    else:
        keys = ["ArrowRight" if target > 0 else "ArrowLeft"] * abs(target)
    place.locator("[role=slider], select, input").first.focus()
    for key in keys:
        page.keyboard.press(key)


def follow(control: ipywidgets.Widget, target: int | str) -> None:
    """Move a control of the twin as `move` does the one in the browser."""
    if isinstance(control, ipywidgets.Checkbox):
        control.value = not control.value
    elif isinstance(control, ipywidgets.SelectMultiple):
        control.index = (*control.index, control.index[-1] + target)
    elif isinstance(control, ipywidgets.Dropdown):
        control.index = labels(control).index(target)
    elif isinstance(control, ipywidgets.SelectionSlider):
        control.index += target
    else:
        control.value = round(control.value + target * control.step, 6)


def labels(menu: ipywidgets.Dropdown) -> list[str]:
    """Return what the reader sees of a menu's entries."""
    return [one[0] if isinstance(one, tuple) else one for one in menu.options]


def check(page: object, twin: Explorer, *more: ipywidgets.HTML) -> None:
    """Wait until the page shows what its twin does; fail with both if it never does."""
    parts = [p.value for p in (twin.numbers, twin.picture, twin.source, *more)]
    expected = page.evaluate(SHOWN, parts)
    deadline = time.monotonic() + 120
    while (seen := page.evaluate(SHOWN)[: len(parts)]) != expected:
        if time.monotonic() > deadline:
            assert [text for text, *_ in seen] == [text for text, *_ in expected]
            assert seen == expected, "the pictures differ"
        time.sleep(0.1)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("number", LESSONS)
def test_a_widget_shows_what_its_function_gives(number, whole, lab, browser, thread) -> None:
    """The reader sees the browser, not the functions that the other tests call."""
    lesson, (address, token, folder) = LESSONS[number], lab
    write_lesson(lesson, folder, whole)
    faults: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        # Badges of other sites do not load without a network.
        lambda m: m.type == "error" and address in m.location["url"] and faults.append(m.text),
    )
    page.goto(f"{address}/lab/tree/{lesson.file}.ipynb?reset&token={token}")
    page.get_by_text(READY).wait_for(timeout=2 * MINUTE)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    patience = 15 * MINUTE if whole else 3 * MINUTE
    error = ".jp-OutputArea-output[data-mime-type*=error]"
    page.locator(f"{WIDGET} img, {error}").first.wait_for(timeout=patience)
    page.get_by_text(READY).wait_for(timeout=patience)
    assert not page.locator(error).all_inner_texts()
    assert page.locator(WIDGET).count() == 1

    twin = thread.submit(lesson.twin).result()
    controls = page.locator(f"{WIDGET} > .widget-box > .widget-inline-hbox")
    places = {name: controls.nth(i) for i, name in enumerate(twin.controls)}
    for name, control in twin.controls.items():
        assert control.description, name
        assert control.description in places[name].inner_text(), name
    check(page, twin)
    assert {name for name, _ in lesson.moves} == set(twin.controls), "each control is moved"
    for name, target in lesson.moves:
        control = twin.controls[name]
        assert not control.disabled, name
        move(page, places[name], control, target)
        thread.submit(follow, control, target).result()
        check(page, twin)
        for other, control in twin.controls.items():
            disabled = places[other].locator(":disabled, [disabled]").count()
            assert bool(disabled) == control.disabled, other
    page.locator(WIDGET).screenshot(path=SCREENSHOTS / f"{number}_moved.png")
    if number == "04":
        train(page, twin, thread)
    page.close()
    assert not faults


def train(page: object, twin: Explorer, thread: ThreadPoolExecutor) -> None:
    """Press the button: it trains here and there, and the two curves are the same."""
    button = page.locator(f"{WIDGET} button")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("b => b.disabled", arg=button.element_handle())
    thread.submit(twin.button.click).result()
    check(page, twin, twin.losses)
    assert twin.losses.value, "the training should have drawn a curve"
    page.wait_for_function("b => !b.disabled", arg=button.element_handle(), timeout=MINUTE)
    page.locator(WIDGET).screenshot(path=SCREENSHOTS / "04_trained.png")
