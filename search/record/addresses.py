"""Addresses that users type, and the secrets that must not stand in them."""

from __future__ import annotations

import re

# A password is what follows the name of a user, up to the last @; with a slash in it, too.
_USER = re.compile(r"(?<=://)[^/@\s]*:[^\s]*(?=@)")
_VALUE = re.compile(
    r"((?:^|[?&;\s'\"])\w*(?:pass(?:word|wd|phrase)?|secret|token|signature|credentials?|key|sig)=)"
    r"[^&;\s]+",
    re.IGNORECASE,
)
HIDDEN = "***"


def has_secret(address: str) -> bool:
    """Tell whether an address has a password, or a key of a storage."""
    return redacted(address) != address


def redacted(address: str) -> str:
    """Return an address as messages may show it."""
    return _VALUE.sub(rf"\1{HIDDEN}", _USER.sub(HIDDEN, address))
