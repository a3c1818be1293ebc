"""Addresses that users type, and the secrets that must not stand in them."""

from __future__ import annotations

import re

# A password is what follows the name of a user, up to the last @; with a slash in it, too.
_USER = re.compile(r"(?<=://)[^/@\s]*:\S*(?=@)")
_VALUE = re.compile(
    r"((?:^|[?&;\s'\"])\w*(?:pass(?:word|wd|phrase)?|secret|token|signature|credentials?|key|sig)=)"
    r"[^&;\s]+",
    re.IGNORECASE,
)


def has_secret(address: str) -> bool:
    """Tell whether an address has a password, or a key of a storage."""
    return bool(_USER.search(address) or _VALUE.search(address))


def redacted(text: str) -> str:
    """Return what was typed as an address as messages may show it, whatever it is."""
    hidden = _VALUE.sub(r"\1***", _USER.sub("***", text))
    return hidden if "://" in text else re.sub(r"[^/@\s]*:\S*(?=@)", "***", hidden)
