"""The one truth about a run: trials, attempts, ledger, in a database."""
