"""A rehearsal does everything once and leaves nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafarm.errors import LlamaFarmError, OutputError
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training import rehearsal
from llamafarm.training.rehearsal import rehearse

Load = Callable[..., LoadedStrategy]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary ones are made in."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("has_evaluation", [True, False])
def test_every_part_is_timed_and_nothing_stays(
    load: Load, make_rows: Any, tmp_path: Path, temporary: Path, has_evaluation: bool
) -> None:
    eval_rows = make_rows(4, 1) if has_evaluation else None
    loaded = load(make_rows(20), eval_rows, monitoring__sample_rows=4, generation__max_new_tokens=4)
    found = rehearse(loaded)
    assert list(found.seconds) == ["a step and its checkpoint", "resumed, a step, answers", "merge"]
    assert found.outlook.seconds > 0
    assert found.peak_memory_bytes > 0
    assert not (tmp_path / "run").exists()
    assert list(temporary.iterdir()) == []


def test_the_steps_are_of_the_longest_rows_and_the_second_one_is_resumed(
    load: Load, make_rows: Any, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(20)
    rows[13]["output"] = "pain in the heart " * 12
    seen: list[tuple[int, str]] = []
    train = rehearsal.train_prepared

    def watch(loaded: LoadedStrategy, preparation: Any, **options: Any) -> Any:
        first = preparation.train_rows[0]
        seen.append((first.row_number, Path(options["resume"]).name))
        return train(loaded, preparation, **options)

    monkeypatch.setattr(rehearsal, "train_prepared", watch)
    rehearse(load(rows))
    assert seen == [(14, "never"), (14, "step-00000001")]


def test_what_fails_at_the_end_fails_now(
    load: Load, make_rows: Any, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OutputError("the file cannot be written", where="export", remedy="Make room.")

    monkeypatch.setattr(rehearsal, "export", fail)
    with pytest.raises(LlamaFarmError, match="cannot be written"):
        rehearse(load(make_rows(12)))
    assert list(temporary.iterdir()) == []


def test_an_export_that_is_asked_for_is_made(load: Load, make_rows: Any, temporary: Path) -> None:
    found = rehearse(load(make_rows(12), export__to_gguf=True))
    assert list(found.seconds)[-1] == "export"
    assert list(temporary.iterdir()) == []
