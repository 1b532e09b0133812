"""What the course does not do to the machine it runs on, and what it does not let others do.

The rules are held against every file, class and workflow that is there, found by code: one that is
added tomorrow is held to them as well.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import time
import types
import typing
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import openai
import pandas as pd
import psutil
import pytest
import workshop_start
import yaml
from matplotlib.figure import Figure

import course_utils
import preflight
from course_utils import display, plots, serving, widgets
from course_utils.memory.step_memory import CATEGORIES, PHASES
from course_utils.paths import COURSE_ROOT, POCKET_MODEL
from preflight import dataset_check, explorers, memory_plan
from preflight.explorers import planner

PACKAGES = ("course_utils.", "preflight.")
# Made by a build or a run; none of it is the project's own.
MADE = {".git", ".venv", "build", "runs", "__pycache__", ".ipynb_checkpoints", ".running"}
MADE |= {".pytest_cache", ".ruff_cache", ".hypothesis", "finetuning_course.egg-info"}
WORKFLOWS = sorted((COURSE_ROOT / ".github" / "workflows").glob("*.yml"))


@functools.cache
def all_files() -> list[Path]:
    """Return the project's own files."""
    found = []
    for folder, inner, names in os.walk(COURSE_ROOT):
        inner[:] = sorted(set(inner) - MADE)
        found += [Path(folder) / name for name in sorted(names)]
    return found


def own_files(*suffixes: str) -> list[Path]:
    """Return those of the project's own files that end so."""
    return [path for path in all_files() if path.suffix in suffixes]


# --- code that runs what it reads -----------------------------------------------------------------

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
LOADS = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}


def python_texts() -> Iterator[tuple[str, str]]:
    """Yield the name and the code of each module, and of each cell of a notebook."""
    for path in own_files(".py"):
        yield path.relative_to(COURSE_ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in own_files(".ipynb"):
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == "code":
                code = re.sub(r"^%%writefile.*$", "", cell.source, flags=re.M)
                code = re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.M)
                if (
                    cell.source.startswith("%%writefile")
                    and ".py" not in cell.source.split("\n")[0]
                ):
                    continue  # a recipe in YAML, which lies in notebooks/recipes as well
                yield f"{path.name}, cell {number}", code


def dangers(code: str) -> list[str]:
    """Return what a text of Python does that may run code which came with data or a model."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [f"imports {a.name}" for a in node.names if a.name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found += [f"imports {name}" for name in names if name.split(".")[0] in PICKLES]
            found += [f"imports {name}" for name in names if _loads(name)]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if _loads(name) or name.endswith((".read_pickle", ".to_pickle", ".unpack_archive")):
                found.append(f"calls {name}")
            if name.endswith(".extractall") and not _looked_at(node, code):
                found.append(f"calls {name} without a look at what is in the archive")
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", ...)
                if keyword.arg in ("trust_remote_code", "allow_pickle", "shell") and value:
                    found.append(f"passes {keyword.arg}={ast.unparse(keyword.value)}")
                if keyword.arg in ("safe_serialization", "weights_only") and not value:
                    found.append(f"passes {keyword.arg}={ast.unparse(keyword.value)}")
        elif isinstance(node, ast.Dict):
            keys = {getattr(key, "value", None) for key in node.keys}
            found += ["has a key 'trust_remote_code'"] * ("trust_remote_code" in keys)
    return found


def _loads(name: str) -> bool:
    """Return whether a call unpickles, or makes objects of any kind from YAML."""
    module, _, function = name.rpartition(".")
    return (module == "yaml" and function in LOADS) or name in ("torch.load", "torch.save")


def _looked_at(call: ast.Call, code: str) -> bool:
    """Return whether the members are chosen, or their names read in the lines above."""
    above = code.splitlines()[max(0, call.lineno - 12) : call.lineno]
    chosen = len(call.args) > 1 or any(k.arg == "members" for k in call.keywords)
    return chosen or any(".namelist()" in line for line in above)


def test_nothing_that_is_read_is_run() -> None:
    """A model, a dataset or an archive from the internet must not bring code with it."""
    texts = dict(python_texts())
    assert len(texts) > 300, "the project's code was not found"
    found = {name: dangers(code) for name, code in texts.items()}
    assert not {name: kinds for name, kinds in found.items() if kinds}


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load('x', weights_only=True)",
        "from torch import load",
        "import pickle",
        "from joblib import load",
        "import pandas as pd\npd.read_pickle('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "from yaml import unsafe_load",
        "import shutil\nshutil.unpack_archive('x.tar')",
        "import tarfile\ntarfile.open('x').extractall('y')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=trusted)",
        "AutoModel.from_pretrained('x', **{'trust_remote_code': 1})",
        "model.save_pretrained('x', safe_serialization=False)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
    ],
)
def test_each_danger_is_noticed(code: str) -> None:
    """A search that finds nothing proves nothing, unless it can find."""
    assert len(dangers(code)) == 1
    assert not dangers("AutoModel.from_pretrained('x', trust_remote_code=False)\nyaml.safe_load(t)")


def test_the_packages_refuse_a_models_own_code() -> None:
    """Without an explicit False transformers asks, and runs the code if the answer is yes.

    PeftModel puts an adapter on a model that is there; it runs no code of a folder.
    """
    calls = [
        (name, {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords})
        for name, code in python_texts()
        if name.startswith(("course_utils/", "preflight/"))
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
        and re.fullmatch(r"(?!Peft).*\.from_pretrained", ast.unparse(node.func))
    ]
    assert len(calls) >= 5
    assert not [name for name, given in calls if given.get("trust_remote_code") != "False"]


def test_no_file_is_a_pickle_and_no_recipe_trusts_a_model() -> None:
    """Weights are safetensors; recipes, pages and command lines ask for no code of a model's."""
    suffixes = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"}
    assert not [path for path in all_files() if path.suffix in suffixes]
    words = re.compile(r"trust[_-]remote[_-]code\W+(?!false)\w", re.I)
    texts = own_files(".yaml", ".yml", ".json", ".md", ".sh", ".toml", ".jinja", ".cfg")
    assert not [path for path in texts if words.search(path.read_text(encoding="utf-8"))]


# --- text of datasets in HTML ---------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)><b onclick=alert(3)>&lt;&#60;"
TAG = re.compile(r"</?(?:table|t[dhr]|thead|tbody|caption|p|pre|b|img|div|span|code|details)\b")


class Seen(HTMLParser):
    """What a browser makes of HTML: the tags that do something, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.active: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        handlers = [name for name, _ in attrs if name.startswith("on")]
        targets = [v for name, v in attrs if name in ("src", "href") and not _is_picture(v)]
        if tag in ("script", "iframe", "object", "embed", "svg", "link") or handlers or targets:
            self.active.append(self.get_starttag_text())

    def handle_data(self, data: str) -> None:
        self.text += data


def _is_picture(target: str | None) -> bool:
    return bool(re.fullmatch(r"data:image/png;base64,[\w+/=]+", target or ""))


def modules() -> list[types.ModuleType]:
    """Return all modules of the helper packages."""
    packages = (course_utils, preflight)
    found = [m for one in packages for m in pkgutil.walk_packages(one.__path__, f"{one.__name__}.")]
    return [importlib.import_module(m.name) for m in found if not m.name.endswith("__main__")]


def shown_classes() -> list[type]:
    """Return the classes of the packages that a notebook shows as HTML."""
    return sorted(
        {
            kind
            for module in modules()
            for kind in vars(module).values()
            if dataclasses.is_dataclass(kind)
            and inspect.isclass(kind)
            and hasattr(kind, "_repr_html_")
            and kind.__module__.startswith(PACKAGES)
        },
        key=lambda kind: kind.__qualname__,
    )


def hostile(wanted: Any) -> Any:
    """Return a value of the type that is wanted, in which every text is markup."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return hostile(next(kind for kind in inner if kind is not type(None)))
    if origin is tuple:
        return tuple(hostile(kind) for kind in inner if kind is not Ellipsis)
    if origin is list:
        return [hostile(inner[0])]
    if origin is not None and issubclass(origin, Mapping):
        return {hostile(inner[0]): hostile(inner[1])}
    if dataclasses.is_dataclass(wanted):
        hints = typing.get_type_hints(wanted, localns=NAMED)
        given = GIVEN.get(wanted.__qualname__, {})
        names = {field.name for field in dataclasses.fields(wanted) if field.init} - {*given}
        return wanted(**given, **{name: hostile(hints[name]) for name in names})
    return {str: HOSTILE, int: 1, float: 1.0, bool: True, Any: HOSTILE}[wanted]


# Names that modules import for type checkers alone, and values that have to fit each other.
NAMED = {"pd": pd, "ClassVar": typing.ClassVar}
ARGUMENTS = {
    "lora_alpha": 1,
    "r": 1,
    "learning_rate": 1.0,
    "lr_scheduler_type": HOSTILE,
    "x": HOSTILE,
}
GIVEN: dict[str, dict[str, Any]] = {
    "GPU": {"bf16": False},  # of these the notes below a table speak
    "StepMemory": {
        "phases": {HOSTILE: dict.fromkeys(CATEGORIES, 1), PHASES[0]: dict.fromkeys(CATEGORIES, 1)},
        "allocator": {PHASES[0]: 1},
    },
    "Schedule": {"arguments": ARGUMENTS, "rates": pd.Series([1.0], index=[1])},
    "LoraSummary": {"arguments": ARGUMENTS},
    "Served": {"effect": "takes"},
    "TokenMask": {"tokens": (HOSTILE, HOSTILE), "trained": (True, False)},
}


def pages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return HTML by what made it, everything of the package that makes any."""
    found = {kind.__qualname__: hostile(kind)._repr_html_() for kind in shown_classes()}
    found["where a plan fits"] = planner._where(hostile(memory_plan.GPUFitTable))
    figure = Figure()
    figure.add_subplot().set_title(HOSTILE)
    found["picture"] = widgets.image(figure, HOSTILE) + display.code_html(HOSTILE)
    found["table"] = display.html_table([[HOSTILE]], [HOSTILE], HOSTILE)

    def fails() -> None:
        raise ValueError(HOSTILE)

    found["error"] = widgets.Explorer("Failing", fails, {}).result.data
    fit = dataclasses.replace(
        hostile(memory_plan.GPUFitTable).rows[0], gpu=memory_plan.find_gpu("T4")
    )
    monkeypatch.setattr(planner, "plan_fits", lambda *_, **__: memory_plan.GPUFitTable((fit,)))
    plan = explorers.memory_planner("qwen3-0.6b")
    assert "<img" in plan.result.data, plan.result.data
    found["planner"] = plan.result.data
    return found


def makers_of_html() -> set[tuple[str, str]]:
    """Return the file and the name of each function of the package that writes a tag."""
    found = set()
    for path in own_files(".py"):
        if not {"course_utils", "preflight"} & {*path.parts}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            inside = [part for statement in body for part in ast.walk(statement)]
            texts = [p.value for p in inside if isinstance(p, ast.Constant)]
            tags = any(isinstance(text, str) and TAG.search(text) for text in texts)
            calls = any(isinstance(p, ast.Attribute) and p.attr == "to_html" for p in inside)
            if tags or calls:
                found.add((path.name, node.name))
    return found


def test_markup_in_data_is_shown_and_never_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a dataset with a script in it would run in the notebook of whoever looks at it."""
    ran: set[tuple[str, str]] = set()

    def note(frame: types.FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith(PACKAGES):
            ran.add((Path(frame.f_code.co_filename).name, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        made = pages(monkeypatch)
    finally:
        sys.setprofile(None)
    seen = {name: Seen(html) for name, html in made.items()}
    assert not {name: page.active for name, page in seen.items() if page.active}
    # These show numbers and the course's own words alone.
    quiet = {name for name, page in seen.items() if "alert(1)" not in page.text}
    assert quiet <= {"Advice", "schedule", "planner", "where a plan fits"} - {"Advice"}, quiet
    makers = makers_of_html()
    assert len(makers) > 8
    assert not makers - ran, "functions that write HTML and were not tried with markup"


def test_markup_that_is_obeyed_is_noticed() -> None:
    """What the test above looks for, it finds."""
    assert len(Seen(f"<p>{HOSTILE}</p>").active) == 3
    assert Seen('<a href="javascript:x">y</a>').active
    assert not Seen('<img src="data:image/png;base64,aa==">').active


def test_a_row_of_a_dataset_with_markup_in_every_place() -> None:
    """Once more the way that a reader takes: from the dataset to what the notebook shows."""
    rows = [{HOSTILE: HOSTILE, "messages": [{"role": HOSTILE, "content": f"\x1b[2J{HOSTILE}"}]}]
    rows.append({"messages": HOSTILE})
    for dataset in (rows, {HOSTILE: rows}, [{HOSTILE: HOSTILE}], [{"text": f"\x00{HOSTILE}"}]):
        report = dataset_check.check(dataset)
        page = Seen(report._repr_html_())
        assert not page.active
        assert "alert" in page.text
        assert "\x1b" not in page.text + str(report)
    table = pd.crosstab(pd.Series([HOSTILE]), pd.Series([HOSTILE]))
    assert not Seen(widgets.image(plots.confusion(table), plots.summarise_confusion(table))).active


# --- servers --------------------------------------------------------------------------------------


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses on which a process and its children wait for connections."""
    found = set()
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # some children are soon done
            connections = one.net_connections(kind="inet")
            found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def status(address: str, **headers: str) -> int:
    """Return the status that a server answers with, past any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(address, headers=headers), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_lab_is_for_this_machine_and_needs_a_token(tmp_path: Path) -> None:
    """Who reaches a Jupyter server runs what he likes with the rights of its owner."""
    printed = subprocess.run(
        ["make", "-n", "--no-print-directory", "-o", ".venv/.ready", "lab"],
        cwd=COURSE_ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    arguments = printed.strip().splitlines()[-1].split()[2:]
    assert printed.strip().splitlines()[-1].split()[1] == "lab"
    port = serving.free_port()
    command = [sys.executable, "-m", "jupyterlab", *arguments, "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", f"--ServerApp.root_dir={tmp_path}"]
    command = [part for part in command if not part.startswith("--notebook-dir")]
    with (tmp_path / "log.txt").open("w+b") as log:
        started = subprocess.Popen(command, cwd=COURSE_ROOT, stdout=log, stderr=log)
        try:
            token, open_to = None, set()
            for _ in range(600):
                text = (tmp_path / "log.txt").read_text(encoding="utf-8")
                token = re.search(rf"http://127\.0\.0\.1:{port}/\S*\?token=(\w+)", text)
                open_to = listening(psutil.Process(started.pid))
                if token and open_to:
                    break
                assert started.poll() is None, text
                time.sleep(0.1)
            assert token, text
            assert open_to == {"127.0.0.1"}
            contents = f"http://127.0.0.1:{port}/api/contents"
            assert status(contents) == 403
            assert status(contents, Authorization=f"token {token[1]}") == 200
        finally:
            started.terminate()
            started.wait(30)


def test_no_command_opens_a_server_to_others_or_takes_its_token_away() -> None:
    """The same for the commands of other files: the container, the workshop, the pages."""
    address = r"\b(?:ip|host|bind)\W{1,4}(?:0\.0\.0\.0|\*|::)"
    no_token = r"(?:App\.|Provider\.|--)token\W{0,3}=\s*(?:''|\"\"|$)"
    open_to_all = re.compile(f"{address}|{no_token}", re.M)
    suffixes = (".py", ".md", ".yml", ".yaml", ".json", ".ipynb", ".ipy", "")
    for path in own_files(*suffixes):
        if path != Path(__file__) and path.suffix != ".ipynb":
            found = open_to_all.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found, (path, found and found[0])
    for path in (Path(workshop_start.__file__), COURSE_ROOT / "Makefile"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"\blab\b.*--", line):
                assert "ServerApp.ip=127.0.0.1" in line


def test_the_model_server_is_for_this_machine() -> None:
    """Others on the network reach nothing, others here have no key, and it ends with its block."""
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(KeyboardInterrupt), serving.serve(POCKET_MODEL) as (address, key):
        assert status(address.removesuffix("/v1") + "/health") == 200
        assert status(f"{address}/models") == 401
        client = openai.OpenAI(
            base_url=address, api_key=key, http_client=openai.DefaultHttpxClient(trust_env=False)
        )
        chat = {"model": str(POCKET_MODEL), "messages": [{"role": "user", "content": "Hi"}]}
        assert client.chat.completions.create(**chat, max_tokens=2).choices
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key=key[:-1]).chat.completions.create(**chat, max_tokens=2)
        (server,) = (c for c in psutil.Process().children() if c.pid not in before)
        assert listening(server) == {"127.0.0.1"}
        raise KeyboardInterrupt  # as a cell that fails half-way
    assert not psutil.pid_exists(server.pid), "it holds memory and a port after its block"


# --- secrets --------------------------------------------------------------------------------------

SECRETS = {
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "API key": r"\bsk-[A-Za-z0-9_-]{20,}|\bAIza[A-Za-z0-9_-]{35}\b|\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}",
    "registry token": r"\bpypi-[A-Za-z0-9_-]{50,}|\bnpm_[A-Za-z0-9]{30,}",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "password in an address": r"\w://[^\s/:@\"'<>{}]+:[^\s/:@\"'<>{}]+@",
    "home folder": r"(?<![\w.:])/(?:home|Users)/[a-z][\w.-]*/|(?<![\w./])/root/\w"
    r"|\b[A-Z]:\\\\?Users\\",
    "e-mail address": r"\b[\w.+-]+@(?!(?:[\w-]+\.)*example\.(?:com|org|net)\b)"
    r"[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b",
}
# Of these addresses the domain is reserved, or they are no addresses.
HARMLESS = re.compile(
    r"@(?:users\.noreply\.github\.com|localhost)\b|^[\w.-]+@v?\d|^git@github\.com$"
)


def secrets(text: str) -> list[tuple[str, str]]:
    """Return what looks like a secret or tells of a person, with what kind it is."""
    return [
        (kind, found)
        for kind, pattern in SECRETS.items()
        for found in re.findall(pattern, text)
        if not HARMLESS.search(found)
    ]


def texts_of(path: Path) -> str:
    """Return the text in a file; of a notebook its sources, outputs and metadata."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_json()
    if path.suffix == ".ipynb":
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                output.get("data", {}).pop("image/png", None)
        return nbformat.writes(notebook)
    return path.read_bytes().decode("utf-8", errors="replace")


def test_no_file_holds_a_secret() -> None:
    """What was pushed once is public for good."""
    skipped = {".safetensors", ".png", ".wav"}
    paths = [p for p in all_files() if p.suffix not in skipped and p != Path(__file__)]
    assert len(paths) > 250
    found = {path.relative_to(COURSE_ROOT).as_posix(): secrets(texts_of(path)) for path in paths}
    assert not {name: kinds for name, kinds in found.items() if kinds}


@pytest.mark.parametrize(
    "text",
    [
        "hf" + "_" + "a" * 34,
        "sk" + "-proj-" + "a" * 40,
        "AKIA" + "A1" * 8,
        "gh" + "p_" + "a" * 36,
        "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
        "https" + "://ada:lovelace@host/x",
        "/home" + "/ada/course",
        "C:" + "\\Users\\ada",
        "ada.lovelace" + "@" + "university.edu",
    ],
)
def test_a_secret_is_noticed(text: str) -> None:
    assert len(secrets(f"x = '{text}' # y")) == 1
    assert not secrets("ada@example.com, actions/checkout@v5, git@github.com, /home, sk-learn")


# --- workflows ------------------------------------------------------------------------------------

# What a job may write, beyond reading the repository. A token that can do more can be stolen.
WRITES = {("book", "publish"): {"pages", "id-token"}, ("drift", "report"): {"issues"}}


def faults_of(name: str, workflow: dict[str, Any]) -> list[str]:
    """Return what is wrong with a workflow's rights and with the actions that it uses."""
    found = []
    events = workflow.get(True, workflow.get("on"))  # YAML reads the key `on` as a truth value
    if workflow.get("permissions") != {"contents": "read"}:
        found.append("its permissions are not contents: read alone")
    if "pull_request_target" in events or "workflow_run" in events:
        found.append("it runs with a token of its own on code of others")
    for job, does in workflow["jobs"].items():
        written = {key for key, value in does.get("permissions", {}).items() if value != "read"}
        if written - WRITES.get((name, job), set()):
            found.append(f"{job} may write {', '.join(sorted(written))}")
        if "timeout-minutes" not in does:
            found.append(f"{job} has no timeout-minutes")
        for step in does["steps"]:
            uses = step.get("uses", "")
            if uses and not re.search(r"@[0-9a-f]{40}$", uses):
                found.append(f"{job} uses {uses}, which is not pinned by commit")
            if (
                "/checkout@" in uses
                and step.get("with", {}).get("persist-credentials") is not False
            ):
                found.append(f"{job} leaves a token in the checkout")
            if re.search(
                r"\$\{\{\s*(?:github\.event|github\.head_ref|inputs)", step.get("run", "")
            ):
                found.append(f"{job} puts the text of others into a command")
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_do_no_more_than_they_must(path: Path) -> None:
    """A workflow runs with rights on the repository, and its actions are code of others."""
    text = path.read_text(encoding="utf-8")
    assert not faults_of(path.stem, yaml.safe_load(text))
    pins = re.findall(r"uses: \S+@[0-9a-f]{40}(.*)", text)
    assert all(re.fullmatch(r" # v\d+\.\d+\.\d+", pin) for pin in pins), "say which version it is"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("contents: read", "contents: write"),
        ("permissions:\n  contents: read\n", ""),
        ("timeout-minutes: 90", "name: x"),
        ("@08c6903cd8c0fde910a37f88322edcfb5dd907a8 # v5.0.0", "@v5"),
        ("persist-credentials: false", "persist-credentials: true"),
        ("run: bash .ci/run", "run: echo ${{ github.event.pull_request.title }}"),
        ("  pull_request:\n", "  pull_request_target:\n"),
    ],
)
def test_a_workflow_that_may_do_more_is_noticed(old: str, new: str) -> None:
    text = (COURSE_ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert old in text
    assert faults_of("test", yaml.safe_load(text.replace(old, new)))


def test_the_pinned_versions_are_audited() -> None:
    """A fault found in a library after it was pinned has to reach us without a release of ours."""
    jobs = yaml.safe_load((COURSE_ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    commands = [step.get("run", "") for step in jobs["audit"]["steps"]]
    (audit,) = (command for command in commands if "pip-audit -r" in command)
    assert "-r constraints.txt" in audit and "--strict" in audit
