"""What is needed to watch a run and to compare its model afterwards: checked before the first step."""

from __future__ import annotations

from pathlib import Path

from llamafarm.evaluation.general import read_general_text
from llamafarm.strategy.load import LoadedStrategy, resolve_path
from llamafarm.training.trackers.open import check_trackers


def check_monitoring(loaded: LoadedStrategy) -> None:
    """Raise `MachineError` for a tracker that is not here, `DataError` for a general text without words."""
    monitoring = loaded.strategy.monitoring
    check_trackers(monitoring.trackers)
    if monitoring.sample_rows:
        read_general_text(general_file_of(loaded))


def general_file_of(loaded: LoadedStrategy) -> Path | None:
    """Return the general text that a strategy names. Raises an error if it is not there."""
    named = loaded.strategy.monitoring.general_file
    return resolve_path(named, loaded) if named is not None else None
