"""What `--help` may cost, counted in imports rather than seconds, and the floors of the house."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "peft", "pydantic", "numpy", "ruamel"}


def imported_by(statement: str, repository: Path) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_command_line_loads_nothing_heavy(repository: Path) -> None:
    assert not imported_by("import llamafarm.cli", repository) & HEAVY


@pytest.mark.parametrize(
    "module", ["strategy.load", "hardware", "planning", "data.records", "data.corpus", "terminal"]
)
def test_the_lowest_floors_load_without_torch(module: str, repository: Path) -> None:
    loaded = imported_by(f"import llamafarm.{module}", repository)
    assert not loaded & {"torch", "transformers", "peft"}
