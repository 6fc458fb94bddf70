"""Going on with a run that ran out of memory on its way: what it learnt holds again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resumed_runs import digest, record_of, resumed_after

from llamafarm.model.forward import PackedForward
from llamafarm.training import offload
from llamafarm.training.offload import HostCopies
from llamafarm.training.preparation import memory
from llamafarm.training.result import RunResult

Train = Callable[..., RunResult]
HOWS = ["gradient checkpointing of all blocks", "activations in main memory"]


class Starved:
    """Raises so many errors from the next pass on, and notes which remedies the others ran with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_errors = 0
        self.checkpoints: set[bool] = set()
        self.num_copied = 0
        sum_loss, pack = PackedForward.sum_loss, HostCopies.pack

        def starve(packed: PackedForward, one: Any) -> torch.Tensor:
            if self.num_errors:
                self.num_errors -= 1
                raise torch.OutOfMemoryError("out of memory, as if")
            modules = packed.model.modules()
            self.checkpoints.add(any(getattr(module, "gradient_checkpointing", False) for module in modules))
            return sum_loss(packed, one)

        def count(copies: HostCopies, tensor: torch.Tensor) -> Any:
            self.num_copied += 1
            return pack(copies, tensor)

        monkeypatch.setattr(PackedForward, "sum_loss", starve)
        monkeypatch.setattr(HostCopies, "pack", count)


def test_remedies_hold_again_and_are_not_learnt_twice(
    train: Train, die: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "choose_pack_tokens", lambda kind: 1)
    monkeypatch.setattr(offload, "_KINDS_WITH_OWN_MEMORY", ("cpu",))
    monkeypatch.setattr(offload, "_LEAST_BYTES", 1)
    seen = Starved(monkeypatch)
    whole = train("whole")
    assert (seen.checkpoints, seen.num_copied) == ({False}, 0)
    seen.num_errors = 2
    die(4)
    seen.checkpoints.clear()
    seen.num_copied = 0
    assert digest(train()) == digest(whole)
    assert resumed_after(tmp_path / "run") == [2]
    assert seen.checkpoints == {True}
    assert seen.num_copied
    assert [event["how"] for event in record_of(tmp_path / "run")["out_of_memory"]] == HOWS


def test_where_a_remedy_is_of_no_use_the_run_goes_on_without_it(
    train: Train, die: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "choose_pack_tokens", lambda kind: 1)
    seen = Starved(monkeypatch)
    seen.num_errors = 2
    with monkeypatch.context() as patch:
        patch.setattr(offload, "_KINDS_WITH_OWN_MEMORY", ("cpu",))
        die(4)
    assert seen.num_copied
    seen.num_copied = 0
    train()
    assert seen.num_copied == 0
    assert [event["how"] for event in record_of(tmp_path / "run")["out_of_memory"]] == HOWS
