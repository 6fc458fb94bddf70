"""What the training loss says of the learning rate: each thing planted is found by its name alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loss_curves import (
    Curve,
    Line,
    Loss,
    falls,
    goes_straight,
    make_lines,
    random_healthy,
    settings_of,
    with_steps_down,
)

from llamafarm.findings.finding import Finding
from llamafarm.findings.history import History, Settings
from llamafarm.findings.learning import find_learning
from llamafarm.findings.overfitting import find_overfitting, gap_of
from llamafarm.findings.speed import Seconds
from llamafarm.training.watch import Watch

Found = Callable[..., list[Finding]]
NO_TIME = Seconds(0, 0, 0, 0, 0, 0, 0)
HEALTHY = falls(2.0, 1.2)


def rises(by: float, *, within: float = 0.1) -> Loss:
    return lambda way, epoch: 1.4 + by * min(1.0, way / within)


def comes_back(by: float, *, at: float = 0.7) -> Loss:
    return lambda way, epoch: HEALTHY(way, epoch) + (by if way > at else 0.0)


def both(loss: Loss, **others: Any) -> Curve:
    return Curve(loss, loss, **others)


def decays(way: float, epoch: float) -> float:
    return 1.2 + 1.6 * math.exp(-20 * way)


PLANTED = {
    "too high": ("learning-rate-too-high", both(rises(4))),
    "too high without warmup": ("learning-rate-too-high", both(rises(6, within=0.02), warmup_ratio=0.0)),
    "too high without evaluations": ("learning-rate-too-high", Curve(rises(1.5))),
    "diverged": ("divergence", both(comes_back(0.7))),
    "diverged without evaluations": ("divergence", Curve(comes_back(0.7), schedule="constant")),
    "a few spikes": ("loss-spikes", both(HEALTHY, spikes=dict.fromkeys((40, 70, 95, 120, 150, 180), 6.0))),
    "wild gradients": (
        "unstable-gradients",
        both(HEALTHY, grad_norms=lambda step: 50 if step % 12 == 0 else 1),
    ),
    "too low": ("learning-rate-too-low", both(goes_straight(2, 1.8))),
    "too low, and few steps": ("learning-rate-too-low", both(goes_straight(2, 1.8), num_steps=30)),
    "too low at a constant rate": ("learning-rate-too-low", both(goes_straight(2, 1.8), schedule="constant")),
    "so low that nothing moves": ("learning-rate-too-low", both(goes_straight(2, 2), num_steps=60)),
    "too low without evaluations": (
        "learning-rate-too-low",
        Curve(goes_straight(2, 1.7), num_steps=1000, num_epochs=1),
    ),
    "too low without evaluations, over epochs": (
        "learning-rate-too-low",
        Curve(goes_straight(2, 1.6), num_steps=1000, num_epochs=3),
    ),
    "nothing moves without evaluations": (
        "learning-rate-too-low",
        Curve(goes_straight(2, 2), num_steps=2000, num_epochs=1),
    ),
    "plateau": ("plateau", both(decays, schedule="constant", num_steps=400)),
    "plateau without evaluations": (
        "plateau",
        Curve(decays, schedule="constant", num_steps=400, num_epochs=1),
    ),
}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("name", "curve"), PLANTED.values(), ids=PLANTED.keys())
def test_what_is_planted_is_found_by_its_name_alone(found: Found, name: str, curve: Curve, seed: int) -> None:
    assert [finding.name for finding in found(replace(curve, seed=seed))] == [name]


@pytest.mark.parametrize("seed", range(0, 240, 20))
def test_healthy_runs_raise_no_warning_at_their_end_or_on_the_way(seed: int) -> None:
    raised = {}
    for number in range(seed, seed + 20):
        curve = random_healthy(number)
        said: list[Finding] = []
        watch = Watch(settings_of(curve), said.append)
        for line in make_lines(curve):
            watch.observe(line, NO_TIME, (None, 0))
        watch.conclude(NO_TIME, (None, 0))
        if names := [finding.name for finding in said if finding.level == "warning"]:
            raised[number] = names
    assert raised == {}


def test_the_healthy_runs_are_of_every_kind() -> None:
    curves = [random_healthy(number) for number in range(240)]
    assert {curve.schedule for curve in curves} == {"cosine", "linear", "constant"}
    assert {curve.num_epochs for curve in curves} == {1, 2, 3, 5}
    assert min(curve.num_steps for curve in curves) < 40 and max(curve.num_steps for curve in curves) > 4500
    assert 50 < sum(curve.eval_loss is None for curve in curves) < 120
    assert min(curve.learning_rate for curve in curves) < 2e-5
    assert max(curve.learning_rate for curve in curves) > 3e-4


@pytest.mark.parametrize("num_steps", [30, 100, 1000])
@pytest.mark.parametrize("has_evaluation", [True, False])
def test_a_chat_model_that_learns_a_little_is_healthy(
    found: Found, num_steps: int, has_evaluation: bool
) -> None:
    loss = falls(1.35, 1.15, bend=0.02)
    for seed in range(10):
        eval_loss = loss if has_evaluation else None
        curve = Curve(loss, eval_loss, num_steps, 1.0, noise=0.15, seed=seed)
        assert [finding for finding in found(curve) if finding.level == "warning"] == []


def test_steps_down_at_the_ends_of_epochs_are_no_sign_of_a_low_rate(found: Found) -> None:
    bent_early = with_steps_down(falls(1.35, 1.2, bend=0.01), 0.12)
    for seed in range(10):
        assert found(Curve(bent_early, None, 600, 4.0, schedule="linear", seed=seed)) == []


def test_a_single_spike_is_a_note_and_more_are_a_warning(found: Found) -> None:
    (one,) = found(both(HEALTHY, spikes={90: 6.0}))
    (more,) = found(both(HEALTHY, num_steps=140, spikes={60: 5.0, 90: 6.0, 120: 5.0}))
    assert (one.level, one.step, more.level, more.step) == ("note", 90, "warning", 90)
    assert one.seen.startswith("1 steps stand out, the worst is step 90 with a loss of 6.00 among 1.")
    assert more.seen.startswith("3 steps")


def test_a_rise_that_stays_is_no_row_of_spikes() -> None:
    curve = both(comes_back(2.0), schedule="constant", warmup_ratio=0.0)
    lines = make_lines(curve)
    for num_lines in range(20, len(lines), 3):
        found = find_learning(History(lines[:num_lines]), settings_of(curve))
        assert "loss-spikes" not in [finding.name for finding in found]


def test_steps_that_fp16_skips_to_find_its_scale_are_no_unstable_gradients(found: Found) -> None:
    skips = both(HEALTHY, num_steps=40, grad_norms=lambda step: math.inf if step in (1, 2, 4, 30) else 1.0)
    assert found(skips) == []
    assert found(replace(skips, grad_norms=lambda step: math.inf)) == []


def test_gradients_within_what_they_are_clipped_to_are_stable(found: Found) -> None:
    curve = both(HEALTHY, grad_norms=lambda step: 0.9 if step % 12 == 0 else 0.01)
    assert found(curve) == []
    assert [finding.name for finding in found(curve, max_grad_norm=0.5)] == ["unstable-gradients"]


def test_what_was_seen_has_the_numbers(found: Found) -> None:
    (high,) = found(both(rises(4), noise=0.0, learning_rate=0.02))
    assert high.seen.startswith("train_loss began at 1.4") and "and rose to 5.400 at step " in high.seen
    assert high.seen.endswith(", with a learning rate of 2.0e-02")
    assert high.remedy.startswith("training_args.learning_rate: 2e-03")
    (low,) = found(both(goes_straight(2, 1.8), noise=0.0, learning_rate=1e-6))
    assert low.seen == "the loss went from 2.000 to 1.800 in 200 steps, at learning rates up to 1.0e-06"
    assert low.remedy == "training_args.learning_rate: 1e-05"
    (diverged,) = found(both(comes_back(0.7), noise=0.0, learning_rate=3e-4))
    assert "had fallen to 1.2" in diverged.seen and "is 1.900 at step 200" in diverged.seen
    assert "learning_rate: 1e-04, max_grad_norm: 0.5" in diverged.remedy
    (wild,) = found(both(HEALTHY, grad_norms=lambda step: 50 if step % 10 == 0 else 1))
    assert wild.seen.startswith("in 10% of the steps") and wild.seen.endswith("up to 50")


@pytest.mark.parametrize(("rate", "remedy"), [(1e-5, "1e-04"), (1e-3, "5e-03"), (2e-2, "4e-02")])
def test_the_remedy_for_a_low_rate_is_a_higher_one(found: Found, rate: float, remedy: str) -> None:
    (low,) = found(both(goes_straight(2, 1.8), noise=0.0, learning_rate=rate))
    assert low.remedy == f"training_args.learning_rate: {remedy}"


@pytest.mark.parametrize(("name", "curve"), PLANTED.values(), ids=PLANTED.keys())
def test_every_remedy_names_settings_that_exist(
    found: Found, keys_of: Callable[[Finding], set[str]], name: str, curve: Curve
) -> None:
    for finding in found(replace(curve, seed=1)):
        assert keys_of(finding)


def test_nothing_is_said_of_a_curve_of_a_few_lines() -> None:
    curve = both(rises(6, within=0.01), num_steps=11, warmup_ratio=0.0)
    assert find_learning(History(make_lines(curve)), settings_of(curve)) == []


def test_a_low_rate_and_a_plateau_are_not_said_in_the_first_half() -> None:
    for curve in (both(goes_straight(2, 1.8)), both(decays, schedule="constant")):
        lines = [line for line in make_lines(curve) if line["step"] < curve.num_steps / 2]
        assert find_learning(History(lines), settings_of(curve)) == []


def test_evaluations_of_another_kind_are_not_asked(found: Found) -> None:
    curve = Curve(HEALTHY, lambda way, epoch: 2.5, num_evaluations=8)
    history = History(make_lines(curve))
    trusting, doubting = (
        find_learning(history, settings_of(curve), trusts_evaluations=trusts) for trusts in (True, False)
    )
    assert doubting == []
    assert [finding.name for finding in trusting] == []


NUMBERS = st.one_of(
    st.none(), st.floats(), st.sampled_from([0.0, math.inf, -math.inf, math.nan, 1e308, -1e308, 1e-320, 1.0])
)
LINES = st.fixed_dictionaries(
    {
        "step": st.integers(0, 10**6),
        "epoch": st.floats(0, 1e4),
        "train_loss": NUMBERS,
        "eval_loss": NUMBERS,
        "learning_rate": NUMBERS,
        "grad_norm": NUMBERS,
        "supervised_tokens": st.none() | st.integers(0, 10**12),
    }
)
SETTINGS = st.builds(
    Settings,
    num_steps=st.integers(1, 10**6),
    steps_per_epoch=st.integers(1, 10**5),
    learning_rate=st.floats(1e-12, 1e3),
    num_epochs=st.floats(0.01, 1e4),
    max_grad_norm=st.floats(0, 1e6),
    keeps_best=st.booleans(),
    stops_early=st.booleans(),
    num_eval_rows=st.integers(0, 10),
    num_leaked_rows=st.integers(0, 10),
)


def check_without_warnings(lines: list[Line], chosen: Settings) -> None:
    """Find what there is, with every warning and every step out of the finite an error."""
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        history = History(lines)
        gap_of(history)
        for trusts in (True, False):
            for finding in find_learning(history, chosen, trusts_evaluations=trusts):
                assert "nan" not in finding.as_line()
        for finding in find_overfitting(history, chosen):
            assert "nan" not in finding.as_line()


@given(st.lists(LINES, max_size=3) | st.lists(LINES, min_size=24, max_size=40), SETTINGS)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_figures_make_it_fail(lines: list[Line], chosen: Settings) -> None:
    check_without_warnings(lines, chosen)


@given(st.integers(1, 60), NUMBERS, NUMBERS, st.sampled_from(["all 0", "all 5", "rising"]), SETTINGS)
@settings(max_examples=120, deadline=None)
def test_the_same_figures_at_every_step_do_not_make_it_fail(
    num_lines: int, loss: float | None, eval_loss: float | None, steps: str, chosen: Settings
) -> None:
    step_of = {"all 0": lambda number: 0, "all 5": lambda number: 5, "rising": lambda number: number}[steps]
    lines = [
        {
            "step": step_of(number),
            "epoch": number / 10,
            "train_loss": loss,
            "eval_loss": eval_loss if number % 3 == 0 else None,
            "learning_rate": 1e-4,
            "grad_norm": loss,
            "supervised_tokens": 5,
        }
        for number in range(num_lines)
    ]
    check_without_warnings(lines, chosen)
