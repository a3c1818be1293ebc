"""What a person asks of a front: query, compare, select."""

from search.front.compare import compare_json, compare_table, load_compared, with_latencies
from search.front.query import (
    FrontQuery,
    choose_rows,
    front_view,
    judged_by,
    measure_latencies,
    of_latency,
    recipe_epochs,
    training_command,
    trials_of,
    watch,
    without_teacher,
    write_csv,
)
from search.front.retarget import (
    caveat,
    parse_limits,
    retarget,
    retargeted_json,
    retargeted_table,
)
from search.front.select import choice_json, retrain_cost, select_members, select_table

__all__ = [
    "FrontQuery",
    "caveat",
    "choice_json",
    "choose_rows",
    "compare_json",
    "compare_table",
    "front_view",
    "judged_by",
    "load_compared",
    "measure_latencies",
    "of_latency",
    "parse_limits",
    "recipe_epochs",
    "retarget",
    "retargeted_json",
    "retargeted_table",
    "retrain_cost",
    "select_members",
    "select_table",
    "training_command",
    "trials_of",
    "watch",
    "with_latencies",
    "without_teacher",
    "write_csv",
]
