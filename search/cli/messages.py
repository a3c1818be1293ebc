"""What becomes a message with status 2, and what is a bug of ours and keeps its traceback.

Wrong input is found where it is read and raised as a `ValueError` whose text says the rule, the
value and the remedy. Everything else that Python or a library raises is a bug, also where it is a
`ValueError`: ``int("x")`` deep inside has no advice for anybody.
"""

from __future__ import annotations

import dis
import errno
import sys
from pathlib import Path
from types import TracebackType

from search.terminal import visible

_ROOT = Path(__file__).parents[2]
_ROOMS = tuple(str(_ROOT / name) for name in ("searchspace", "supernet", "search", "configs"))
# What a machine says of itself, and no code of ours can have caused.
_MACHINE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENAMETOOLONG,
    errno.ESTALE,
}


def message_of(error: BaseException) -> str | None:
    """Return what to tell the user, or None for a bug of ours."""
    from search.record import DatabaseLostError, RefusedError

    if isinstance(error, DatabaseLostError):
        return visible(str(error))
    if isinstance(error, ValueError):
        return visible(str(error)) if _is_raised_by_us(error) else None
    if isinstance(error, RefusedError) and error.by_machine:
        remedy = "Mend that (rights, free space, another program that has it open)"
        return visible(f"The record of the run: {error}. {remedy} and run the command again.")
    if isinstance(error, OSError) and error.errno in _MACHINE:
        name = f"{error.filename}: " if error.filename else ""
        remedy = "Mend that (rights, free space, length of the name) and run the command again."
        return visible(f"{name}{error.strerror}. {remedy}")
    return None


def fail(message: str) -> None:
    """Print a message and end with status 2."""
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(2)


def speak_any_locale() -> None:
    """Print escapes instead of failing where the terminal's encoding lacks a character."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not what a test puts in its place
            stream.reconfigure(errors="backslashreplace")


def _is_raised_by_us(error: ValueError) -> bool:
    """Tell whether a ``raise`` in one of our own lines made the error, with its sentence."""
    if type(error) is not ValueError or error.__traceback__ is None:
        return False
    last: TracebackType = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    is_ours = code.co_filename.startswith(_ROOMS)
    return is_ours and code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
