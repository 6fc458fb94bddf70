"""Too little memory, and steps without a finite loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llamafarm.errors import MachineError, NonFiniteError
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training.recovery import Cut, MemoryRecovery, SkippedSteps
from llamafarm.training.run import run_training


def starved(num_times: int, error: Exception | None = None) -> Callable[[], str]:
    """Return work that runs out of memory so many times."""
    left = [error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")] * num_times

    def work() -> str:
        if left:
            raise left.pop()
        return "done"

    return work


def recovery_of(pack_tokens: int, *, can_checkpoint: bool = False) -> MemoryRecovery:
    answers = [can_checkpoint]
    return MemoryRecovery(pack_tokens, "cpu", lambda: answers.pop() if answers else False)


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


def test_at_a_single_row_activations_are_computed_again() -> None:
    memory = recovery_of(100, can_checkpoint=True)
    assert memory.attempt(starved(1), lambda: Cut(80, 1), step=3, what="training") == "done"
    assert memory.pack_tokens == 100
    assert memory.events[0]["how"] == "gradient checkpointing"


def test_where_nothing_is_left_to_try_the_error_says_what_to_change() -> None:
    memory = recovery_of(100, can_checkpoint=True)
    with pytest.raises(MachineError, match="single row of 80 tokens") as caught:
        memory.attempt(starved(3), lambda: Cut(80, 1), step=3, what="training")
    assert caught.value.where == "training, step 3"
    assert "max_length" in caught.value.remedy
    assert len(memory.events) == 1


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
