"""Which form a dataset has, and the code that turns it into one SFTTrainer takes.

`recognise` looks at the column names and at the first rows. The `extract` of the format then gives
each row as the columns of the target form ("text", "prompt" and "completion", or "messages"), just
as the mapping would, but leaves values of a wrong type as they are, so that they are found.

Used by lessons: 01.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from preflight.dataset_check.forms import (
    MISSING,
    PREFERENCE,
    SYSTEMS,
    Format,
    Row,
    chat_keys,
    first_of,
    is_text,
    list_in,
    map_code,
    mostly,
    mostly_turns,
    pair_of,
    rename_code,
    select_code,
)
from preflight.dataset_check.preferences import preference, unpaired
from preflight.dataset_check.turns import Beside, Turns

# Names that public datasets use, the likelier ones first.
PROMPTS = "instruction prompt question query problem inputs input document article dialogue message"
PROMPTS += " source user human"
ANSWERS = "completion output response answer answers solution targets target summary highlights"
ANSWERS += " assistant reply"
CONTEXTS = "context input"
TEXTS = "text content body sentence document article story passage code"
CHATS = "messages conversations conversation dialogue dialog chat turns data"
PAIR_KEYS = (("input", "output"), ("human", "assistant"), ("user", "assistant"))
PAIR_KEYS += (("prompt", "response"), ("question", "answer"))
TOKENS = ("input_ids", "labels", "completion_mask", "assistant_masks")


def recognise(columns: Sequence[str], sample: Sequence[Row]) -> Format:
    """Return the form of a dataset with these columns, of which `sample` holds the first rows.

    Where rows have several forms, it is that of most rows of the sample.
    """
    form = _recognise(columns, sample)
    others: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in sample:
        if lacks(form, row):
            others[filled(row)].append(row)
    fewer = len(sample) - sum(map(len, others.values()))
    for names, rows in others.items():
        other = _recognise(names, rows)
        if len(rows) > fewer and is_whole(other, names):
            form, fewer = other, len(rows)
    return form


def other_form(row: Row) -> Format | None:
    """Return the form of a row that lacks a column of the dataset's form, if it has one of its own.

    A row with a name or two more, or fewer, has none: it lacks the column.
    """
    names = filled(row)
    form = _recognise(names, [row])
    return form if is_whole(form, names) else None


def lacks(form: Format, row: Row) -> bool:
    """Return whether a row has nothing in a column that the form needs."""
    return any(row.get(column) is None for column in form.source.values())


def is_whole(form: Format, columns: Sequence[str]) -> bool:
    """Return whether the form is one for SFT, and all the columns that it needs are there."""
    named = form.target == "tokens" or not form.name.startswith("text in column")
    return named and form.target != "unknown" and {*form.source.values()} <= {*columns}


def filled(row: Row) -> tuple[str, ...]:
    """Return the names of the columns in which a row has something."""
    return tuple(str(name) for name, value in row.items() if value is not None)


def _recognise(columns: Sequence[str], sample: Sequence[Row]) -> Format:
    for look in (_tokens, _preference, _native, _self_instruct, _conversation, _plain_text, _pair):
        found = look(columns, sample)
        if found:
            return unpaired(found, columns, sample) or found
    return _half(columns, sample) or _other_text(columns, sample) or _unknown()


def _unknown(name: str = "unknown", **needed: str) -> Format:
    return Format(name, "unknown", needed, convert=dict)


def _tokens(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    if "input_ids" not in columns:
        return None
    return Format("tokenised", "tokens", {"input_ids": "input_ids"}, convert=_token_columns)


def _token_columns(row: Row) -> Row:
    return {name: row.get(name, MISSING) for name in TOKENS}


def _preference(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    chats = ["prompt", *CHATS.split()]
    chat = next((c for c in chats if c in columns and chat_keys(sample, c)), None)
    asked = first_of(PROMPTS, columns)
    return preference(columns, sample, asked, chat, _pair_form)


def _native(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """The forms that SFTTrainer takes, in the order in which it looks for them."""
    if "prompt" in columns and "completion" in columns:
        chat = mostly(sample, "prompt", list)
        # Where there is a text column, too, SFTTrainer appends the end-of-sequence token to that.
        odd = "text" in columns and not chat
        mapping = select_code(columns, ["prompt", "completion"]) if odd else ""
        pair = pair_of("prompt", "completion")
        name = "conversational prompt-completion" if chat else "prompt-completion"
        return Format(name, "prompt-completion", pair, mapping, chat)
    turns = [turn for row in sample for turn in list_in(row, "messages")]
    if "messages" in columns and chat_keys(sample, "messages") in (None, ("role", "content")):
        if Beside.seen(columns, sample, Turns.seen(turns, "role", "content")).system:
            return _turns("messages", "role", "content", columns, sample)
        # SFTTrainer takes a row with a prompt for prompt-completion, whatever else it holds.
        odd = set(PREFERENCE) & set(columns)
        mapping = select_code(columns, ["messages"]) if odd else ""
        return Format("messages", "messages", {"messages": "messages"}, mapping, True)
    return None


def _self_instruct(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """An instruction, and a list of inputs and outputs for it: a row for each of these."""
    asked = first_of(PROMPTS, columns)
    if asked is None or not mostly_turns(sample, "instances", ("input", "output")):
        return None
    if not any(list_in(row, "instances") for row in sample):
        return None

    def expand(row: Row) -> list[Row]:
        prompt, instances = row.get(asked, MISSING), row.get("instances", MISSING)
        if not isinstance(instances, list) or not instances:
            return [{"prompt": prompt, "completion": instances}]
        return [_instance(prompt, instance) for instance in instances]

    each = f'for i, xs in zip(rows[{asked!r}], rows["instances"]) for x in xs'
    prompts = f'[(i + "\\n\\n" + x["input"]).strip() + "\\n\\nAnswer:" {each}]'
    result = f'{{"prompt": {prompts}, "completion": [" " + x["output"] {each}]}}'
    mapping = map_code(result, columns, [asked, "instances"], batched="rows")
    return Format(
        "Self-Instruct", "prompt-completion", pair_of(asked, "instances"), mapping, expand=expand,
        convert=lambda row: expand(row)[0],
    )  # fmt: skip


def _instance(prompt: Any, instance: Any) -> Row:
    if not isinstance(instance, dict):
        return {"prompt": prompt, "completion": instance}
    given, reply = instance.get("input"), instance.get("output", MISSING)
    if is_text(prompt):
        prompt = "\n\n".join([*filter(is_text, [prompt, given]), "Answer:"])
    return {"prompt": prompt, "completion": f" {reply}" if is_text(reply) else reply}


def _conversation(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """Lists of turns under another name, with other keys, as pairs, or as bare strings."""
    named = [column for column in CHATS.split() if column in columns]
    for column in dict.fromkeys([*named, *columns]):
        if column in PREFERENCE:
            continue
        if keys := chat_keys(sample, column):
            return _turns(column, *keys, columns, sample)
        pair = next((p for p in PAIR_KEYS if mostly_turns(sample, column, p)), None)
        if pair:
            asked, answered = pair
            turns = f"[text for t in row[{column!r}] for text in (t[{asked!r}], t[{answered!r}])]"
            name = f"pairs of turns in {column!r}"
            return _bare_turns(name, column, turns, pair, columns, sample)
        if column in named and mostly(sample, column, list, inner=str):
            name = f"list of turns in {column!r}"
            return _bare_turns(name, column, f"row[{column!r}]", None, columns, sample)
    return None


def _turns(
    column: str, role: str, content: str, columns: Sequence[str], sample: Sequence[Row]
) -> Format:
    turns = Turns.seen([turn for row in sample for turn in list_in(row, column)], role, content)
    beside = Beside.seen(columns, sample, turns)
    result = {"messages": beside.start_code() + turns.list_code(f"row[{column!r}]")}
    mapping = beside.map_code(result, columns, [column], turns)
    if not beside.used and turns.plain:
        mapping = rename_code(column, "messages", columns)
    sharegpt = (column, role, content) == ("conversations", "from", "value")
    if sharegpt and not (beside.used or turns.names or turns.others):
        mapping = ""  # SFTTrainer renames these keys itself, though not the speakers

    def convert(row: Row) -> Row:
        return {"messages": beside.joined(row, turns.messages(row.get(column, MISSING)))}

    name = "ShareGPT" if role == "from" else f"messages in column {column!r}"
    return Format(name, "messages", {"messages": column}, mapping, True, convert)


def _bare_turns(
    name: str,
    column: str,
    turns: str,
    pair: tuple[str, str] | None,
    columns: Sequence[str],
    sample: Sequence[Row],
) -> Format:
    """The form of texts without a speaker: user and assistant take turns."""
    beside = Beside.seen(columns, sample)
    said = '[{"role": ("user", "assistant")[i % 2], "content": text} '
    result = {"messages": f"{beside.start_code()}{said}for i, text in enumerate({turns})]"}
    mapping = beside.map_code(result, columns, [column], Turns("", "", (), {}, False, False))

    def convert(row: Row) -> Row:
        texts = row.get(column, MISSING)
        if not isinstance(texts, list):
            return {"messages": texts}
        if pair:
            texts = [t.get(key) if isinstance(t, dict) else t for t in texts for key in pair]
        roles = ("user", "assistant")
        said = [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]
        return {"messages": beside.joined(row, said)}

    return Format(name, "messages", {"messages": column}, mapping, True, convert)


def _plain_text(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    if "text" not in columns:
        return None
    if {"parent_id", "role"} <= set(columns):
        return _unknown("tree of messages, one in each row")
    return Format("text", "text", {"text": "text"})


def _pair(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """A question and its answer in two columns."""
    answer = first_of(ANSWERS, columns)
    asked = first_of(PROMPTS, [column for column in columns if column != answer])
    if answer is None or asked is None:
        return None
    return _pair_form(asked, answer, columns, sample)


def _pair_form(asked: str, answer: str, columns: Sequence[str], sample: Sequence[Row]) -> Format:
    """The form of a question and its answer, perhaps with a context or a system prompt."""
    context = first_of(CONTEXTS, [column for column in columns if column != asked])
    system = first_of(SYSTEMS, columns)
    shown = [name for name in (system, asked, context) if name]
    nested = mostly(sample, answer, dict)  # as in SQuAD: {"text": [...], "answer_start": [...]}

    def convert(row: Row) -> Row:
        prompt, reply = row.get(asked, MISSING), row.get(answer, MISSING)
        if nested and isinstance(reply, dict) and isinstance(reply.get("text"), list):
            reply = next(iter(reply["text"]), "")
        if is_text(prompt):
            parts = [*map(row.get, shown), "Answer:"]
            prompt = "\n\n".join(part for part in parts if part and isinstance(part, str))
        return {"prompt": prompt, "completion": f" {reply}" if is_text(reply) else reply}

    prompt = f"row[{asked!r}]"
    if system:
        prompt = f'(row[{system!r}] + "\\n\\n" if row[{system!r}] else "") + {prompt}'
    if context:
        prompt += f' + ("\\n\\n" + row[{context!r}] if row[{context!r}] else "")'
    reply = f'(row[{answer!r}]["text"] or [""])[0]' if nested else f"row[{answer!r}]"
    result = f'{{"prompt": {prompt} + "\\n\\nAnswer:", "completion": " " + {reply}}}'
    mapping = map_code(result, columns, [*shown, answer])
    if nested:
        mapping += f"{',' if '  # leaves out' in mapping else '  # leaves out'} the other {answer}"
    known = {"output": "Alpaca", "response": "Dolly"} if asked.lower() == "instruction" else {}
    name = known.get(answer.lower(), "question and answer")
    pair = pair_of(asked, answer)
    return Format(name, "prompt-completion", pair, mapping, convert=convert)


def _half(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """A prompt without its completion, or the other way round."""
    if "prompt" in columns or "completion" in columns:
        return Format("prompt-completion", "prompt-completion", pair_of("prompt", "completion"))
    if "instruction" in columns:
        return _unknown("Alpaca", prompt="instruction", completion="output")
    return None


def _other_text(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """A column of text under another name."""
    texts = [column for column in columns if mostly(sample, column, str)]
    column = columns[0] if len(columns) == 1 else first_of(TEXTS, columns)
    if column not in texts:
        return None
    mapping = rename_code(column, "text", columns)
    return Format(f"text in column {column!r}", "text", {"text": column}, mapping)
