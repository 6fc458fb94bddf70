"""What is read of a run's folder, whatever is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafarm.errors import OutputError
from llamafarm.report import record as report_record
from llamafarm.report.reading.answers import EVALUATION_FILE
from llamafarm.report.reading.values import brief_of, count_of, number_of, show_value, text_of
from llamafarm.report.record import read_run


def test_a_run_is_read_whole(make_run: Any) -> None:
    record = read_run(make_run())
    assert (record.strategy, record.base_model, record.is_finished) == ("medical_demo", "owner/base-1b", True)
    assert (len(record.trained_lines), record.num_steps) == (128, 128)
    assert [step for step, _ in record.evaluations] == [0, 32, 64, 96, 128]
    assert record.setting("method.r") == 8
    assert record.setting("method.r.deeper") is None
    assert record.checkpoint_steps == (96,)
    assert record.faults == ()
    learning_rate = next(one for one in record.settings if one.path == "training_args.learning_rate")
    assert (learning_rate.value, learning_rate.kind) == ("0.002", "strategy file")
    assert learning_rate.where == "demos/strategies.yaml:105"
    assert [finding.name for finding in record.all_findings] == [
        "evaluation-degradation",
        "plateau",
        "forgot",
    ]
    assert record.evaluation is not None
    assert record.evaluation.changes["eval_loss"].is_sure
    assert not record.evaluation.changes["stop_rate"].is_sure


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(OutputError, match="there is no run"):
            read_run(folder)


def test_the_final_model_of_a_run_stands_for_it(make_run: Any) -> None:
    folder = make_run()
    assert read_run(folder / "final_model").folder == folder


def test_a_killed_run_is_read_as_far_as_it_got(make_run: Any) -> None:
    folder = make_run(run=None, evaluation=None, has_model=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 129, "train_lo')
    record = read_run(folder)
    assert (record.is_finished, record.num_steps, record.strategy) == (False, 128, "run")
    assert record.faults == ("1 damaged lines of metrics.jsonl are left out",)


@pytest.mark.parametrize(
    "content", ["", "[1]", "null", '{"settings": 3, "data": {"a": 1}, "result": []}', "[" * 9999]
)
def test_a_damaged_record_is_read_for_what_is_whole(make_run: Any, content: str) -> None:
    folder = make_run()
    for name in ("run.json", EVALUATION_FILE, "final_model/llamafarm.json"):
        (folder / name).write_text(content)
    record = read_run(folder)
    assert (record.is_finished, record.evaluation, len(record.lines)) == (False, None, 129)


@pytest.mark.parametrize("value", [None, 3, "x", [], [3], {}, {"a": None}, True, float("inf"), 10**400])
def test_a_value_of_another_kind_is_taken_for_none(make_run: Any, value: Any) -> None:
    folder = make_run()
    run = json.loads((folder / "run.json").read_text())
    for name in run:
        (folder / "run.json").write_text(json.dumps(run | {name: value}))
        read_run(folder)


def test_a_step_that_was_taken_again_after_a_resume_counts_once(make_run: Any) -> None:
    folder = make_run(
        lines=[{"step": 1, "train_loss": 2.0}, {"step": 2, "train_loss": 9.0}, {"step": 2, "train_loss": 1.5}]
    )
    assert [line.get("train_loss") for line in read_run(folder).lines] == [2.0, 1.5]


def test_figures_that_are_not_finite_are_gaps(make_run: Any) -> None:
    folder = make_run(lines=[])
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "train_loss": Infinity, "grad_norm": NaN, "epoch": "x"}\n'
    )
    assert set(read_run(folder).lines[0].figures.values()) == {1.0, None}


def test_text_is_made_fit_for_a_page() -> None:
    assert text_of("a\x1b\x07\ud800\r\nb\x00") == "a␛␇?\nb␀"
    assert text_of(3) is None
    assert brief_of("x" * 700) == "x" * 600 + "… (100 characters more)"


def test_numbers_are_numbers() -> None:
    assert [number_of(value) for value in (True, "1", float("nan"), 10**400, 2)] == [None] * 4 + [2.0]
    assert [count_of(value) for value in (2.0, 2.5, None)] == [2, None, None]


def test_what_looks_like_a_secret_is_not_shown() -> None:
    assert show_value("http://me:word@host/x") == "http://…@host/x"
    assert show_value(["hf_abcdefghijklmnopqrstuvwxyz"]) == '["…"]'


def test_files_are_called_what_their_writers_call_them() -> None:
    from llamafarm.evaluation import record as evaluation_record
    from llamafarm.model import bundle
    from llamafarm.training import record as training_record

    assert evaluation_record.EVALUATION_FILE == EVALUATION_FILE
    assert bundle.BUNDLE_FILE == report_record.BUNDLE_FILE
    assert training_record.RUN_FILE == report_record.RUN_FILE
    assert training_record.METRICS_FILE == report_record.METRICS_FILE
    assert training_record.CHECKPOINTS_FOLDER == report_record.CHECKPOINTS
    assert training_record.FINAL_MODEL_FOLDER == report_record.FINAL_MODEL


def test_what_a_run_went_through_is_among_its_warnings(make_run: Any) -> None:
    folder = make_run()
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    run |= {
        "resumed": [{"after_step": 40, "at": "2026-11-26T08:00:00+00:00"}],
        "out_of_memory": [{"step": 3, "what": "training", "pack_tokens": 255, "how": "packs of 255 tokens"}],
        "skipped_steps": [5, 9],
    }
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    warnings = " ".join(read_run(folder).warnings)
    assert "went on after step 40" in warnings
    assert "step 3: out of memory; done again with packs of 255 tokens" in warnings
    assert "left out: 5, 9" in warnings
