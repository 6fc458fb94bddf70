"""Rows from several files with weights, and from the Hub: what an epoch takes, and what cannot be had."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.data.encoding.rows import EncodedRows
from llamafarm.errors import DataError, MachineError, StrategyError
from llamafarm.strategy.load import LoadedStrategy, load_strategy
from llamafarm.strategy.writing import write_strategy
from llamafarm.training.preparation import sources
from llamafarm.training.preparation.prepare import prepare
from llamafarm.training.preparation.sources import repeat_by_weight

Load = Callable[..., LoadedStrategy]
MakeRows = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def second(tmp_path: Path, make_rows: MakeRows) -> Path:
    path = tmp_path / "second.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(6, seed=5)))
    return path


def contents(rows: EncodedRows) -> list[tuple[int, ...]]:
    return sorted(tuple(row.token_ids_T.tolist()) for row in rows)


def test_a_list_takes_the_rows_of_all_files(
    load: Load, make_rows: MakeRows, tmp_path: Path, second: Path
) -> None:
    first = contents(prepare(load(make_rows(8))).train_rows)
    other = contents(prepare(load([], dataset__train_file=str(second))).train_rows)
    both = prepare(
        load(make_rows(8), dataset__train_file=[str(tmp_path / "train.jsonl"), {"file": str(second)}])
    )
    assert contents(both.train_rows) == sorted(first + other)
    assert [file.num_rows for file in both.data_files] == [8, 6]


def test_a_weight_says_how_often_an_epoch_takes_a_row(
    load: Load, make_rows: MakeRows, tmp_path: Path, second: Path
) -> None:
    whole = contents(prepare(load(make_rows(8))).train_rows)
    files = [{"file": "train.jsonl", "weight": 2.5}, {"file": "second.jsonl", "weight": 0.5}]
    loaded = load(make_rows(8), dataset__train_file=files)
    rows = contents(prepare(loaded).train_rows)
    counts = [rows.count(row) for row in whole]
    assert (sorted(counts), len(rows)) == ([2] * 4 + [3] * 4, 20 + 3)
    assert contents(prepare(loaded).train_rows) == rows
    other_seed = load(make_rows(8), dataset__train_file=files, dataset__seed=2)
    assert contents(prepare(other_seed).train_rows) != rows


def test_rows_that_are_evaluated_on_are_never_trained_on_whatever_their_weight(
    load: Load, make_rows: MakeRows, second: Path
) -> None:
    files = [{"file": "train.jsonl", "weight": 3}, "second.jsonl"]
    prepared = prepare(load(make_rows(30), dataset__train_file=files, dataset__eval_split=0.25))
    train, evaluation = contents(prepared.train_rows), contents(prepared.eval_rows)
    assert len(evaluation) == len(set(evaluation)) == 9
    assert not set(train) & set(evaluation)
    assert len(set(train)) + 9 == 36
    assert any(choice.value == "25 % of the training files" for choice in prepared.choices)


def test_repeats_are_found_across_files(load: Load, make_rows: MakeRows, tmp_path: Path) -> None:
    rows = make_rows(8)
    (tmp_path / "again.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    files = ["train.jsonl", "again.jsonl"]
    cleaned = prepare(load(rows, dataset__train_file=files, data_preprocessing__remove_duplicates=True))
    assert len(cleaned.train_rows) == 8


def test_a_warning_names_the_file_that_it_is_about(load: Load, make_rows: MakeRows, second: Path) -> None:
    long = {"instruction": "pain " * 300, "input": "", "output": "rest."}
    loaded = load(
        [*make_rows(4), long],
        dataset__train_file=["train.jsonl", "second.jsonl"],
        data_preprocessing__max_length=200,
    )
    (warning,) = prepare(loaded).warnings
    assert "train.jsonl: 1 of 5 training rows are too long" in warning


@given(
    number=st.integers(0, 40),
    weight=st.floats(0.001, 5).map(lambda weight: round(weight, 3)),
    seed=st.integers(0, 5),
)
def test_every_place_comes_as_often_as_any_other_or_once_more(number: int, weight: float, seed: int) -> None:
    places = np.arange(100, 100 + number)
    taken = repeat_by_weight(places, weight, seed).tolist()
    counts = [taken.count(place) for place in places.tolist()]
    if number:
        assert max(counts) - min(counts) <= 1
        assert len(taken) == max(round(weight * number), 1) or abs(len(taken) - weight * number) <= 0.5
    else:
        assert taken == []
    if weight == 1:
        assert taken == places.tolist()


@pytest.mark.parametrize(
    "value",
    [
        [],
        "",
        3,
        [1],
        [{"file": "a", "weight": 0}],
        [{"file": "a", "weights": 1}],
        [{"weight": 1}],
        {"file": "a"},
    ],
)
def test_what_names_no_files_is_told_with_its_place(load: Load, value: Any) -> None:
    with pytest.raises(StrategyError, match=r"dataset\.train_file"):
        load([], dataset__train_file=value)


def test_a_list_is_shown_and_written_so_that_it_loads_to_the_same(load: Load, tmp_path: Path) -> None:
    files = ["a b.jsonl", {"file": "b.jsonl", "weight": 2.5}, {"file": "c.jsonl"}]
    loaded = load([], dataset__train_file=files)
    (tmp_path / "written.yaml").write_text(write_strategy(loaded), encoding="utf-8")
    again = load_strategy("s", file=tmp_path / "written.yaml")
    assert again.strategy.dataset == loaded.strategy.dataset
    shown = [str(each) for each in again.strategy.dataset.train_file or ()]
    assert shown == ["a b.jsonl", "b.jsonl (weight 2.5)", "c.jsonl"]
    recorded = json.loads(loaded.strategy.model_dump_json())["dataset"]["train_file"]
    assert recorded[1] == {"file": "b.jsonl", "weight": 2.5}


def test_a_name_that_is_neither_path_nor_id_is_a_path_that_is_not_there(load: Load) -> None:
    for name in ("nothing.jsonl", "./some/where", "a/b/c"):
        with pytest.raises(DataError, match="does not exist"):
            prepare(load([], dataset__train_file=name))


def test_without_the_library_an_id_says_what_is_missing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match="is no path here") as caught:
        prepare(load([], dataset__train_file="owner/name"))
    assert "llamafarm-finetune[datasets]" in caught.value.remedy


def test_what_is_fetched_is_read_like_a_file(
    load: Load, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(name: str, folder: Path, download_dir: Path | None = None) -> Path:
        asked.append((name, folder, download_dir))
        return second

    monkeypatch.setattr(sources, "fetch_dataset", fetch)
    loaded = load([], dataset__train_file="owner/name", data_preprocessing__cache_dir=str(tmp_path / "kept"))
    assert len(prepare(loaded).train_rows) == 6
    prepare(loaded, scratch_dir=tmp_path / "scratch")
    assert asked == [
        ("owner/name", tmp_path / "kept" / "hub-datasets", None),
        ("owner/name", tmp_path / "scratch" / "hub-datasets", tmp_path / "scratch" / "downloads"),
    ]
