"""The guide's overfitting indicators, drift and leaks: found where planted, and at their thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from loss_curves import Curve, Loss, falls, make_lines, settings_of, with_steps_down

from llamafarm.findings.finding import Finding
from llamafarm.findings.history import History
from llamafarm.findings.overfitting import LARGEST_GAP, find_overfitting, gap_of

Found = Callable[..., list[Finding]]
HEALTHY = falls(2.0, 1.2)
OTHER_KIND = falls(2.5, 2.4)


def turns(by: float) -> Loss:
    """Return an evaluation loss that rises by so much with each epoch after the first."""
    return lambda way, epoch: HEALTHY(min(way, 0.4), epoch) + by * max(0.0, epoch - 1)


def to_nothing(way: float, epoch: float) -> float:
    return 2 * math.exp(-6 * way)


def to_a_floor(way: float, epoch: float) -> float:
    return 1.6 + 0.4 * math.exp(-9 * way)


GAP = Curve(with_steps_down(HEALTHY, 0.35), HEALTHY, num_epochs=3)
DEGRADES = Curve(with_steps_down(HEALTHY, 0.15), turns(0.15), num_epochs=3)
PLANTED = {
    "overfitting-gap": GAP,
    "evaluation-degradation": DEGRADES,
    "memorised": Curve(to_nothing, to_a_floor, num_epochs=10, noise=0.03),
    "evaluation-drift": Curve(falls(2.0, 1.0), OTHER_KIND, num_epochs=2),
}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("name", "curve"), PLANTED.items(), ids=PLANTED.keys())
def test_what_is_planted_is_found_by_its_name_alone(found: Found, name: str, curve: Curve, seed: int) -> None:
    (finding,) = found(replace(curve, seed=seed))
    assert (finding.name, finding.level) == (name, "warning")


@pytest.mark.parametrize(("name", "curve"), PLANTED.items(), ids=PLANTED.keys())
def test_every_remedy_names_settings_that_exist(
    found: Found, keys_of: Callable[[Finding], set[str]], name: str, curve: Curve
) -> None:
    for finding in found(curve):
        assert keys_of(finding)


def test_the_gap_is_the_guides(found: Found) -> None:
    assert LARGEST_GAP == 0.5

    def gap_by(size: float) -> Curve:
        falls_behind = with_steps_down(lambda way, epoch: 1.5, size)
        return Curve(falls_behind, lambda way, epoch: 1.5, num_epochs=2, noise=0.0)

    assert found(gap_by(0.48)) == []
    (gap,) = found(gap_by(0.52))
    assert gap.seen == "eval_loss is 1.500, 0.52 above train_loss"
    assert gap.name == "overfitting-gap" and gap.step == 200
    assert gap_of(History(make_lines(gap_by(0.52)))) == pytest.approx(0.52)


def test_a_gap_that_was_there_in_the_first_epoch_is_not_overfitting(found: Found) -> None:
    loss = falls(2.0, 1.2)
    harder = Curve(loss, lambda way, epoch: loss(way, epoch) + 0.7, num_epochs=3)
    assert found(harder) == []


def test_a_single_epoch_cannot_overfit(found: Found) -> None:
    loss = falls(2.0, 1.2)
    assert found(Curve(loss, lambda way, epoch: loss(way, epoch) + 0.6, num_epochs=1)) == []


@pytest.mark.parametrize(("by", "level"), [(0.04, "note"), (0.12, "warning")])
def test_a_small_rise_of_the_evaluation_is_a_note(found: Found, by: float, level: str) -> None:
    (finding,) = found(replace(DEGRADES, eval_loss=turns(by)))
    assert (finding.name, finding.level) == ("evaluation-degradation", level)


def test_where_the_best_model_is_kept_a_rise_is_a_note(found: Found) -> None:
    (kept,) = found(DEGRADES, keeps_best=True)
    (stopped,) = found(DEGRADES, stops_early=True)
    assert {kept.level, stopped.level} == {"note"}
    assert "the final model is that of the best evaluation" in kept.seen
    assert "the final model" not in stopped.seen


def test_where_both_losses_rise_it_is_no_degradation() -> None:
    def rising(way: float, epoch: float) -> float:
        return 1.5 + 0.5 * way

    curve = Curve(rising, rising, noise=0.0)
    assert find_overfitting(History(make_lines(curve)), settings_of(curve)) == []


def test_what_was_seen_has_the_numbers_and_the_epochs_to_train(found: Found) -> None:
    (finding,) = found(replace(DEGRADES, noise=0.0, num_epochs=4, num_evaluations=4))
    words = finding.seen.split()
    assert finding.seen.startswith("eval_loss rose from 1.") and "at step 50 to 1." in finding.seen
    assert "while train_loss fell from" in finding.seen and words[-1] < words[-3]
    assert finding.remedy.startswith("training_args.num_train_epochs: 1, ")
    (memorised,) = found(replace(PLANTED["memorised"], noise=0.0))
    assert memorised.seen.startswith("train_loss is 0.0") and "and eval_loss 1.60" in memorised.seen
    (drift,) = found(replace(PLANTED["evaluation-drift"], noise=0.0))
    assert "train_loss fell from 2.000 to 1." in drift.seen and "went from 2.500 to 2.4" in drift.seen
    assert drift.step == 100


def test_without_an_evaluation_of_before_no_drift_is_seen(found: Found) -> None:
    assert found(replace(PLANTED["evaluation-drift"], evaluates_first=False)) == []


def test_an_evaluation_that_follows_at_a_distance_has_not_drifted(found: Found) -> None:
    loss = falls(2.0, 1.0)
    assert found(Curve(loss, lambda way, epoch: 1.2 + 0.65 * loss(way, epoch), num_epochs=1)) == []


@pytest.mark.parametrize(("num_leaked", "level"), [(1, "note"), (30, "warning")])
def test_leaked_rows_are_said_before_anything_else(
    found: Found, keys_of: Callable[[Finding], set[str]], num_leaked: int, level: str
) -> None:
    (finding,) = found(GAP, num_leaked_rows=num_leaked)
    assert (finding.name, finding.level) == ("leaked-evaluation-rows", level)
    assert finding.seen.startswith(f"{num_leaked} of 50 evaluation rows ({num_leaked * 2}%)")
    assert "data_preprocessing.remove_duplicates" in keys_of(finding)


def test_without_evaluations_after_the_start_there_is_no_gap() -> None:
    curve = replace(GAP, num_evaluations=0)
    history = History(make_lines(curve))
    assert gap_of(history) is None
    assert find_overfitting(history, settings_of(curve, num_leaked_rows=5)) == []
    first = History(make_lines(GAP)[:5])
    assert gap_of(first) is None and find_overfitting(first, settings_of(GAP)) == []
