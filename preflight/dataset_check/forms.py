"""What a form of a dataset is, and the code that a mapping is made of.

A mapping is run on the reader's data, so a column that it leaves out is named in it.

Used by lessons: 01.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
MISSING: Any = type("Missing", (), {"__bool__": lambda self: False})()  # for a key that is absent

# Names that public datasets use, the likelier ones first.
SYSTEMS = "system_prompt system"
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message", "utterance")
PREFERENCE = ("prompt", "completion", "chosen", "rejected")
# Columns beside the text that the trainer reads, and that a mapping keeps.
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
SETTINGS = ("tools", "chat_template_kwargs")  # those that a chat template is given
KEPT = (*MEDIA, *SETTINGS)


@dataclass(frozen=True)
class Format:
    """A recognised form.

    `target` is the form it is or becomes: "text", "prompt-completion", "messages", "tokens" or
    "unknown". `source` names, for each column of the target, the column it comes from; `convert`
    does what more is needed, and `expand` what makes more than one row of a row, or none. `chat`
    says whether the target's values are lists of messages. `note` is a fault of the whole form.
    `worse` is the same form with the worse answer for the answer, where a row has two; `paired`
    says that a row is expanded to both. `marked` says that rows are marked good or bad.
    """

    name: str
    target: str
    source: dict[str, str]
    mapping: str = ""
    chat: bool = False
    convert: Callable[[Row], Row] | None = None
    expand: Callable[[Row], list[Row]] | None = None
    note: tuple[str, str] | None = None
    worse: Format | None = None
    paired: bool = False
    marked: bool = False

    def extract(self, row: Row) -> Row:
        """Return the row as the columns of the target form, `MISSING` where it lacks one."""
        if self.convert:
            return self.convert(row)
        return {target: row.get(source, MISSING) for target, source in self.source.items()}

    def examples(self, row: Row) -> list[Row]:
        """Return what the mapping makes of a row: one row of the target form, as a rule."""
        return self.expand(row) if self.expand else [self.extract(row)]


def map_code(
    result: str, columns: Sequence[str], used: Iterable[str], typed: str = "", *, batched: str = ""
) -> str:
    """Return the code that maps a dataset to `result`, an expression of `row`.

    Columns that are not `used` and not kept are left out, and named. `typed` gives features where
    `datasets` must not infer them from the first rows; `batched` names an argument for many rows.
    """
    kept = [column for column in columns if column in KEPT and column not in used]
    removed = "dataset.column_names"
    if kept:
        removed = f"[name for name in dataset.column_names if name not in {kept}]"
    features = ""
    if typed:
        others = "".join(f"{name!r}: dataset.features[{name!r}], " for name in kept)
        features = f", features=Features({{{others}{typed}}})"
    rows = ", batched=True" if batched else ""
    code = (
        f"dataset = dataset.map(lambda {batched or 'row'}: {result}, "
        f"remove_columns={removed}{features}{rows})"
    )
    return code + left_out(columns, [*used, *kept])


def select_code(columns: Sequence[str], used: Sequence[str]) -> str:
    """Return the code that keeps these columns, and those that the trainer reads beside them."""
    kept = [*used, *(name for name in columns if name in KEPT and name not in used)]
    return f"dataset = dataset.select_columns({kept})" + left_out(columns, kept)


def rename_code(old: str, new: str, columns: Sequence[str]) -> str:
    """Return the code that renames a column; one of preference data would mislead SFTTrainer."""
    code = f'dataset = dataset.rename_column({old!r}, "{new}")'
    if set(PREFERENCE) & {*columns} - {old}:
        renamed = [new if name == old else name for name in columns]
        code += "\n" + select_code(renamed, [new])
    return code


def left_out(columns: Sequence[str], used: Iterable[str]) -> str:
    """Return a comment that names the columns that are not used ("" if all are)."""
    absent = [repr(name) for name in columns if name not in {*used}]
    return f"  # leaves out {', '.join(absent)}" if absent else ""


def pair_of(prompt: str, completion: str) -> dict[str, str]:
    """Return the source of prompt and completion."""
    return {"prompt": prompt, "completion": completion}


def first_of(wanted: str, columns: Iterable[str]) -> str | None:
    """Return the first of the wanted names among the columns, whatever its case."""
    by_name = {column.lower(): column for column in columns}
    return next((by_name[name] for name in wanted.split() if name in by_name), None)


def is_text(value: Any) -> bool:
    """Return whether a value is text with something in it."""
    return isinstance(value, str) and bool(value.strip())


def list_in(row: Row, column: str) -> list[Any]:
    """Return the list in a column, or an empty one."""
    return row[column] if isinstance(row.get(column), list) else []


def mostly(
    sample: Sequence[Row], column: str, kind: type | tuple[type, ...], inner: type | None = None
) -> bool:
    """Return whether more than half of the column's values (None aside) are of this type."""
    values = [row[column] for row in sample if row.get(column) is not None]
    fit = [v for v in values if isinstance(v, kind)]
    if inner is not None:
        fit = [v for v in fit if v and isinstance(v[0], inner)]
    return 2 * len(fit) > len(values)


def mostly_turns(sample: Sequence[Row], column: str, keys: Sequence[str]) -> bool:
    """Return whether the first items of most of the column's lists are dicts with these keys."""
    turns = [items[0] for row in sample if (items := list_in(row, column))]
    return 2 * sum(isinstance(t, dict) and set(keys) <= set(t) for t in turns) > len(turns)


def chat_keys(sample: Sequence[Row], column: str) -> tuple[str, str] | None:
    """Return the keys under which most of the column's turns hold the speaker and the text."""
    pairs = [(role, content) for role in ROLE_KEYS for content in CONTENT_KEYS]
    return next((pair for pair in pairs if mostly_turns(sample, column, pair)), None)
