"""Broken data files are read or refused: a few hundred seeded ones of `benchmarks/data_fuzz.py`'s 10,000."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
fuzz: Any = import_module("data_fuzz")


def test_broken_files_are_read_or_refused(tmp_path: Path) -> None:
    verdicts = [fuzz.judge(case, tmp_path) for case in fuzz.make_cases(400, seed=20261125)]
    assert [verdict for verdict in verdicts if verdict.fault] == []
    num_refused = sum(verdict.was_refused for verdict in verdicts)
    assert 200 < num_refused < 400
    assert len({verdict.kind for verdict in verdicts}) == 23


def test_a_fault_would_be_seen(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("a")

    monkeypatch.setattr(fuzz, "read_data_file", fail)
    (case,) = fuzz.make_cases(1, seed=1)
    assert "KeyError" in fuzz.judge(case, tmp_path).fault
