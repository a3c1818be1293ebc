"""A record on each of both databases, by the test's clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from search.record.record import Record
from search.record.schema import Address
from tests.clock import Clock


@pytest.fixture
def record(place: Address, clock: Clock) -> Iterator[Record]:
    """Make a record where the test's `place` is."""
    with Record.create(place, clock=clock) as record:
        yield record
