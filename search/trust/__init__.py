"""How well cheap estimates rank networks, and what a run judges by."""

from search.trust.horizon import HorizonReport, horizon_report, promotion_forecast
from search.trust.judge_choice import (
    estimator_of,
    next_predicted,
    report_of,
    sampled_fidelity,
    trains,
)
from search.trust.predictor import MIN_NETWORKS
from search.trust.ranking import (
    COSTS,
    MIN_POINTS,
    PREDICTOR,
    Estimator,
    KendallTau,
    TrustReport,
    kendall_tau_interval,
)

__all__ = [
    "COSTS",
    "MIN_NETWORKS",
    "MIN_POINTS",
    "PREDICTOR",
    "Estimator",
    "HorizonReport",
    "KendallTau",
    "TrustReport",
    "estimator_of",
    "horizon_report",
    "kendall_tau_interval",
    "next_predicted",
    "promotion_forecast",
    "report_of",
    "sampled_fidelity",
    "trains",
]
