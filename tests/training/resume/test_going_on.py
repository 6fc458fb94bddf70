"""Going on with a run: from the newest whole checkpoint, to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resumed_runs import digest, metrics_of, record_of, resumed_after

from llamafarm.errors import OutputError
from llamafarm.training import session
from llamafarm.training.result import RunResult
from llamafarm.training.signals import RunInterrupted, StopSignals

Train = Callable[..., RunResult]


def test_a_run_goes_on_to_the_bytes_and_metrics_of_one_that_was_not_ended(
    train: Train, die: Callable[..., None], tmp_path: Path
) -> None:
    whole = train("whole")
    die(6)
    result = train()
    assert digest(result) == digest(whole)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert resumed_after(tmp_path / "run") == [4]
    assert resumed_after(tmp_path / "whole") == []
    assert result.num_tokens == whole.num_tokens


def test_what_changes_no_result_may_change(train: Train, die: Callable[..., None], tmp_path: Path) -> None:
    whole = train("whole", training_args__per_device_train_batch_size=4)
    die(4, training_args__per_device_train_batch_size=4)
    result = train(
        training_args__per_device_train_batch_size=1,
        training_args__gradient_accumulation_steps=4,
        training_args__logging_steps=2,
        training_args__save_steps=1,
        training_args__save_total_limit=5,
        export__quantization="q8_0",
        monitoring__log_level="warning",
        hardware__device=None,
    )
    assert resumed_after(tmp_path / "run") == [2]
    assert digest(result) == digest(whole)


def test_a_checkpoint_of_this_folder_can_be_named(
    train: Train, die: Callable[..., None], tmp_path: Path
) -> None:
    whole = train("whole")
    die(6)
    named = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert digest(train(resume=str(named))) == digest(whole)
    assert resumed_after(tmp_path / "run") == [2]
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


def test_a_checkpoint_of_another_folder_can_be_named_and_that_folder_stays_as_it_is(
    train: Train, die: Callable[..., None], tmp_path: Path
) -> None:
    settings = {"training_args__load_best_model_at_end": True}
    whole = train("whole", **settings)
    die(5, "first", **settings)
    named = tmp_path / "first" / "checkpoints" / "step-00000004"
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "first").rglob("*.*"))
    die(5, "second", resume=str(named), **settings)  # before it has saved anything itself
    result = train("second", **settings)
    assert resumed_after(tmp_path / "second") == [4, 4]
    assert digest(result) == digest(whole)
    assert metrics_of(tmp_path / "second") == metrics_of(tmp_path / "whole")
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "first").rglob("*.*")) == before


def test_a_checkpoint_of_a_run_that_has_ended_goes_on_elsewhere_only(train: Train, tmp_path: Path) -> None:
    ended = train()
    named = str(tmp_path / "run" / "checkpoints" / "step-00000004")
    with pytest.raises(OutputError, match="has ended"):
        train(resume=named)
    assert digest(train("elsewhere", resume=named)) == digest(ended)


def test_a_run_that_had_saved_nothing_starts_again(
    train: Train, die: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train("whole")
    die(2)
    assert digest(train()) == digest(whole)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert "saved nothing yet: it starts again" in capsys.readouterr().err


def test_a_final_model_of_a_run_that_had_not_said_so_is_replaced(train: Train, tmp_path: Path) -> None:
    before = digest(train())
    record = record_of(tmp_path / "run")
    del record["result"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert digest(train()) == before
    assert "result" in record_of(tmp_path / "run")


@pytest.mark.parametrize("before", [4, 5, 6])
def test_metrics_have_no_gap_and_nothing_twice_where_only_some_steps_are_logged(
    train: Train, die: Callable[..., None], tmp_path: Path, before: int
) -> None:
    settings = {"training_args__logging_steps": 3, "training_args__eval_steps": 4}
    train("whole", **settings)
    die(before, **settings)
    train(**settings)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0, 3, 4, 6]


def test_a_run_that_was_ended_in_its_evaluation_evaluates_again(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("whole")
    measure, heard = session.measure_losses, StopSignals.check
    calls: list[int] = []

    def ask(self: StopSignals) -> None:
        if len(calls) == 2:  # the second evaluation: that of step 3
            self.asked = 15
        heard(self)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(0)
        return measure(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(session, "measure_losses", counted)
        patch.setattr(StopSignals, "check", ask)
        with pytest.raises(RunInterrupted) as caught:
            train()
    assert caught.value.exit_code == 143
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0, 1, 2]
    result = train()
    assert resumed_after(tmp_path / "run") == [3]
    assert digest(result) == digest(whole)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
