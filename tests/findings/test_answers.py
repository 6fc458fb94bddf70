"""What a tuned model's answers show: each finding alone, at its thresholds, and what explains what."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.findings.answers import AnswerFigures, find_in_answers
from llamafarm.findings.finding import Finding

FINE = AnswerFigures(
    num_answers=20,
    num_loops=0,
    num_expected_loops=0,
    num_base_loops=3,
    num_fitting=20,
    num_cut=0,
    max_new_tokens=64,
    loss=1.1,
    base_loss=1.4,
    general_loss=3.1,
    base_general_loss=3.0,
    is_general_rise_sure=True,
    uniform_loss=10.4,
)
LOOPS = replace(FINE, num_loops=4)
ENDLESS = replace(FINE, num_cut=9)
FORGOT = replace(FINE, general_loss=3.6)
WORSE = replace(FINE, loss=1.6, is_worse_than_base=True)
PLANTED = {
    "repetitive-output": (LOOPS, "4 of 20 answers repeat a phrase over and over (base: 3)"),
    "never-stops": (ENDLESS, "9 of 20 answers went on to generation.max_new_tokens (64)"),
    "forgot": (FORGOT, "the loss on general text rose from 3.000 to 3.600"),
    "worse-than-base": (WORSE, "eval_loss is 1.600, and the base's 1.400"),
}


def names(figures: AnswerFigures, *known: str) -> list[str]:
    return [finding.name for finding in find_in_answers(figures, known)]


def test_a_fine_model_has_no_findings() -> None:
    assert names(FINE) == []


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found_by_its_name_alone(
    name: str, keys_of: Callable[[Finding], set[str]]
) -> None:
    figures, seen = PLANTED[name]
    (finding,) = find_in_answers(figures)
    assert (finding.name, finding.level, finding.step) == (name, "warning", None)
    assert finding.seen.startswith(seen)
    assert keys_of(finding)


def test_all_at_once_are_all_found() -> None:
    everything = replace(WORSE, num_loops=4, num_cut=9, general_loss=3.6)
    assert set(names(everything)) == set(PLANTED)


@pytest.mark.parametrize(
    "figures",
    [
        replace(LOOPS, num_answers=3, num_loops=3),
        replace(LOOPS, num_loops=1),
        replace(LOOPS, num_expected_loops=4),
        replace(ENDLESS, num_fitting=3, num_cut=3),
        replace(ENDLESS, num_cut=4),
        replace(FORGOT, general_loss=3.29),
        replace(FORGOT, base_general_loss=5.0, general_loss=5.45),
        replace(FORGOT, is_general_rise_sure=False),
        replace(FORGOT, general_loss=None),
        replace(FORGOT, base_general_loss=None),
        replace(WORSE, is_worse_than_base=False),
        replace(WORSE, base_loss=None),
    ],
)
def test_what_is_few_small_or_unsure_is_no_finding(figures: AnswerFigures) -> None:
    assert names(figures) == []


def test_a_base_that_guesses_has_nothing_to_forget() -> None:
    assert names(replace(FORGOT, base_general_loss=8.0, general_loss=9.5)) == []
    assert names(replace(FORGOT, base_general_loss=7.0, general_loss=8.5)) == ["forgot"]


@pytest.mark.parametrize("known", ["learning-rate-too-high", "divergence"])
def test_a_run_that_went_wrong_as_a_whole_explains_all_answers(known: str) -> None:
    assert names(replace(WORSE, num_loops=9, num_cut=9), known) == []


@pytest.mark.parametrize(
    "known", ["memorised", "evaluation-degradation", "overfitting-gap", "evaluation-drift"]
)
def test_overfitting_explains_a_worse_loss_and_nothing_else(known: str) -> None:
    assert names(replace(WORSE, num_loops=4), known) == ["repetitive-output"]


def test_other_findings_explain_nothing() -> None:
    assert names(WORSE, "plateau", "slow-data") == ["worse-than-base"]


def test_a_finding_is_a_line_for_people_and_a_record_for_programs() -> None:
    (finding,) = find_in_answers(FORGOT)
    assert finding.as_line().startswith(
        "forgot: the loss on general text rose from 3.000 to 3.600. The model"
    )
    assert ". Try: a lower method.r" in finding.as_line()
    assert json.loads(json.dumps(finding.as_record())) == finding.as_record()
    assert set(finding.as_record()) == {"name", "level", "seen", "meaning", "remedy", "step"}
    assert replace(finding, step=7).as_line().startswith("forgot at step 7: ")


COUNTS = st.integers(0, 50)
LOSSES = st.none() | st.floats()


@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, LOSSES, LOSSES, LOSSES, LOSSES, st.booleans())
def test_no_figures_make_it_fail(
    num_answers: int,
    num_loops: int,
    num_expected_loops: int,
    num_fitting: int,
    num_cut: int,
    loss: float | None,
    base_loss: float | None,
    general_loss: float | None,
    base_general_loss: float | None,
    is_sure: bool,
) -> None:
    figures = AnswerFigures(
        num_answers, num_loops, num_expected_loops, 0, num_fitting, num_cut, 64,
        loss, base_loss, is_sure, general_loss, base_general_loss, is_sure,
    )  # fmt: skip
    for finding in find_in_answers(figures):
        assert finding.as_line()
