"""`metrics.jsonl`, read: a line a step, as far as they are whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llamafarm.confined import is_special
from llamafarm.report.reading.values import count_of, mapping_of, number_of


@dataclass(frozen=True, slots=True)
class Line:
    """A line of `metrics.jsonl`; of step 0 it has the evaluation before training, and nothing else."""

    step: int
    figures: Mapping[str, float | None]

    def get(self, name: str) -> float | None:
        """Return a figure, None where there is none."""
        return self.figures.get(name)


def read_lines(path: Path, faults: list[str]) -> list[Line]:
    """Return the lines by step; of a step that was taken twice, before and after a resume, the later one."""
    if is_special(path):  # a FIFO would be waited for
        faults.append(f"{path.name} is no file")
        return []
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        faults.append(f"{path.name} cannot be read: {error.strerror}")
        return []
    by_step: dict[int, Line] = {}
    num_damaged = 0
    for text in filter(str.strip, texts):
        try:
            record = mapping_of(json.loads(text))
        except (ValueError, RecursionError):
            record = {}
        step = count_of(record.get("step"))
        if step is None or step < 0:
            num_damaged += 1
            continue
        by_step[step] = Line(step, {name: number_of(value) for name, value in record.items()})
    if num_damaged:
        faults.append(f"{num_damaged} damaged lines of {path.name} are left out")
    return [by_step[step] for step in sorted(by_step)]
