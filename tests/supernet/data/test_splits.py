"""Laws of splits: disjoint, complete, stratified, and the same whatever else there is."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet.data.splits import IntArray, split_pools

pool_counts = st.lists(st.integers(2, 40), min_size=2, max_size=6)


def split(counts: list[int], pools: dict[str, IntArray]) -> tuple[dict[str, IntArray], IntArray]:
    labels = np.repeat(np.arange(len(counts)), counts)
    names = [str(position) for position in range(len(labels))]
    class_names = [f"class {label}" for label in range(len(counts))]
    return split_pools(pools, names=names, labels=labels, class_names=class_names), labels


@settings(max_examples=40, deadline=None)
@given(counts=pool_counts)
def test_a_carved_split_is_disjoint_complete_and_stratified(counts: list[int]) -> None:
    total = sum(counts)
    splits, labels = split(counts, {"train": np.arange(total), "test": np.arange(0)})
    together = np.concatenate([splits["train"], splits["search"]])
    assert sorted(together.tolist()) == list(range(total))
    carved = np.bincount(labels[splits["search"]], minlength=len(counts))
    # To the nearest image on either side of the exact share, and never none.
    share = 0.2 * np.array(counts)
    assert (carved >= 1).all()
    assert (carved <= np.maximum(1, np.floor(share) + 1)).all()
    assert (carved >= np.floor(share)).all()


def test_search_takes_a_tenth_of_a_large_train_set_but_at_most_10000() -> None:
    for per_class, expected in ((1_999, 1_999), (2_000, 1_000), (30_000, 10_000)):
        counts = [per_class] * 5
        splits, _ = split(counts, {"train": np.arange(sum(counts)), "test": np.arange(0)})
        assert len(splits["search"]) == expected


def test_the_order_is_that_of_a_hash_which_no_library_can_change() -> None:
    splits, _ = split(
        [7, 5], {"train": np.arange(0, 8), "val": np.arange(8, 10), "test": np.arange(10, 12)}
    )
    expected = sorted(
        range(8), key=lambda i: hashlib.sha256(f"mixer-search-1/{i}".encode()).digest()
    )
    assert splits["train"].tolist() == expected
