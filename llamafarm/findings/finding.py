"""One finding, as everybody passes it on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a run's figures show.

    A `warning` is worth changing something for, a `note` worth knowing. `seen` has the numbers, `meaning`
    what they say of the run, `remedy` the exact key to change. `step` is the one at which it was seen, None
    where it is of the whole run.
    """

    name: str
    level: Level
    seen: str
    meaning: str
    remedy: str
    step: int | None = None

    def as_line(self) -> str:
        """Return it as one line for people."""
        at = "" if self.step is None else f" at step {self.step}"
        return f"{self.name}{at}: {self.seen}. {self.meaning}. Try: {self.remedy}"

    def as_record(self) -> dict[str, Any]:
        """Return it as it goes into JSON."""
        return asdict(self)
