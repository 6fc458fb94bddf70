"""What is found in made-up curves, and whether a remedy names settings that exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from loss_curves import Curve, Line, make_lines, settings_of

from llamafarm.findings.finding import Finding
from llamafarm.findings.history import History, Settings
from llamafarm.findings.learning import find_learning
from llamafarm.findings.overfitting import DRIFT, find_overfitting
from llamafarm.strategy.schema import Strategy, walk_leaves

SETTINGS = {path for path, _ in walk_leaves(Strategy())}
BARE = {path.rpartition(".")[2] for path in SETTINGS}
KEY = re.compile(r"(?<![\w.`])[a-z]+(?:_[a-z]+)+\b(?:\.\w+)*|\b[a-z_]+\.[a-z_]+(?:\.\w+)*")


def find_all(lines: Sequence[Line], settings: Settings) -> list[Finding]:
    history = History(lines)
    overfitting = find_overfitting(history, settings)
    has_drift = any(finding.name == DRIFT for finding in overfitting)
    return [*overfitting, *find_learning(history, settings, trusts_evaluations=not has_drift)]


@pytest.fixture
def found() -> Callable[..., list[Finding]]:
    """Return a function to all that is found in a whole curve."""

    def find(curve: Curve, **settings: Any) -> list[Finding]:
        return find_all(make_lines(curve), settings_of(curve, **settings))

    return find


@pytest.fixture
def keys_of() -> Callable[[Finding], set[str]]:
    """Return a function to the settings that a remedy names, each of which must be one of a strategy."""

    def keys(finding: Finding) -> set[str]:
        named = set(KEY.findall(finding.remedy))
        unknown = {key for key in named if key not in SETTINGS and key not in BARE}
        assert not unknown, f"{finding.name} names settings that are not there: {unknown}"
        assert named, f"{finding.name} names no setting"
        return named

    return keys
