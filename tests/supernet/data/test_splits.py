"""Laws of splits: disjoint, complete, stratified, and the same whatever else there is."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet.data import splits
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


def names_of(number: int) -> list[str]:
    return [str(position) for position in range(number)]


def by_hash(positions: list[int]) -> list[int]:
    return sorted(positions, key=lambda i: hashlib.sha256(f"mixer-search-1/{i}".encode()).digest())


def carved_by_hand(ranked: list[int], labels: IntArray, fraction: float) -> tuple[list[int], ...]:
    """The first of each class; what rounding leaves goes to the largest remainders."""
    classes = sorted({int(labels[i]) for i in ranked})
    exact = {c: sum(labels[i] == c for i in ranked) * fraction for c in classes}
    taken = {c: int(share) for c, share in exact.items()}
    missing = int(len(ranked) * fraction) - sum(taken.values())
    for c in sorted(classes, key=lambda c: (taken[c] - exact[c], c))[:missing]:
        taken[c] += 1
    taken = {c: max(n, 1) for c, n in taken.items()}
    rest, carved = [], []
    for i in ranked:
        number = int(labels[i])
        (carved if taken[number] > 0 else rest).append(i)
        taken[number] -= 1
    return rest, carved


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(4, 40), min_size=2, max_size=5))
def test_pools_become_splits_as_documented(counts: list[int]) -> None:
    total = sum(counts)
    whole = np.arange(total)
    labels = np.repeat(np.arange(len(counts)), counts)
    ranked = by_hash(whole.tolist())
    # One pool: a fifth to test, a quarter of the rest to search.
    splits, _ = split(counts, {"all": whole})
    rest, test = carved_by_hand(ranked, labels, 0.2)
    train, search = carved_by_hand(rest, labels, 0.25)
    assert [splits[name].tolist() for name in ("train", "search", "test")] == [train, search, test]
    # With one of val and test that one is test, and a fifth of train is search.
    train, search = carved_by_hand(ranked, labels, 0.2)
    for pools in ({"train": whole, "val": whole[:3]}, {"train": whole, "test": whole[:3]}):
        splits, _ = split(counts, pools)
        assert splits["train"].tolist() == train
        assert splits["search"].tolist() == search
        assert splits["test"].tolist() == by_hash([0, 1, 2])
    # With all three nothing is carved.
    splits, _ = split(counts, {"train": whole[4:], "val": whole[:2], "test": whole[2:4]})
    assert splits["search"].tolist() == by_hash([0, 1])
    assert splits["test"].tolist() == by_hash([2, 3])


def test_the_share_that_is_held_out_follows_the_number_of_images() -> None:
    for total, expected in (
        (9_998, 1_999),
        (10_000, 1_000),
        (100_000, 10_000),
        (400_000, 10_000),
        (1_000_000, 20_000),
        (3_000_000, 50_000),
    ):
        labels = np.arange(total) % 2
        splits = split_pools(
            {"train": np.arange(total), "test": np.arange(2)},
            names=names_of(total),
            labels=labels,
            class_names=["a", "b"],
        )
        assert len(splits["search"]) == expected


def test_classes_of_one_image_are_named_up_to_five() -> None:
    with pytest.raises(ValueError, match=r"in: class 0 \(1\)\. Add"):
        split([1, 2], {"train": np.arange(3), "test": np.arange(0)})
    with pytest.raises(ValueError, match=r"class 4 \(1\) and 2 more\. Add"):
        split([1] * 7, {"train": np.arange(7), "test": np.arange(0)})
    with pytest.raises(ValueError, match=r"class 3 \(1\), class 4 \(1\)\. Add"):
        split([1] * 5, {"train": np.arange(5), "test": np.arange(0)})


def test_names_whose_hashes_begin_alike_are_ordered_by_all_of_the_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Digest:
        """Begins with the same eight bytes for every two names."""

        def __init__(self, text: bytes) -> None:
            full = hashlib.sha256(text + b"?").digest()
            self.bytes = bytes([full[0] % 2]) * 8 + full[8:]

        def digest(self) -> bytes:
            return self.bytes

    monkeypatch.setattr(splits, "hashlib", SimpleNamespace(sha256=Digest))
    found, _ = split([7, 5], {"train": np.arange(12), "val": np.arange(2), "test": np.arange(2)})
    expected = sorted(range(12), key=lambda i: Digest(f"mixer-search-1/{i}".encode()).digest())
    assert found["train"].tolist() == expected
