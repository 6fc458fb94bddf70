"""What a run went through on its way: where it went on, ran out of memory, left a step out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llamafarm.report.reading.values import list_of, mapping_of


def read_events(run: Mapping[str, Any]) -> Iterator[str]:
    """Yield each in a sentence."""
    for event in map(mapping_of, list_of(run.get("resumed"))):
        step, when = event.get("after_step"), event.get("at")
        yield f"It was ended on the way, and went on after step {step} at {when}."
    for event in map(mapping_of, list_of(run.get("out_of_memory"))):
        what, step, how = event.get("what"), event.get("step"), event.get("how")
        yield f"{what}, step {step}: out of memory; done again with {how}, on the same rows."
    if skipped := list_of(run.get("skipped_steps")):
        shown = ", ".join(map(str, skipped[:10])) + (", …" if len(skipped) > 10 else "")
        yield f"Steps without a finite loss or gradient were left out: {shown}."
