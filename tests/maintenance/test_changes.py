"""The page of then and now is right: each of its rows is tried on the installed libraries."""

from __future__ import annotations

import importlib
import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from course_utils.paths import COURSE_ROOT, POCKET_MODEL

ROWS = yaml.safe_load((COURSE_ROOT / "book" / "changes.yaml").read_text(encoding="utf-8"))


def named(row: dict[str, Any]) -> str:
    what = row.get("argument") or row["then"]
    return f"{row['of']}-{what if isinstance(what, str) else next(iter(what))}"


def rows(kind: str) -> Any:
    return pytest.mark.parametrize("row", ROWS[kind], ids=named)


def found(path: str) -> Any:
    """Return what a dotted path stands for: a module, a class or a method of one."""
    parts = path.split(".")
    for i in range(len(parts), 0, -1):
        try:
            there: Any = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            there = getattr(there, part)
        return there
    raise ImportError(f"there is no {path}")


def make(path: str, folder: Path, arguments: dict[str, Any]) -> tuple[Any, str]:
    """Return what a call with these arguments makes, and what it warns of."""
    first = POCKET_MODEL
    if path.endswith(("Config", "Arguments")):
        first, arguments = folder, {"use_cpu": True, "bf16": False, **arguments}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = found(path)(str(first), **arguments)
    return made, "\n".join(str(w.message) for w in caught)


@rows("arguments")
def test_the_old_argument_is_what_the_page_says(row, tmp_path: Path, caplog) -> None:
    """A name that is back, or gone where it only warned, makes the table wrong."""
    (name,) = row["then"]
    if row.get("today") == "warns":
        _, warned = make(row["of"], tmp_path, row["then"])
        assert name in warned + caplog.text
        assert "gone" not in row
    else:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            make(row["of"], tmp_path, row["then"])
        assert row["gone"]


@rows("arguments")
def test_the_new_argument_is_taken(row, tmp_path: Path) -> None:
    """Advice that fails is worse than none."""
    if "now" not in row:
        assert row["note"]
        return
    of, now = row.get("now_of", row["of"]), row["now"]
    (name,) = now
    if inspect.isclass(found(of)) and of.endswith("Trainer"):
        assert name in inspect.signature(found(of)).parameters
    else:
        _, warned = make(of, tmp_path, now)
        assert f"`{name}` is deprecated" not in warned


@rows("names")
def test_the_old_name_is_gone_and_the_new_one_there(row) -> None:
    """By import, as a reader would."""
    assert not hasattr(found(row["of"]), row["then"])
    assert "now" in row or row["note"]
    if "now" in row:
        assert hasattr(found(row.get("now_of", row["of"])), row["now"])


@rows("defaults")
def test_the_default_is_the_one_of_the_page(row, tmp_path: Path) -> None:
    """The quiet changes: nothing fails, and the training is another."""
    made = found(row["of"])(str(tmp_path), **row["given"])
    assert getattr(made, row["argument"]) == row["now"] != row["then"]


def test_releases_are_in_order() -> None:
    """A new name comes before the old one goes, or with it."""
    for row in ROWS["arguments"] + ROWS["names"]:
        if "since" in row and "gone" in row and "now_of" not in row:
            assert Version(str(row["since"])) <= Version(str(row["gone"])), row
