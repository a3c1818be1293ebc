"""Where text reaches a terminal: what users named is shown as it is, and never obeyed.

A folder may be called ``a [red]b`` and a class ``\\x1b[2J``: the first is no markup of rich, and
the second clears no screen.
"""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.text import Text

_KEPT = "\n\t"


class PlainConsole(Console):
    """A console on which strings are text: no markup, no emoji codes, no control characters.

    What is to be bold or red is given as a `rich.text.Text` or as a style.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a string visible; rich calls this for all that is printed, tables included."""
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})

    def say(self, text: str) -> None:
        """Print a line that the terminal may break, but not this program: it can be copied."""
        self.print(text, soft_wrap=True)


def visible(text: str) -> str:
    """Write characters that a terminal would obey, or not show, as their escapes.

    Bytes of a file's name that are no text are among them.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _KEPT else _escape(c) for c in text)


def shell_command(*words: object) -> str:
    """Write a command so that a shell reads these words and nothing else."""
    return " ".join(_quoted(str(word)) for word in words)


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    # Bash and zsh read escapes in these quotes.
    inside = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else _escape(c) for c in inside) + "'"


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as Python keeps it
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
