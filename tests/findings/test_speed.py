"""Where a run's time goes: each share is found above its threshold, and nothing below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.findings.finding import Finding
from llamafarm.findings.speed import LEAST_UTILIZATION, Seconds, find_slowness

KeysOf = Callable[[Finding], set[str]]
USUAL = Seconds(
    steps=1000, data=20, evaluations=100, saves=20, num_evaluations=10, num_saves=10, num_steps=500
)


def test_a_usual_run_has_no_findings() -> None:
    assert find_slowness(USUAL) == []
    assert find_slowness(USUAL, 0.95, 200) == []


@pytest.mark.parametrize(
    ("seconds", "name", "seen", "remedy"),
    [
        (
            replace(USUAL, data=150),
            "slow-data",
            "15% of the steps' time (150 s)",
            "data_preprocessing.cache_dir: ",
        ),
        (
            replace(USUAL, evaluations=500),
            "evaluation-overhead",
            "33% of the time (500 s) went into 10 evaluations",
            # 50 s each, and 0.2 s a tenth of a step: as rare as every 250 steps.
            "training_args.eval_strategy: steps with eval_steps: 250",
        ),
        (
            replace(USUAL, saves=200),
            "checkpoint-overhead",
            "15% of the time (200 s) went into 10 checkpoints",
            "training_args.save_strategy: steps with save_steps: 334",
        ),
    ],
    ids=["data", "evaluations", "saves"],
)
def test_what_takes_too_much_is_found_by_its_name_alone(
    seconds: Seconds, name: str, seen: str, remedy: str, keys_of: KeysOf
) -> None:
    (finding,) = find_slowness(seconds)
    assert (finding.name, finding.level, finding.step) == (name, "warning", None)
    assert seen in finding.seen
    assert finding.remedy.startswith(remedy)
    assert keys_of(finding)


def test_the_remedy_keeps_what_it_promises() -> None:
    (finding,) = find_slowness(replace(USUAL, evaluations=500))
    steps = int(finding.remedy.split("eval_steps: ")[1].split(",")[0])
    after = replace(USUAL, evaluations=50 * (500 // steps), num_evaluations=500 // steps)
    assert find_slowness(after) == []


def test_thresholds_are_not_exceeded_by_meeting_them() -> None:
    assert find_slowness(replace(USUAL, data=100)) == []
    assert find_slowness(Seconds(750, 0, 250, 0, 5, 0, 100)) == []
    assert find_slowness(Seconds(900, 0, 0, 100, 0, 5, 100)) == []
    assert find_slowness(USUAL, LEAST_UTILIZATION, 50) == []


def test_the_guide_wants_a_gpu_busy_80_percent_of_the_time() -> None:
    assert LEAST_UTILIZATION == 0.8


@pytest.mark.parametrize(
    ("seconds", "cause", "key"),
    [
        (USUAL, "evaluations and checkpoints come often", "training_args.eval_steps"),
        (replace(USUAL, data=80), "it waits for data", "data_preprocessing.cache_dir"),
        (
            replace(USUAL, evaluations=10),
            "a step has too little work",
            "training_args.per_device_train_batch_size",
        ),
    ],
    ids=["evaluations", "data", "small steps"],
)
def test_an_idle_gpu_is_found_with_its_cause(seconds: Seconds, cause: str, key: str, keys_of: KeysOf) -> None:
    (finding,) = find_slowness(seconds, 0.42, 50)
    assert (finding.name, finding.seen) == ("idle-gpu", "the GPU was busy 42% of the time")
    assert cause in finding.meaning and key in keys_of(finding)


def test_a_few_samples_or_seconds_say_nothing() -> None:
    assert find_slowness(USUAL, 0.1, 9) == []
    assert find_slowness(Seconds(10, 9, 15, 4, 9, 9, 10), 0.1, 50) == []


def test_one_evaluation_or_checkpoint_cannot_come_too_often() -> None:
    assert find_slowness(Seconds(50, 0, 50, 50, 1, 1, 10)) == []


AMOUNTS = st.floats(0, 1e9)


@given(AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), AMOUNTS)
def test_no_figures_make_it_fail(
    steps: float,
    data: float,
    evaluations: float,
    saves: float,
    num_evaluations: int,
    num_saves: int,
    num_steps: int,
    utilization: float,
) -> None:
    seconds = Seconds(steps, data, evaluations, saves, num_evaluations, num_saves, num_steps)
    for finding in find_slowness(seconds, utilization, 20):
        assert finding.as_line()
