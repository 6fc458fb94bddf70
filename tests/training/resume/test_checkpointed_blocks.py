"""How many blocks are computed again changes no result: a run may go on with another number of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resumed_runs import digest, record_of, resumed_after

from llamafarm.planning.fit import settle_memory
from llamafarm.training.preparation import memory
from llamafarm.training.result import RunResult


def test_a_run_goes_on_with_another_number_of_blocks_to_the_same_bytes(
    train: Callable[..., RunResult],
    die: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = train("whole")
    die(4)

    def settle_with_one(cut: Any, *arguments: Any, **options: Any) -> Any:
        return settle_memory(cut.checkpointed(1), *arguments, **options)

    monkeypatch.setattr(memory, "settle_memory", settle_with_one)
    assert digest(train()) == digest(whole)
    assert resumed_after(tmp_path / "run") == [2]
    assert record_of(tmp_path / "run")["checkpointed_blocks"] == 1
    assert record_of(tmp_path / "whole")["checkpointed_blocks"] == 0
