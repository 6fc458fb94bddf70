"""Too little memory, and steps without a finite loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llamafarm.errors import MachineError, NonFiniteError
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training.recovery import Cut, MemoryRecovery, Remedy, SkippedSteps
from llamafarm.training.run import run_training


def starved(num_times: int, error: Exception | None = None) -> Callable[[], str]:
    """Return work that runs out of memory so many times."""
    left = [error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")] * num_times

    def work() -> str:
        if left:
            raise left.pop()
        return "done"

    return work


def recovery_of(pack_tokens: int, *remedies: str) -> MemoryRecovery:
    """Return a recovery with remedies of these names, each of which is new once."""

    def remedy(name: str) -> Remedy:
        is_new = [True]
        return Remedy(name, lambda: bool(is_new) and is_new.pop())

    return MemoryRecovery(pack_tokens, "cpu", [remedy(name) for name in remedies])


def test_work_that_fits_is_done_once_and_nothing_is_noted() -> None:
    memory = recovery_of(100)
    assert memory.attempt(starved(0), lambda: Cut(80, 4), step=1, what="training") == "done"
    assert (memory.pack_tokens, memory.events) == (100, [])


def test_packs_are_halved_from_what_they_were_until_the_work_fits() -> None:
    memory = recovery_of(1000)
    assert (
        memory.attempt(starved(2), lambda: Cut(min(80, memory.pack_tokens), 4), step=7, what="training")
        == "done"
    )
    assert memory.pack_tokens == 20
    assert [(event["step"], event["what"], event["pack_tokens"]) for event in memory.events] == [
        (7, "training", 40),
        (7, "training", 20),
    ]


def test_what_was_learnt_holds_for_the_steps_after() -> None:
    memory = recovery_of(100)
    memory.attempt(starved(1), lambda: Cut(80, 4), step=1, what="training")
    memory.attempt(starved(1), lambda: Cut(40, 2), step=2, what="evaluation")
    assert memory.pack_tokens == 20


def test_at_a_single_row_remedies_are_started_in_their_order_and_no_more_than_it_takes() -> None:
    memory = recovery_of(100, "first", "second", "third")
    assert memory.attempt(starved(2), lambda: Cut(80, 1), step=3, what="training") == "done"
    assert memory.pack_tokens == 100
    assert [event["how"] for event in memory.events] == ["first", "second"]
    memory.attempt(starved(1), lambda: Cut(80, 1), step=4, what="training")
    assert memory.events[-1] == {"step": 4, "what": "training", "pack_tokens": 100, "how": "third"}


def test_a_remedy_that_is_of_no_use_here_is_passed_over() -> None:
    remedies = [Remedy("in vain", lambda: False), Remedy("of use", lambda: True)]
    memory = MemoryRecovery(100, "cpu", remedies)
    memory.attempt(starved(1), lambda: Cut(80, 1), step=3, what="training")
    assert [event["how"] for event in memory.events] == ["of use"]


def test_where_nothing_is_left_to_try_the_error_says_what_was_tried_and_what_to_change() -> None:
    memory = recovery_of(100, "first", "second")
    with pytest.raises(
        MachineError, match="single row of 80 tokens, even with first and second: CUDA"
    ) as caught:
        memory.attempt(starved(4), lambda: Cut(80, 1), step=3, what="training")
    assert caught.value.where == "training, step 3"
    assert "max_length" in caught.value.remedy
    assert len(memory.events) == 2
    with pytest.raises(MachineError, match="single row of 80 tokens: CUDA"):
        recovery_of(100).attempt(starved(1), lambda: Cut(80, 1), step=3, what="training")


def test_what_an_earlier_part_of_the_run_had_learnt_holds_again() -> None:
    learnt = recovery_of(100, "first", "second", "third")
    learnt.attempt(starved(1), lambda: Cut(80, 4), step=1, what="training")
    learnt.attempt(starved(2), lambda: Cut(40, 1), step=2, what="training")
    memory = recovery_of(1000, "first", "second", "third")
    memory.restore(learnt.pack_tokens, learnt.events)
    assert (memory.pack_tokens, memory.events) == (40, learnt.events)
    with pytest.raises(MachineError, match="even with first and second and third"):
        memory.attempt(starved(2), lambda: Cut(40, 1), step=3, what="training")
    assert [event["how"] for event in memory.events[3:]] == ["third"]
    smaller = recovery_of(20)
    smaller.restore(learnt.pack_tokens, learnt.events)
    assert smaller.pack_tokens == 20


def test_other_errors_are_not_tried_again() -> None:
    memory = recovery_of(100)
    with pytest.raises(ValueError, match="mine"):
        memory.attempt(starved(1, ValueError("mine")), lambda: Cut(80, 4), step=1, what="training")
    assert memory.events == []


def nonfinite() -> NonFiniteError:
    return NonFiniteError("the loss is nan", where="step 3", remedy="Lower it.")


def test_a_step_without_a_finite_loss_ends_the_run_unless_it_may_be_skipped() -> None:
    with pytest.raises(NonFiniteError):
        SkippedSteps(False, 1000).take_in(3, nonfinite())
    skipped = SkippedSteps(True, 1000)
    skipped.take_in(3, nonfinite())
    assert skipped.steps == [3]


@pytest.mark.parametrize(("num_steps", "most"), [(10, 10), (1000, 10), (5000, 50)])
def test_no_more_than_a_few_are_skipped(num_steps: int, most: int) -> None:
    skipped = SkippedSteps(True, num_steps)
    for step in range(most):
        skipped.take_in(step, nonfinite())
    with pytest.raises(NonFiniteError, match=f"{most + 1} steps .* more than may be skipped"):
        skipped.take_in(most, nonfinite())


def test_on_nonfinite_says_whether_a_step_is_skipped(
    load: Callable[..., LoadedStrategy],
    make_rows: Callable[..., list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from llamafarm.model.forward import PackedForward

    sum_loss = PackedForward.sum_loss
    calls: list[int] = []

    def spoil(*arguments: Any) -> torch.Tensor:
        calls.append(0)
        return sum_loss(*arguments) * (float("inf") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(PackedForward, "sum_loss", spoil)
    with pytest.raises(NonFiniteError) as caught:
        run_training(load(make_rows(12), output="stopped"))
    assert caught.value.where.startswith("step 2, rows ")
    calls.clear()
    # The mean of a line is over the steps that were taken.
    settings = {"training_args__on_nonfinite": "skip", "training_args__logging_steps": 3}
    result = run_training(load(make_rows(12), output="skipped", **settings))
    assert result.num_steps == 3
    assert 0 < result.train_loss < 20


@pytest.fixture
def train(
    load: Callable[..., LoadedStrategy],
    make_rows: Callable[..., list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., bytes]:
    """Train on single rows, with so many errors in a row from the second step on; return the adapter."""
    from llamafarm.model.forward import PackedForward
    from llamafarm.training.preparation import memory

    monkeypatch.setattr(memory, "choose_pack_tokens", lambda kind: 1)
    sum_loss = PackedForward.sum_loss

    def train_starved(output: str, num_errors: int) -> bytes:
        work, num_calls = starved(num_errors), 0

        def starve(*arguments: Any) -> torch.Tensor:
            nonlocal num_calls
            num_calls += 1
            if num_calls > 4:  # the rows of the first step
                work()
            return sum_loss(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(PackedForward, "sum_loss", starve)
            result = run_training(load(make_rows(12), output=output, method__dropout=0.2))
        return (result.final_model / "adapter_model.safetensors").read_bytes()

    return train_starved


@pytest.fixture
def offloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are copied as if the processor had a memory of its own."""
    from llamafarm.training import offload

    monkeypatch.setattr(offload, "_KINDS_WITH_OWN_MEMORY", ("cpu",))
    monkeypatch.setattr(offload, "_LEAST_BYTES", 1)


@pytest.mark.usefixtures("offloads")
def test_a_run_that_needs_every_remedy_ends_with_the_bytes_of_one_that_needs_none(
    train: Callable[..., bytes], tmp_path: Path
) -> None:
    assert train("starved", 2) == train("whole", 0)
    events = json.loads((tmp_path / "starved" / "run.json").read_text())["out_of_memory"]
    assert [(event["step"], event["how"]) for event in events] == [
        (2, "gradient checkpointing of all blocks"),
        (2, "activations in main memory"),
    ]
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["out_of_memory"] == []


@pytest.mark.usefixtures("offloads")
def test_a_run_that_no_remedy_helps_names_them_all(train: Callable[..., bytes]) -> None:
    with pytest.raises(
        MachineError, match="even with gradient checkpointing of all blocks and activations in main memory:"
    ):
        train("starved", 3)


def test_a_run_on_a_processor_does_not_copy_its_memory_into_itself(train: Callable[..., bytes]) -> None:
    with pytest.raises(MachineError, match="even with gradient checkpointing of all blocks: "):
        train("starved", 2)
