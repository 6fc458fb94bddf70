"""From the facts of a fine-tuning to its settings, by the guide's tables, each with the rule it comes from.

`facts` has what is gone by, `device` decides what follows from the machine, `learning` what follows from the
model and the examples, `doubts` what speaks against it; `text` writes all of it as a strategy file. The
tables are in `planning.guide`.
"""

from __future__ import annotations

import math

from llamafarm.planning.recommend.device import recommend_batches, recommend_hardware
from llamafarm.planning.recommend.doubts import doubts
from llamafarm.planning.recommend.facts import Facts, Recommendation, choose_use_case
from llamafarm.planning.recommend.learning import (
    recommend_data,
    recommend_evaluation,
    recommend_generation,
    recommend_method,
    recommend_model,
    recommend_schedule,
)
from llamafarm.planning.recommend.text import save_strategy, write_strategy

__all__ = [
    "Facts",
    "Recommendation",
    "choose_use_case",
    "doubts",
    "recommend",
    "save_strategy",
    "write_strategy",
]


def recommend(facts: Facts) -> list[Recommendation]:
    """Return the settings for `facts`, section by section in the order of a strategy."""
    case = choose_use_case(facts)
    batches = recommend_batches(facts, case)
    return [
        *recommend_hardware(facts),
        *recommend_model(facts),
        *recommend_method(facts, case),
        *recommend_schedule(case),
        *batches,
        *recommend_evaluation(facts, case, rows_per_step=_rows_per_step(batches)),
        *recommend_data(facts, case),
        *recommend_generation(case),
    ]


def _rows_per_step(batches: list[Recommendation]) -> int:
    return math.prod(int(one.value) for one in batches if isinstance(one.value, int))
