"""The one truth about a run: trials, attempts, ledger, in a database."""

from search.record.addresses import has_secret
from search.record.claim import Claim, has_token, is_claimed, take_claim
from search.record.heartbeat import Heartbeat
from search.record.measured import QUALITIES, Measured
from search.record.record import AttemptOutcome, Record, Trial
from search.record.schema import (
    LEDGER_COLUMNS,
    Address,
    DatabaseLostError,
    RefusedError,
    claimed_error,
)

__all__ = [
    "LEDGER_COLUMNS",
    "QUALITIES",
    "Address",
    "AttemptOutcome",
    "Claim",
    "DatabaseLostError",
    "Heartbeat",
    "Measured",
    "Record",
    "RefusedError",
    "Trial",
    "claimed_error",
    "has_secret",
    "has_token",
    "is_claimed",
    "take_claim",
]
