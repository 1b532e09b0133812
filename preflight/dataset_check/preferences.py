"""The forms of preference data: two answers to choose between, or answers marked good and bad.

For SFT the better answer is the answer; the reader is told which trainer learns from both.

Used by lessons: 01.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from preflight.dataset_check.forms import (
    MISSING,
    Format,
    Row,
    chat_keys,
    is_text,
    list_in,
    map_code,
    mostly,
    pair_of,
    select_code,
)
from preflight.dataset_check.turns import Beside, Turns

# The columns of the better and the worse answer.
ANSWERS = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"))
ANSWERS += (("chosen_response", "rejected_response"), ("answer_chosen", "answer_rejected"))
MARKS = ("label", "kto_tag")
AS_IT_IS = "{} takes these columns as they are."
FIRST_BRING = "{} needs the columns {} first."
DPO = FIRST_BRING.format("DPOTrainer", "prompt, chosen and rejected (texts, or lists of messages)")
KTO = FIRST_BRING.format("KTOTrainer", "prompt, completion and label")
Pair = Callable[[str, str, Sequence[str], Sequence[Row]], Format]


def preference(
    columns: Sequence[str], sample: Sequence[Row], asked: str | None, column: str | None, pair: Pair
) -> Format | None:
    """Return the form of two answers to choose between, or None.

    `asked` is the column of the prompt and `column` that of a conversation, if there is one;
    `pair` makes the form of a question and its answer in two columns of text.
    """
    names = next((names for names in ANSWERS if {*names} <= {*columns}), None)
    if names is None:
        return None
    form, worse = (_preference(columns, sample, asked, column, name, pair) for name in names)
    # It takes a column of prompts for the prompt, whatever the answers begin with.
    whole = form.target != "prompt-completion" and "prompt" in columns
    named = names[0] == "chosen" and form.note and not whole
    return replace(form, worse=worse, note=form.note if named else ("preference_data", DPO))


def _preference(
    columns: Sequence[str],
    sample: Sequence[Row],
    asked: str | None,
    column: str | None,
    better: str,
    pair: Pair,
) -> Format:
    """Return the form of preference data whose better answer is in the column `better`."""
    chosen = [t for row in sample for t in _turns(row.get(better))]
    answer = Turns.seen(chosen, *_keys(chosen))
    single = bool(chosen) and mostly(sample, better, dict)
    listed = mostly(sample, better, list)
    first = [answer.message(turns[0]) for row in sample if (turns := list_in(row, better))]
    others = sum(isinstance(turn, dict) and turn.get("role") != "assistant" for turn in first)
    whole = listed and 2 * others > len(first)  # the prompt stands before the answer, too
    ready = AS_IT_IS.format("DPOTrainer")
    if column == "prompt" or (column and not whole) or (asked and (single or listed) and not whole):
        form = _conversation(columns, sample, column or asked, answer, single, listed, better)
        ready = ready if column == "prompt" and listed and answer.plain else DPO
        return replace(form, note=("preference_data", ready))
    if listed:
        return _alone(columns, sample, answer, better, ready if answer.plain else DPO)
    if asked == "prompt" and not Beside.seen(columns, sample).system:
        mapping = map_code(
            f'{{"prompt": row["prompt"], "completion": row[{better!r}]}}',
            columns,
            ["prompt", better],
        )
        source = pair_of("prompt", better)
        return Format(
            "preference", "prompt-completion", source, mapping, note=("preference_data", ready)
        )
    if asked:
        form = pair(asked, better, columns, sample)
        return replace(form, name="preference", note=("preference_data", DPO))
    mapping = map_code(f'{{"text": row[{better!r}]}}', columns, [better])
    return Format("preference", "text", {"text": better}, mapping, note=("preference_data", ready))


def _turns(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []


def _keys(turns: Sequence[Any]) -> tuple[str, str]:
    return chat_keys([{"turns": [turn]} for turn in turns], "turns") or ("role", "content")


def _conversation(
    columns: Sequence[str],
    sample: Sequence[Row],
    column: str,
    answer: Turns,
    single: bool,
    listed: bool,
    better: str,
) -> Format:
    """Return the form of a conversation, or a text that asks, and two answers to it."""
    asked = [t for row in sample for t in list_in(row, column)]
    text = not mostly(sample, column, list)
    before = Turns.seen(asked, *_keys(asked))
    beside = Beside.seen(columns, sample, before)

    def convert(row: Row) -> Row:
        start, end = row.get(column, MISSING), row.get(better, MISSING)
        if text:
            start = [{"role": "user", "content": start}] if is_text(start) else start
        elif isinstance(start, list):
            start = before.messages(start)
        if isinstance(end, dict):
            end = [answer.message(end)]
        elif is_text(end) and not (single or listed):
            end = [{"role": "assistant", "content": end}]
        else:
            end = answer.messages(end)
        return {"prompt": beside.joined(row, start), "completion": end}

    start = f"row[{column!r}]"
    start = f'[{{"role": "user", "content": {start}}}]' if text else before.list_code(start)
    reply = f"row[{better!r}]"
    end = f'[{{"role": "assistant", "content": {reply}}}]'
    if single:
        end = f"[{answer.code(reply)}]"
    elif listed:
        end = answer.list_code(reply)
    result = {"prompt": beside.start_code() + start, "completion": end}
    typed = before if before.typed else answer
    mapping = beside.map_code(result, columns, [column, better], typed)
    source = pair_of(column, better)
    return Format("preference", "prompt-completion", source, mapping, True, convert)


def _alone(
    columns: Sequence[str], sample: Sequence[Row], turns: Turns, better: str, said: str
) -> Format:
    """Return the form of two whole conversations, with the same start."""
    beside = Beside.seen(columns, sample)

    def convert(row: Row) -> Row:
        return {"messages": beside.joined(row, turns.messages(row.get(better, MISSING)))}

    result = {"messages": beside.start_code() + turns.list_code(f"row[{better!r}]")}
    # The prompt, and the messages of some datasets, stand in it already.
    mapping = beside.map_code(result, columns, [better], turns)
    note = ("preference_data", said)
    return Format("preference", "messages", {"messages": better}, mapping, True, convert, note=note)


def unpaired(form: Format, columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """Return the form of answers that are marked good and bad, of a form without these marks."""
    mark = next((name for name in MARKS if name in columns and mostly(sample, name, bool)), None)
    if mark is None or form.target not in ("prompt-completion", "messages"):
        return None
    if not any(type(row.get(mark)) is bool for row in sample):
        return None

    def expand(row: Row) -> list[Row]:
        return form.examples(row) if row.get(mark) else []

    chosen = f"dataset = dataset.filter(lambda row: row[{mark!r}])"
    chosen += f"  # leaves out the rows whose {mark} is false"
    then = form.mapping or select_code(columns, [*form.source.values()])
    ready = mark == "label" and form.target == "prompt-completion" and not form.mapping
    said = AS_IT_IS.format("KTOTrainer") if ready else KTO
    return replace(
        form,
        name=f"unpaired preference ({form.name})",
        mapping=f"{chosen}\n{then}",
        expand=expand,
        marked=True,
        note=("unpaired_preference", said),
    )
