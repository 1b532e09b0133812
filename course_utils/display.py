"""Small tables, calls and marked tokens, as text and as HTML in which everything is escaped.

Used by lessons: all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def html_table(rows: Iterable[Sequence[object]], headers: Sequence[str], caption: str = "") -> str:
    """Return an HTML table; cells are escaped, so text from a dataset shows as text."""
    head = "".join(f'<th scope="col" style="text-align:left">{escape(h)}</th>' for h in headers)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="text-align:left">{escape(str(c))}</td>' for c in row)
        + "</tr>"
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def text_table(rows: Iterable[Sequence[object]], headers: Sequence[str]) -> str:
    """Return the same table for a terminal: columns padded, two spaces between them."""
    lines = [[str(c) for c in headers], *[[str(c) for c in row] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    padded = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in padded)


def code_html(text: str) -> str:
    """Return code as HTML to copy."""
    return f'<pre tabindex="0" style="padding:6px;border:1px solid #999">{escape(text)}</pre>'


def call_text(function: str, arguments: Mapping[str, Any]) -> str:
    """Return the Python text of a call, an argument a line."""
    lines = "".join(f"    {key}={_literal(value)},\n" for key, value in arguments.items())
    return f"{function}(\n{lines})"


def _literal(value: Any) -> str:
    """Return a value as Python text, with double quotes where it has none inside."""
    text = repr(value)
    return text if '"' in text else text.replace("'", '"')


class Result:
    """What a check, a count or a prediction returns: it shows itself, and gives its data.

    A dataclass that derives from it says what its table has; a notebook then shows that as HTML in
    which everything is escaped, a terminal as padded text.
    """

    def headers(self) -> Sequence[str]:
        """Return the names of the table's columns."""
        raise NotImplementedError

    def rows(self) -> Sequence[Sequence[object]]:
        """Return the table's rows, a cell a column, as they are shown."""
        raise NotImplementedError

    def summary(self) -> str:
        """Return what stands below the table as text, and above it as HTML; may be empty."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(filter(None, [text_table(self.rows(), self.headers()), self.summary()]))

    def _repr_html_(self) -> str:
        return html_table(self.rows(), self.headers(), self.summary())


class CallResult(Result):
    """What the arguments of a library's function do: a table, and below it the call to copy."""

    function: ClassVar[str]
    arguments: Mapping[str, Any]

    def headers(self) -> Sequence[str]:
        return ("", "value")

    @property
    def code(self) -> str:
        """The call as Python text."""
        return call_text(self.function, self.arguments)

    def table(self) -> str:
        """Return the numbers as an HTML table, without the call."""
        return html_table(self.rows(), self.headers())

    def __str__(self) -> str:
        return f"{text_table(self.rows(), self.headers())}\n\n{self.code}"

    def _repr_html_(self) -> str:
        return self.table() + code_html(self.code)


@dataclass(frozen=True)
class TokenMask:
    """The tokens of a training row, each with whether it carries a loss.

    In a notebook trained tokens are coloured and underlined; as text they stand in brackets.
    """

    tokens: tuple[str, ...]
    trained: tuple[bool, ...]

    @classmethod
    def decode(
        cls, tokenizer: PreTrainedTokenizerBase, input_ids: Iterable[int], labels: Iterable[int]
    ) -> TokenMask:
        """Return the row of `input_ids` and `labels` (-100: no loss); padding is left out.

        Raises:
            ValueError: if there are not as many labels as tokens.
        """
        ids, marks = [int(i) for i in input_ids], [int(label) != -100 for label in labels]
        if len(ids) != len(marks):
            raise ValueError(
                f"There are {len(ids)} tokens and {len(marks)} labels. There must be one label a "
                "token: pass both from the same row of a batch."
            )
        pad = tokenizer.pad_token_id
        # Where the pad token is the end token too, one that carries a loss is no padding.
        kept = [(i, mark) for i, mark in zip(ids, marks, strict=True) if i != pad or mark]
        return cls(tuple(tokenizer.decode([i]) for i, _ in kept), tuple(mark for _, mark in kept))

    def __repr__(self) -> str:
        pairs = zip(self.tokens, self.trained, strict=True)
        return "".join(f"[{token}]" if mark else token for token, mark in pairs)

    def _repr_html_(self) -> str:
        style = "background:#cfe8f7;color:#00344f;border-bottom:2px solid #0072B2"
        spans = [
            f'<span style="{style}">{escape(token)}</span>' if mark else escape(token)
            for token, mark in zip(self.tokens, self.trained, strict=True)
        ]
        count = f"{sum(self.trained)} of {len(self.trained)} tokens carry a loss (underlined)"
        return f'<p>{count}</p><pre style="white-space:pre-wrap">{"".join(spans)}</pre>'
