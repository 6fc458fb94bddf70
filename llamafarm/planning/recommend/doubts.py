"""What speaks against a recommendation, or is missing in it."""

from __future__ import annotations

from llamafarm.planning.guide.machines import GpuRow
from llamafarm.planning.guide.numbers import show_parameters
from llamafarm.planning.recommend.device import find_row, largest_model_of
from llamafarm.planning.recommend.facts import NEARLY, Facts, memory_needed_gb, uses_4_bits

# Below it, the guide's learning rates are too low.
_SMALL_MODEL = 100e6
# A model that is sold as 7B may have 7.6 billion parameters.
_NOMINAL = 1.1


def doubts(facts: Facts) -> list[str]:
    """Return what the reader of a recommendation should know before using it, a sentence each."""
    found = []
    size = show_parameters(facts.num_parameters)
    least = memory_needed_gb(facts.num_parameters) / (4 if uses_4_bits(facts) else 1)
    if facts.memory_gb < least * NEARLY:
        how = ", even with the base in 4 bits," if uses_4_bits(facts) else ""
        found.append(
            f"the guide asks for {least:.3g} GB for a model of {size}{how} and there are "
            f"{facts.memory_gb:.3g}: choose a smaller model"
        )
    row, _ = find_row(facts)
    has_no_end = isinstance(row, GpuRow) and row.max_model.endswith("+")
    if row and not has_no_end and facts.num_parameters > largest_model_of(row) * _NOMINAL:
        largest = show_parameters(largest_model_of(row))
        found.append(f"the guide has the {row.name} for models up to {largest}, and this one has {size}")
    if facts.model is None:
        found.append(f"no base model was named: write one of about {size} into base_model")
    if facts.num_parameters < _SMALL_MODEL:
        found.append(
            "the guide's learning rates are for models of 1B and more; one this small takes, and needs, a "
            "higher one (demos/strategies.yaml trains the embedded model with 0.002)"
        )
    if facts.num_examples is not None and facts.num_examples < 2:
        found.append("a single example cannot be split for evaluation: at least two are needed")
    return found
