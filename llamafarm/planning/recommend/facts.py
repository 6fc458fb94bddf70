"""What a recommendation goes by, what it is, and the questions that several rules ask of the facts."""

from __future__ import annotations

from dataclasses import dataclass

from llamafarm.planning.guide.machines import MODEL_SIZES, model_size_row
from llamafarm.planning.guide.settings import (
    LARGE_ABOVE_EXAMPLES,
    SMALL_BELOW_EXAMPLES,
    SettingGroup,
    Value,
    use_case,
)

# A device of 8 GB reports a little less.
NEARLY = 0.9


@dataclass(frozen=True, slots=True)
class Facts:
    """What a recommendation goes by; None is what nobody knows."""

    num_parameters: float
    device: str
    """As torch calls it: cuda, mps or cpu."""
    memory_gb: float
    """The GPU's own, or main memory where the device shares it."""
    device_name: str = ""
    has_bf16: bool | None = None
    num_examples: int | None = None
    longest_tokens: int | None = None
    """Of one example, prompt and answer together."""
    use_case: str | None = None
    """The key of one of the guide's six; None is decided by the number of examples."""
    model: str | None = None
    """What to write as the base model."""
    train_file: str | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A setting of a strategy by its dotted path, its value, and the rule that it comes from."""

    path: str
    value: Value
    rule: str


def choose_use_case(facts: Facts) -> SettingGroup:
    """Return the guide's use case: the one that was asked for, else by the number of examples."""
    if facts.use_case is not None:
        return use_case(facts.use_case)
    if facts.num_examples is not None and facts.num_examples < SMALL_BELOW_EXAMPLES:
        return use_case("small")
    if facts.num_examples is not None and facts.num_examples > LARGE_ABOVE_EXAMPLES:
        return use_case("large")
    return use_case("production")


def memory_needed_gb(num_parameters: float) -> float:
    """Return the least memory for a model by the guide; above its largest row in proportion to that one."""
    row, largest = model_size_row(num_parameters), MODEL_SIZES[-1]
    return row.memory_gb if row else num_parameters / largest.num_parameters * largest.memory_gb


def fits_memory(facts: Facts) -> bool:
    """Return whether the device has the memory that the guide asks for."""
    return facts.memory_gb >= memory_needed_gb(facts.num_parameters) * NEARLY


def uses_4_bits(facts: Facts) -> bool:
    """Return whether the base is to be held in 4 bits, for about a quarter of the memory: on CUDA alone."""
    return facts.device == "cuda" and not fits_memory(facts)
