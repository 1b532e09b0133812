"""Turns of a conversation under other names, and the code that makes messages of them.

`tool_turn` is run by the check and, as source, by the mapping that the check prints.

Used by lessons: 01.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preflight.dataset_check.forms import SYSTEMS, Row, first_of, is_text, map_code, mostly

ROLE_NAMES = {"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant"}
ROLE_NAMES |= {"bot": "assistant", "ai": "assistant", "model": "assistant", "bing": "assistant"}
ROLE_NAMES |= {"function_call": "assistant", "tool_call": "assistant", "observation": "tool"}
ROLE_NAMES |= {"function_response": "tool", "tool_response": "tool", "function": "tool"}
CALLS = ("function_call", "tool_call")


def tool_turn(speaker: str, text: str) -> dict:
    """Return a turn's text as its content or, if it is the JSON of calls, as tool_calls."""
    if speaker in ("function_call", "tool_call"):  # CALLS, which the mapping does not know
        try:
            calls = json.loads(text)
            calls = calls if isinstance(calls, list) else [calls]
            for call in calls:
                if isinstance(call.get("arguments"), str):
                    call["arguments"] = json.loads(call["arguments"])
        except (AttributeError, TypeError, ValueError, RecursionError):
            return {"content": text}  # a call in words stays text
        if calls and all("name" in call for call in calls):
            calls = [{"type": "function", "function": call} for call in calls]
            return {"content": "", "tool_calls": calls}
    return {"content": text}


@dataclass(frozen=True)
class Turns:
    """How turns become messages: the keys of speaker and text, other keys, roles to rename."""

    role: str
    content: str
    others: tuple[str, ...]
    names: dict[str, str]
    calls: bool
    system: bool  # whether one of the turns is the system's

    @classmethod
    def seen(cls, turns: Sequence[Any], role: str, content: str) -> Turns:
        """Return what these turns show."""
        turns = [turn for turn in turns if isinstance(turn, dict)]
        speakers = [turn.get(role) for turn in turns]
        names = {name: ROLE_NAMES[name] for name in ROLE_NAMES if name in speakers}
        others = dict.fromkeys(
            name for t in turns for name, v in t.items() if v is not None and isinstance(name, str)
        )
        others = tuple(name for name in others if name not in (role, content))
        calls = any(call in speakers for call in CALLS)
        return cls(role, content, others, names, calls, "system" in speakers)

    @property
    def plain(self) -> bool:
        """True if the turns are messages already."""
        return not self.names and (self.role, self.content) == ("role", "content")

    @property
    def typed(self) -> bool:
        """True if messages differ in their keys, of which `map` drops those of later rows."""
        return self.calls or bool(self.others)

    def code(self, turn: str = "m") -> str:
        """Return the expression that makes a message of a turn."""
        if self.plain:
            return turn
        speaker, text = f"{turn}[{self.role!r}]", f"{turn}[{self.content!r}]"
        who = f"{self.names}.get({speaker}, {speaker})" if self.names else speaker
        what = f'"content": {text}'
        if self.calls:
            what = f"**tool_turn({speaker}, {text})"
        rest = ""
        if self.others:
            kept = f"for k in {list(self.others)} if {turn}.get(k) is not None"
            rest = f", **{{k: {turn}[k] {kept}}}"
        return f'{{"role": {who}, {what}{rest}}}'

    def list_code(self, turns: str) -> str:
        """Return the expression that makes messages of a list of turns."""
        return turns if self.plain else f"[{self.code()} for m in {turns}]"

    def message(self, turn: Any) -> Any:
        """Return a turn as a message; what is of a wrong type stays as it is."""
        if not isinstance(turn, dict) or self.role not in turn:
            return turn
        name, text = turn[self.role], turn.get(self.content)
        used = (self.role, self.content)
        others = {k: v for k, v in turn.items() if v is not None and k not in used}
        if not isinstance(name, str):
            return {**others, "role": name, "content": text}
        return {**others, "role": ROLE_NAMES.get(name, name), **tool_turn(name, text)}

    def messages(self, turns: Any) -> Any:
        """Return a list of turns as messages; what is no list stays as it is."""
        return [self.message(turn) for turn in turns] if isinstance(turns, list) else turns


@dataclass(frozen=True)
class Beside:
    """What stands beside a conversation and belongs to it: a system prompt, tools as text."""

    system: str | None
    tools: bool

    @classmethod
    def seen(
        cls, columns: Sequence[str], sample: Sequence[Row], turns: Turns | None = None
    ) -> Beside:
        """Return what these columns hold; turns with a system message of their own need none."""
        system = first_of(SYSTEMS, columns)
        if system and ((turns and turns.system) or not mostly(sample, system, str)):
            system = None
        has_tools = any(is_text(row.get("tools")) for row in sample)
        return cls(system, has_tools and mostly(sample, "tools", str))

    @property
    def used(self) -> list[str]:
        """The columns that go into the result."""
        return [*([self.system] if self.system else []), *(["tools"] if self.tools else [])]

    def start_code(self) -> str:
        """Return the expression of the messages that come first, with its plus."""
        if not self.system:
            return ""
        said = f"row[{self.system!r}]"
        return f'([{{"role": "system", "content": {said}}}] if {said} else []) + '

    def joined(self, row: Row, messages: Any) -> Any:
        """Return the messages after those that come first; what is no list stays as it is."""
        said = row.get(self.system) if self.system else None
        if not said or not isinstance(messages, list):
            return messages
        return [{"role": "system", "content": said}, *messages]

    def map_code(
        self, result: dict[str, str], columns: Sequence[str], used: Sequence[str], turns: Turns
    ) -> str:
        """Return the mapping to these columns, whose expressions are given."""
        if self.tools:  # an empty text would stop SFTTrainer, which reads it as JSON
            result = {**result, "tools": 'json.loads(row["tools"] or "[]")'}
        typed = ""
        if turns.typed or self.tools:
            typed = ", ".join(f'"{name}": List(Json())' for name in result)
        pairs = ", ".join(f'"{name}": {value}' for name, value in result.items())
        code = map_code(f"{{{pairs}}}", columns, [*used, *self.used], typed)
        head = "import json\n" if self.tools or turns.calls else ""
        head += "from datasets import Features, Json, List\n" if typed else ""
        head += f"\n{inspect.getsource(tool_turn)}\n" if turns.calls else ""
        return head + code
