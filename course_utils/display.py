"""Small tables, as text and as HTML in which every cell is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


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
