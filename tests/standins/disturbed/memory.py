"""Too little memory, and numbers that are not finite, in every part of a step."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from disturbed.arena import Arena, Disturbance, Findings, outcome_of, record_of
from disturbed.witness import put
from llamafarm.model.forward import PackedForward
from llamafarm.training import session
from llamafarm.training.session import Session

_FEW = 1e-4
PLACES = ("forward", "backward", "optimizer", "evaluation")


def run_out_of_memory(arena: Arena, num_tries: int) -> Findings:
    """Raise `OutOfMemoryError` in each part of a step, once or twice in a row; compare rows and loss."""
    found = Findings("memory")
    run = arena.make()
    assert arena.start(run, disturbance=_noting_rows(run)).end().exit_code == 0
    rows, loss = _rows_of(run), _last_loss(run)
    arena.forget(run)
    for index in range(num_tries):
        place, num_times = PLACES[index % len(PLACES)], 1 + (index // len(PLACES)) % 2
        step = arena.draw.randint(1, 39)
        run = arena.make()
        end = arena.start(run, disturbance=_starving(run, place, step, num_times)).end()
        found.num_tried += 1
        found.add(place)
        problem = None
        if end.exit_code:
            problem = str(end)
        elif len(record_of(run)["out_of_memory"]) != num_times:
            problem = f"events: {record_of(run)['out_of_memory']}"
        elif _rows_of(run) != rows:
            problem = "other rows were seen"
        else:
            off = abs(_last_loss(run) / loss - 1)
            found.figures["furthest off"] = max(found.figures.get("furthest off", 0.0), off)
            problem = f"the loss is off by {off:.1e}" if off > _FEW else None
        if problem:
            found.failures.append(f"{place}, step {step}, {num_times} times: {problem}")
        arena.forget(run)
    return found


def meet_nonfinite_numbers(arena: Arena, num_tries: int) -> Findings:
    """Make a loss or a gradient not finite, with each `on_nonfinite`; the weights must not have moved."""
    found = Findings("nan")
    for index in range(num_tries):
        answer, spoilt = ("stop", "skip")[index % 2], ("loss", "gradient")[index // 2 % 2]
        value = (math.nan, math.inf, -math.inf)[index % 3]
        step = arena.draw.randint(1, 39)
        run = arena.make(training_args__on_nonfinite=answer)
        disturbance = _spoiling(run, spoilt, value, step)
        end = arena.start(run, disturbance=disturbance).end()
        found.num_tried += 1
        found.add(f"{spoilt}, {answer}")
        problem = _judge_nonfinite(arena, run, end.exit_code, answer, step) or _movement(run)
        if problem:
            found.failures.append(f"{spoilt} {value} at step {step}, {answer}: {problem}: {end}")
        arena.forget(run)
    return found


def _judge_nonfinite(arena: Arena, run: Path, exit_code: int, answer: str, step: int) -> str | None:
    if answer == "skip":
        if exit_code:
            return f"exit code {exit_code}"
        skipped = record_of(run)["skipped_steps"]
        is_null = json.loads(outcome_of(run).metrics[step])["train_loss"] is None
        return None if skipped == [step] and is_null else f"skipped {skipped}"
    if exit_code != 3:
        return f"exit code {exit_code}"
    again = arena.finish(run)
    return str(again) if again.exit_code else arena.difference(run)


def _starving(run: Path, place: str, step: int, num_times: int) -> Disturbance:
    left = num_times
    now = 0

    def starve(if_here: bool) -> None:
        nonlocal left
        if if_here and now >= step and left:
            left -= 1
            raise torch.OutOfMemoryError("out of memory, as if")

    def before(owner: Any, name: str, here: str) -> None:
        function = getattr(owner, name)

        def starved(*arguments: Any, **options: Any) -> Any:
            if here != "backward":
                starve(here == place)
                return function(*arguments, **options)
            result = function(*arguments, **options)
            starve(here == place)  # gradients are there by then
            return result

        put(owner, name, starved)

    def disturb() -> None:
        _noting_rows(run)()
        before(PackedForward, "sum_loss", "forward")
        before(torch.Tensor, "backward", "backward")
        before(torch.optim.AdamW, "step", "optimizer")
        before(session, "measure_losses", "evaluation")
        take_step = Session.take_step

        def counted(one: Session, number: int, rows: Any) -> Any:
            nonlocal now
            now = number
            return take_step(one, number, rows)

        put(Session, "take_step", counted)

    return disturb


def _spoiling(run: Path, spoilt: str, value: float, step: int) -> Disturbance:
    def disturb() -> None:
        take_step, sum_loss = Session.take_step, PackedForward.sum_loss
        now = 0

        def seen(one: Session, number: int, rows: Any) -> Any:
            nonlocal now
            now = number
            before = _digest(one)
            try:
                return take_step(one, number, rows)
            finally:
                if number == step:
                    (run.parent / "moved.json").write_text(json.dumps([before, _digest(one)]))

        def spoil(*arguments: Any) -> torch.Tensor:
            loss = sum_loss(*arguments)
            if now != step:
                return loss
            if spoilt == "loss":
                return loss * value
            loss.register_hook(lambda gradient: gradient * value)  # type: ignore[no-untyped-call]
            return loss

        put(Session, "take_step", seen)
        put(PackedForward, "sum_loss", spoil)

    return disturb


def _movement(run: Path) -> str | None:
    before, after = json.loads((run.parent / "moved.json").read_text())
    return None if before == after else "the weights have moved"


def _digest(one: Session) -> str:
    """Return the SHA-256 of the trained weights and of what the optimizer holds."""
    digest = hashlib.sha256()
    for parameter in one._model.parameters():
        if parameter.requires_grad:
            digest.update(parameter.detach().numpy().tobytes())
            for tensor in one._optimizer.state.get(parameter, {}).values():
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _noting_rows(run: Path) -> Callable[[], None]:
    def disturb() -> None:
        take_step = Session.take_step

        def noted(one: Session, number: int, rows: Any) -> Any:
            with (run.parent / "rows.jsonl").open("a") as file:
                file.write(json.dumps([number, list(rows)]) + "\n")
            return take_step(one, number, rows)

        put(Session, "take_step", noted)

    return disturb


def _rows_of(run: Path) -> str:
    return (run.parent / "rows.jsonl").read_text()


def _last_loss(run: Path) -> float:
    loss: float = record_of(run)["result"]["train_loss"]
    return loss
