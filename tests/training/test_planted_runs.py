"""Real runs of the embedded model: what is planted is found by its name alone; health raises no alarm.

Minutes in all, so that they are slow tests.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import planted_runs as plant
import pytest

from llamafarm import terminal
from llamafarm.training.run import run_training

pytestmark = pytest.mark.slow

Row = dict[str, str]
MEDICAL = Path(__file__).parents[2] / "demos" / "datasets" / "medical"


def read(name: str) -> list[Row]:
    lines = (MEDICAL / f"medical_qa_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    return rows


def chance(num_rows: int, seed: int) -> list[Row]:
    return plant.make_rows(plant.chance_row, num_rows, seed)


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., set[tuple[str, str]]]:
    """Return a function that runs a strategy and returns level and name of all that is found."""
    monkeypatch.setattr(terminal.mode, "is_quiet", True)

    def run(rows: list[Row], eval_rows: list[Row] | None, **settings: Any) -> set[tuple[str, str]]:
        run_training(plant.load(tmp_path, rows, eval_rows, **settings))
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
        return {(one["level"], one["name"]) for one in record["findings"] + evaluation["findings"]}

    return run


def test_evaluation_rows_that_are_training_rows(found: Callable[..., Any]) -> None:
    rows = read("train")
    assert found(rows[:320], rows[:60]) == {("warning", "leaked-evaluation-rows")}


def test_rows_that_can_only_be_learnt_by_heart(found: Callable[..., Any]) -> None:
    settings = {"training_args__num_train_epochs": 40, "training_args__learning_rate": 0.004}
    assert found(chance(32, 1), chance(30, 2), **settings) == {("warning", "memorised")}


@pytest.mark.parametrize("has_evaluation", [True, False])
def test_a_learning_rate_100_times_too_high(found: Callable[..., Any], has_evaluation: bool) -> None:
    eval_rows = read("eval")[:60] if has_evaluation else None
    names = found(read("train")[:480], eval_rows, training_args__learning_rate=0.2)
    assert names == {("warning", "learning-rate-too-high")}


def test_a_learning_rate_100_times_too_low(found: Callable[..., Any]) -> None:
    names = found(read("train")[:480], read("eval")[:60], training_args__learning_rate=0.00002)
    assert names == {("warning", "learning-rate-too-low")}


def test_a_learning_rate_too_low_by_the_training_loss_alone(found: Callable[..., Any]) -> None:
    # Each step has other rows, so that it takes more of them and a lower rate to be sure.
    settings = {"training_args__learning_rate": 0.00001, "training_args__num_train_epochs": 3}
    assert found(read("train"), None, **settings) == {("warning", "learning-rate-too-low")}


def test_a_loss_that_falls_to_what_chance_leaves_and_stays_there(found: Callable[..., Any]) -> None:
    settings = {"training_args__num_train_epochs": 1, "training_args__lr_scheduler_type": "constant"}
    assert found(chance(600, 1), chance(40, 2), **settings) == {("note", "plateau")}


def test_evaluation_rows_of_another_kind(found: Callable[..., Any]) -> None:
    rows = plant.make_rows(plant.symptom_row, 400, 1)
    assert found(rows, read("held_out")[:60]) == {("warning", "evaluation-drift")}


def with_answers(rows: list[Row], change: Callable[[str], str]) -> list[Row]:
    return [{**row, "output": change(row["output"])} for row in rows]


def test_a_model_that_loops(found: Callable[..., Any]) -> None:
    looping = with_answers(read("train")[:480], lambda answer: " ".join([answer] * 6))
    settings = {"generation__max_new_tokens": 100, "training_args__eval_strategy": "no"}
    assert found(looping, read("eval")[:60], **settings) == {("warning", "repetitive-output")}


def test_a_model_that_never_stops(found: Callable[..., Any]) -> None:
    rows = read("train")
    going_on = with_answers(
        rows[:480], lambda answer: " ".join([answer, *(row["output"] for row in random.sample(rows, 8))])
    )
    settings = {"generation__max_new_tokens": 40, "training_args__eval_strategy": "no"}
    assert found(going_on, read("eval")[:60], **settings) == {("warning", "never-stops")}


def test_a_model_that_forgets(found: Callable[..., Any], tmp_path: Path) -> None:
    known = tmp_path / "known.txt"
    known.write_text("\n".join(row["output"] for row in read("held_out")), encoding="utf-8")
    rows, eval_rows = (plant.make_rows(plant.reverse_row, size, seed) for size, seed in ((640, 1), (50, 2)))
    settings = {"training_args__learning_rate": 0.006, "training_args__num_train_epochs": 3}
    names = found(rows, eval_rows, monitoring__general_file=str(known), **settings)
    assert names == {("warning", "forgot")}


@dataclass
class Healthy:
    name: str
    rows: Callable[[], list[Row]]
    eval_rows: Callable[[], list[Row] | None]
    settings: dict[str, Any] = field(default_factory=dict)


def of_kind(kind: Callable[[random.Random], Row], **settings: Any) -> Healthy:
    return Healthy(
        kind.__name__,
        lambda: plant.make_rows(kind, 480, 1),
        lambda: plant.make_rows(kind, 50, 2),
        {"training_args__learning_rate": 0.004, **settings},
    )


def medical(
    name: str, start: int = 0, num_rows: int = 480, *, evaluates: bool = True, **settings: Any
) -> Healthy:
    return Healthy(
        name,
        lambda: read("train")[start : start + num_rows],
        lambda: read("eval")[:60] if evaluates else None,
        settings,
    )


HEALTHY = [
    *(of_kind(kind) for kind in plant.KINDS if kind is not plant.json_row),
    # Spelt letter by letter: it takes longer. After ten epochs some answers still have no end, by rounding.
    of_kind(plant.json_row, training_args__num_train_epochs=20),
    medical("medical"),
    medical("other rows", 400),
    medical("without evaluation", evaluates=False),
    medical("a split", evaluates=False, dataset__eval_split=0.1),
    medical(
        "all weights",
        method__type="full_finetune",
        training_args__learning_rate=0.0005,
        **dict.fromkeys(("method__r", "method__alpha", "method__dropout", "method__target_modules")),
    ),
    medical("DoRA", 200, method__use_dora=True),
    medical("a constant rate", 100, training_args__lr_scheduler_type="constant"),
    medical("one epoch", 300, 600, training_args__num_train_epochs=1),
    medical("larger steps", 0, 640, training_args__gradient_accumulation_steps=2),
    medical("dropout", 50, method__dropout=0.1, training_args__num_train_epochs=3),
    medical("many evaluations", 0, training_args__eval_steps=10),
]


@pytest.mark.parametrize("healthy", HEALTHY, ids=[healthy.name for healthy in HEALTHY])
def test_a_healthy_run_raises_no_alarm(found: Callable[..., Any], healthy: Healthy) -> None:
    names = found(healthy.rows(), healthy.eval_rows(), **healthy.settings)
    assert not {name for level, name in names if level == "warning"}


def test_twenty_healthy_runs_are_tried() -> None:
    assert len(HEALTHY) == 20
