"""Which form a dataset has, and the line of code that turns it into one SFTTrainer takes.

`recognise` looks at the column names and at the first rows. The `extract` of the format then gives
each row as the columns of the target form ("text", "prompt" and "completion", or "messages"), just
as the mapping line would, but leaves values of a wrong type as they are, so that they are found.

Used by lessons: 01, 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
MISSING: Any = type("Missing", (), {"__bool__": lambda self: False})()  # for a key that is absent

# Names that public datasets use, the likelier ones first.
PROMPTS = "instruction prompt question query problem inputs input document article dialogue message"
PROMPTS += " source user human"
ANSWERS = "completion output response answer answers solution targets target summary highlights"
ANSWERS += " assistant reply"
CONTEXTS = "context input"
SYSTEMS = "system_prompt system"
TEXTS = "text content body sentence document article story passage code"
CHATS = "messages conversations conversation dialogue dialog chat turns data"
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message", "utterance")
PAIR_KEYS = (("input", "output"), ("human", "assistant"), ("user", "assistant"))
PAIR_KEYS += (("prompt", "response"), ("question", "answer"))
ROLE_NAMES = {"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant"}
ROLE_NAMES |= {"bot": "assistant", "ai": "assistant", "model": "assistant", "bing": "assistant"}
ROLE_NAMES |= {"function_call": "assistant", "observation": "tool", "function_response": "tool"}
PREFERENCE = ("prompt", "completion", "chosen", "rejected")
TOKENS = ("input_ids", "labels", "completion_mask", "assistant_masks")


@dataclass(frozen=True)
class Format:
    """A recognised form.

    `target` is the form it is or becomes: "text", "prompt-completion", "messages", "tokens" or
    "unknown". `source` names, for each column of the target, the column it comes from; `convert`
    does what more is needed. `chat` says whether the target's values are lists of messages.
    """

    name: str
    target: str
    source: dict[str, str]
    mapping: str = ""
    chat: bool = False
    convert: Callable[[Row], Row] | None = None

    @property
    def keeps_columns(self) -> bool:
        """True if a dataset still has its other columns after the mapping."""
        return not self.mapping or ".rename_column(" in self.mapping

    def extract(self, row: Row) -> Row:
        """Return the row as the columns of the target form, `MISSING` where it lacks one."""
        if self.convert:
            return self.convert(row)
        return {target: row.get(source, MISSING) for target, source in self.source.items()}


def recognise(columns: Sequence[str], sample: Sequence[Row]) -> Format:
    """Return the form of a dataset with these columns, of which `sample` holds the first rows."""
    for look in (_native, _conversation, _preference, _plain_text, _pair, _half, _other_text):
        found = look(columns, sample)
        if found:
            return found
    return _unknown()


def _unknown(name: str = "unknown", **needed: str) -> Format:
    return Format(name, "unknown", needed, convert=dict)


def _native(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """The forms that SFTTrainer takes, in the order in which it looks for them."""
    if "input_ids" in columns:
        return Format("tokenised", "tokens", {"input_ids": "input_ids"}, convert=_token_columns)
    if "prompt" in columns and "completion" in columns:
        chat = _mostly(sample, "prompt", list)
        # Where there is a text column, too, SFTTrainer appends the end-of-sequence token to that.
        mapping = _select("prompt", "completion") if "text" in columns and not chat else ""
        pair = _pair_of("prompt", "completion")
        name = "conversational prompt-completion" if chat else "prompt-completion"
        return Format(name, "prompt-completion", pair, mapping, chat)
    if "messages" in columns and _chat_keys(sample, "messages") in (None, ("role", "content")):
        # SFTTrainer takes a row with a prompt for prompt-completion, whatever else it holds.
        mapping = _select("messages") if set(PREFERENCE) & set(columns) else ""
        return Format("messages", "messages", {"messages": "messages"}, mapping, True)
    return None


def _token_columns(row: Row) -> Row:
    return {name: row.get(name, MISSING) for name in TOKENS}


def _conversation(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """Lists of turns under another name, with other keys, as pairs, or as bare strings."""
    named = [column for column in CHATS.split() if column in columns]
    for column in dict.fromkeys([*named, *columns]):
        if column in PREFERENCE:
            continue
        if keys := _chat_keys(sample, column):
            return _turns(column, *keys, sample)
        pair = next((p for p in PAIR_KEYS if _mostly_turns(sample, column, p)), None)
        if pair:
            asked, answered = pair
            turns = f"[text for t in row[{column!r}] for text in (t[{asked!r}], t[{answered!r}])]"
            return _bare_turns(f"pairs of turns in {column!r}", column, turns, pair)
        if column in named and _mostly(sample, column, list, inner=str):
            return _bare_turns(f"list of turns in {column!r}", column, f"row[{column!r}]", None)
    return None


def _turns(column: str, role: str, content: str, sample: Sequence[Row]) -> Format:
    speakers = [m.get(role) for row in sample for m in _list(row, column) if isinstance(m, dict)]
    names = {name: ROLE_NAMES[name] for name in ROLE_NAMES if name in speakers}
    who = f"{names}.get(m[{role!r}], m[{role!r}])" if names else f"m[{role!r}]"
    mapping = _map(
        f'{{"messages": [{{"role": {who}, "content": m[{content!r}]}} for m in row[{column!r}]]}}'
    )
    if not names and (column, role, content) == ("conversations", "from", "value"):
        mapping = ""  # SFTTrainer renames these keys itself, though not the speakers
    if not names and (role, content) == ("role", "content"):
        mapping = f'dataset = dataset.rename_column({column!r}, "messages")'

    def turn(message: Any) -> Any:
        if not isinstance(message, dict) or role not in message:
            return message
        name = message[role]
        name = ROLE_NAMES.get(name, name) if isinstance(name, str) else name
        return {**message, "role": name, "content": message.get(content)}

    def convert(row: Row) -> Row:
        turns = row.get(column, MISSING)
        return {"messages": [turn(m) for m in turns] if isinstance(turns, list) else turns}

    name = "ShareGPT" if role == "from" else f"messages in column {column!r}"
    return Format(name, "messages", {"messages": column}, mapping, True, convert)


def _bare_turns(name: str, column: str, turns: str, pair: tuple[str, str] | None) -> Format:
    """The form of texts without a speaker: user and assistant take turns."""
    mapping = _map(
        '{"messages": [{"role": ("user", "assistant")[i % 2], "content": text} '
        f"for i, text in enumerate({turns})]}}"
    )

    def convert(row: Row) -> Row:
        texts = row.get(column, MISSING)
        if not isinstance(texts, list):
            return {"messages": texts}
        if pair:
            texts = [t.get(key) if isinstance(t, dict) else t for t in texts for key in pair]
        roles = ("user", "assistant")
        return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]}

    return Format(name, "messages", {"messages": column}, mapping, True, convert)


def _preference(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """Two answers to choose between; for SFT, the better one is the answer."""
    if not {"chosen", "rejected"} <= set(columns):
        return None
    chat = _mostly(sample, "chosen", list)
    if "prompt" in columns and chat == _mostly(sample, "prompt", list):
        mapping = _map('{"prompt": row["prompt"], "completion": row["chosen"]}')
        pair = _pair_of("prompt", "chosen")
        return Format("preference", "prompt-completion", pair, mapping, chat)
    target = "messages" if chat else "text"
    mapping = _map(f'{{"{target}": row["chosen"]}}')
    return Format("preference", target, {target: "chosen"}, mapping, chat)


def _plain_text(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    if "text" not in columns:
        return None
    if {"parent_id", "role"} <= set(columns):
        return _unknown("tree of messages, one in each row")
    return Format("text", "text", {"text": "text"})


def _pair(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """A question and its answer in two columns, perhaps with a context or a system prompt."""
    answer = _first(ANSWERS, columns)
    asked = _first(PROMPTS, [column for column in columns if column != answer])
    if answer is None or asked is None:
        return None
    context = _first(CONTEXTS, [column for column in columns if column != asked])
    system = _first(SYSTEMS, columns)
    shown = [name for name in (system, asked, context) if name]
    nested = _mostly(sample, answer, dict)  # as in SQuAD: {"text": [...], "answer_start": [...]}

    def convert(row: Row) -> Row:
        prompt, reply = row.get(asked, MISSING), row.get(answer, MISSING)
        if nested and isinstance(reply, dict) and isinstance(reply.get("text"), list):
            reply = next(iter(reply["text"]), "")
        if _is_text(prompt):
            parts = [*map(row.get, shown), "Answer:"]
            prompt = "\n\n".join(part for part in parts if part and isinstance(part, str))
        return {"prompt": prompt, "completion": f" {reply}" if _is_text(reply) else reply}

    prompt = f"row[{asked!r}]"
    if system:
        prompt = f'(row[{system!r}] + "\\n\\n" if row[{system!r}] else "") + {prompt}'
    if context:
        prompt += f' + ("\\n\\n" + row[{context!r}] if row[{context!r}] else "")'
    reply = f'(row[{answer!r}]["text"] or [""])[0]' if nested else f"row[{answer!r}]"
    mapping = _map(f'{{"prompt": {prompt} + "\\n\\nAnswer:", "completion": " " + {reply}}}')
    known = {"output": "Alpaca", "response": "Dolly"} if asked.lower() == "instruction" else {}
    name = known.get(answer.lower(), "question and answer")
    return Format(name, "prompt-completion", _pair_of(asked, answer), mapping, convert=convert)


def _half(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """A prompt without its completion, or the other way round."""
    if "prompt" in columns or "completion" in columns:
        return Format("prompt-completion", "prompt-completion", _pair_of("prompt", "completion"))
    if "instruction" in columns:
        return _unknown("Alpaca", prompt="instruction", completion="output")
    return None


def _other_text(columns: Sequence[str], sample: Sequence[Row]) -> Format | None:
    """A column of text under another name."""
    texts = [column for column in columns if _mostly(sample, column, str)]
    column = columns[0] if len(columns) == 1 else _first(TEXTS, columns)
    if column not in texts:
        return None
    mapping = f'dataset = dataset.rename_column({column!r}, "text")'
    return Format(f"text in column {column!r}", "text", {"text": column}, mapping)


def _pair_of(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def _map(result: str) -> str:
    return f"dataset = dataset.map(lambda row: {result}, remove_columns=dataset.column_names)"


def _select(*columns: str) -> str:
    return f"dataset = dataset.select_columns({list(columns)})"


def _first(wanted: str, columns: Iterable[str]) -> str | None:
    """Return the first of the wanted names among the columns, whatever its case."""
    by_name = {column.lower(): column for column in columns}
    return next((by_name[name] for name in wanted.split() if name in by_name), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _list(row: Row, column: str) -> list[Any]:
    return row[column] if isinstance(row.get(column), list) else []


def _mostly(sample: Sequence[Row], column: str, kind: type, inner: type | None = None) -> bool:
    """True if more than half of the column's values (None aside) are of this type."""
    values = [row[column] for row in sample if row.get(column) is not None]
    fit = [v for v in values if isinstance(v, kind)]
    if inner is not None:
        fit = [v for v in fit if v and isinstance(v[0], inner)]
    return 2 * len(fit) > len(values)


def _mostly_turns(sample: Sequence[Row], column: str, keys: Sequence[str]) -> bool:
    """True if the first items of most of the column's lists are dicts with these keys."""
    turns = [items[0] for row in sample if (items := _list(row, column))]
    return 2 * sum(isinstance(t, dict) and set(keys) <= set(t) for t in turns) > len(turns)


def _chat_keys(sample: Sequence[Row], column: str) -> tuple[str, str] | None:
    """Return the keys under which most of the column's turns hold the speaker and the text."""
    pairs = [(role, content) for role in ROLE_KEYS for content in CONTENT_KEYS]
    return next((pair for pair in pairs if _mostly_turns(sample, column, pair)), None)
