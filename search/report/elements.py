"""Elements of the report as HTML: tables, selectors, commands; everything is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


def count_of(number: int, noun: str) -> str:
    """Write ``1 network`` or ``2 networks``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def enumerate_words(words: Sequence[str]) -> str:
    """Write ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def code(text: str) -> str:
    """Write a command, which breaks between its words and not inside of ``--arch``."""
    words = " ".join(f"<span>{escape(word)}</span>" for word in text.split(" "))
    return f"<code>{words}</code>"


def select_box(name: str, options: Mapping[str, str], *, chosen: str | None = None) -> str:
    """Write a choice among options, their texts by value."""
    entries = "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>'
        f"{escape(text)}</option>"
        for value, text in options.items()
    )
    return f'<select id="{name}">{entries}</select>'


def check_box(name: str, text: str) -> str:
    """Write a box to tick."""
    return f'<label><input type="checkbox" id="{name}"> {escape(text)}</label>'


def table(names: Iterable[str], rows: Iterable[Sequence[str]], *, numbers: set[str]) -> str:
    """Write a table of cells that are HTML already; on a phone each row becomes a card."""
    names = tuple(names)
    kinds = [' class="number"' if name in numbers else "" for name in names]
    head = "".join(f"<th{k}>{escape(n)}</th>" for n, k in zip(names, kinds, strict=True))
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td{kind} data-label="{escape(name)}"><div>{cell}</div></td>'
            for name, kind, cell in zip(names, kinds, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<table class="cards"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'
