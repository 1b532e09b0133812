"""What would break on Windows and macOS, as far as it can be seen from another system."""

from __future__ import annotations

import ast
import json
import re

import publish_as
import yaml
from helpers import python

from course_utils.paths import COURSE_ROOT

# Modules and functions that only some systems have.
MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")
FUNCTIONS = ("fork", "geteuid", "getuid", "killpg", "sched_getaffinity", "setsid", "SIGKILL")


def test_every_file_is_read_and_written_as_utf_8() -> None:
    """Windows takes a code page where none is named, and reads other letters than were written."""
    checked = ("course_utils", "preflight", "scripts", "benchmarks", "data/build")
    done = python("-m", "ruff", "check", "--preview", "--select", "PLW1514", "--quiet", *checked)
    assert done.returncode == 0, done.stdout


def test_the_package_asks_before_it_takes_what_only_posix_has() -> None:
    """Such an import stands where its absence is caught, such a function behind a hasattr."""
    wrong = []
    for path in [p for n in ("course_utils", "preflight") for p in (COURSE_ROOT / n).rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        tried = {id(n) for t in ast.walk(tree) if isinstance(t, ast.Try) for n in ast.walk(t)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            if set(names) & {*MODULES} and id(node) not in tried:
                wrong.append((path.name, names))
            if isinstance(node, ast.Attribute) and node.attr in FUNCTIONS:
                if f'"{node.attr}")' not in text:
                    wrong.append((path.name, node.attr))
    assert not wrong


def test_the_command_line_can_say_every_letter_in_a_pipe() -> None:
    """A pipe on Windows takes cp1252, which stopped the check of a dataset at an odd letter."""
    bad = "data/bad/bad.jsonl"
    shown = python("-m", "course_utils", "check", bad, PYTHONIOENCODING="cp1252")
    assert shown.stderr == "" and "�" in shown.stdout, shown.stderr[-2000:]


def test_the_workflow_tries_all_three_systems() -> None:
    text = (COURSE_ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert {"ubuntu", "macos", "windows"} <= set(re.findall(r"\b(\w+)-latest", text))
    readme = (COURSE_ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^(\.venv\\Scripts\\pip install [^#]+?) +#", readme, flags=re.M)
    assert command in [step.get("run") for step in jobs["windows"]["steps"]]


def test_binder_opens_a_lesson_of_the_tag() -> None:
    readme = (COURSE_ROOT / "README.md").read_text(encoding="utf-8")
    (tag, path) = re.findall(
        r"mybinder\.org/v2/gh/[\w.-]+/[\w.-]+/([^?]+)\?urlpath=lab/tree/([^)]+)", readme
    )[0]
    assert tag == publish_as.current().tag
    assert (COURSE_ROOT / path).is_file()


def test_the_dev_container_installs_the_tested_versions() -> None:
    path = COURSE_ROOT / ".devcontainer" / "devcontainer.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    assert settings["onCreateCommand"].endswith("-r requirements.txt -c constraints.txt -e .")
    environment = (COURSE_ROOT / "environment.yml").read_text(encoding="utf-8")
    assert f"python={settings['image'].rpartition(':')[2]} " in environment
