"""``python -m search`` is the command ``search``."""

from __future__ import annotations

from search.cli.app import main

main()
