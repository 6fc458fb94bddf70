"""Looks at a run's figures while it goes on, and says each finding once, when it is first seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamafarm.findings.finding import Finding
from llamafarm.findings.history import History, Settings
from llamafarm.findings.learning import find_learning
from llamafarm.findings.overfitting import DRIFT, find_overfitting
from llamafarm.findings.speed import Seconds, find_slowness

# A look goes over all lines so far. One comes when their number has grown by so much, so that all looks
# together cost as much as twenty over the whole run, however long it is. Evaluations are looked at as they
# come, but for those of many that come sooner than so.
_GROWTH, _GROWTH_TO_EVALUATION = 1.05, 1.03


class Watch:
    """The findings of one run. `say` is told each name once."""

    def __init__(self, settings: Settings, say: Callable[[Finding], None]) -> None:
        self._settings = settings
        self._say = say
        self._said: set[str] = set()
        self._lines: list[Mapping[str, Any]] = []
        self._look_at = self._look_at_evaluation = 1

    def observe(
        self, line: Mapping[str, Any], seconds: Seconds, utilization: tuple[float | None, int]
    ) -> None:
        """Take a line of metrics in; `utilization` is the GPU's mean and how many samples it is of."""
        self._lines.append(line)
        num_lines = len(self._lines)
        is_of_interest = line["eval_loss"] is not None and num_lines >= self._look_at_evaluation
        if not is_of_interest and num_lines < self._look_at:
            return
        if is_of_interest:
            self._look_at_evaluation = int(num_lines * _GROWTH_TO_EVALUATION) + 1
        self._look_at = int(num_lines * _GROWTH) + 1
        self._tell(self._look(seconds, utilization))

    def restore(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take in the lines of a run that goes on; what they show was said before."""
        self._lines = list(lines)
        self._look_at = int(len(self._lines) * _GROWTH) + 1
        self._said = {finding.name for finding in self._look_at_lines()}

    def conclude(self, seconds: Seconds, utilization: tuple[float | None, int]) -> list[Finding]:
        """Return what the whole run shows, and say what was not said yet.

        What was said on the way and has passed is not among it.
        """
        found = self._look(seconds, utilization)
        self._tell(found)
        return found

    def _tell(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            if finding.name not in self._said:
                self._said.add(finding.name)
                self._say(finding)

    def _look(self, seconds: Seconds, utilization: tuple[float | None, int]) -> list[Finding]:
        return [*self._look_at_lines(), *find_slowness(seconds, *utilization)]

    def _look_at_lines(self) -> list[Finding]:
        history = History(self._lines)
        overfitting = find_overfitting(history, self._settings)
        has_drift = any(finding.name == DRIFT for finding in overfitting)
        return [
            *overfitting,
            *find_learning(history, self._settings, trusts_evaluations=not has_drift),
        ]
