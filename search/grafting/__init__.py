"""Grafts: what the parts of a trained network's blocks are worth, and which to choose."""

from search.grafting.choosing import Choosable, choosable, choose, limits_between
from search.grafting.networks import (
    graft_networks,
    num_pairs,
    pair_networks,
    single_networks,
)
from search.grafting.scores import (
    ESTIMATES,
    KL,
    PAIRS,
    SUM,
    GraftScores,
    graft_scores,
    is_assembled,
)

__all__ = [
    "ESTIMATES",
    "KL",
    "PAIRS",
    "SUM",
    "Choosable",
    "GraftScores",
    "choosable",
    "choose",
    "graft_networks",
    "graft_scores",
    "is_assembled",
    "limits_between",
    "num_pairs",
    "pair_networks",
    "single_networks",
]
