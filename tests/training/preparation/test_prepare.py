"""What is settled and checked before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafarm.errors import DataError, MachineError, ModelError, StrategyError
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training.loop import Every
from llamafarm.training.preparation import rows as rows_module
from llamafarm.training.preparation.prepare import Preparation, prepare

Load = Callable[..., LoadedStrategy]
Row = dict[str, Any]
MakeRows = Callable[..., list[Row]]


def numbers(rows: list[Any]) -> set[int]:
    """Return the lines that rows stand on."""
    return {row.row_number for row in rows}


def why_of(preparation: Preparation, setting: str) -> tuple[str, str]:
    """Return what was chosen for a setting, and why."""
    (choice,) = [choice for choice in preparation.choices if choice.setting == setting]
    return choice.value, choice.why


def test_an_eval_file_is_evaluated_on_and_no_row_is_set_aside(load: Load, make_rows: MakeRows) -> None:
    prepared = prepare(load(make_rows(12), make_rows(5, seed=1), dataset__eval_split=0.5))
    assert (len(prepared.train_rows), len(prepared.eval_rows)) == (12, 5)
    assert [file.path.name for file in prepared.data_files] == ["train.jsonl", "eval.jsonl"]
    assert "eval_split is not used" in why_of(prepared, "evaluation rows")[1]


def test_eval_split_sets_rows_aside_that_are_not_trained_on(load: Load, make_rows: MakeRows) -> None:
    prepared = prepare(load(make_rows(12), dataset__eval_split=0.25))
    train, evaluation = numbers(prepared.train_rows), numbers(prepared.eval_rows)
    assert len(evaluation) == 3
    assert not train & evaluation
    assert train | evaluation == set(range(1, 13))
    assert why_of(prepared, "evaluation rows") == ("25 % of the training file", "dataset.eval_split")


def test_the_split_follows_from_its_own_seed(load: Load, make_rows: MakeRows) -> None:
    def split(**settings: int) -> set[int]:
        return numbers(prepare(load(make_rows(40), dataset__eval_split=0.25, **settings)).eval_rows)

    assert split() == split(environment__seed=7)
    assert split() != split(dataset__seed=7)


def test_an_unshuffled_split_takes_the_last_rows(load: Load, make_rows: MakeRows) -> None:
    prepared = prepare(load(make_rows(12), dataset__eval_split=0.25, dataset__shuffle=False))
    assert numbers(prepared.eval_rows) == {10, 11, 12}


@pytest.mark.parametrize(
    "asked",
    [
        {"training_args__eval_strategy": "epoch"},
        {"training_args__eval_strategy": "steps"},
        {"training_args__eval_steps": 5},
        {"training_args__load_best_model_at_end": True},
        {"training_args__early_stopping_patience": 2},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_evaluation_asked_for_without_rows_gets_the_recommended_split(
    load: Load, make_rows: MakeRows, asked: dict[str, Any]
) -> None:
    prepared = prepare(load(make_rows(20), **asked))
    assert (len(prepared.train_rows), len(prepared.eval_rows)) == (18, 2)
    assert why_of(prepared, "evaluation rows")[0] == "10 % of the training file"
    assert prepared.plan.evaluate_every is not None


def test_without_evaluation_rows_and_wishes_nothing_is_evaluated(load: Load, make_rows: MakeRows) -> None:
    prepared = prepare(load(make_rows(20)))
    assert (len(prepared.train_rows), len(prepared.eval_rows)) == (20, 0)
    assert prepared.plan.evaluate_every is None


def test_eval_strategy_no_is_obeyed_where_there_are_rows(load: Load, make_rows: MakeRows) -> None:
    rows = make_rows(6), make_rows(2, seed=1)
    assert prepare(load(*rows, training_args__eval_strategy="no")).plan.evaluate_every is None


def test_evaluation_rows_that_are_trained_on_are_warned_of_by_number(load: Load, make_rows: MakeRows) -> None:
    train, evaluation = make_rows(6), make_rows(3, seed=1)
    leaked = [evaluation[0], train[4], evaluation[1]]
    (warning,) = prepare(load(train, leaked)).warnings
    assert warning.startswith("1 evaluation rows are training rows, too")
    assert "rows 2 of" in warning
    assert prepare(load(train, evaluation)).warnings == []


def test_repeated_rows_are_dropped_within_and_between_files_if_asked(load: Load, make_rows: MakeRows) -> None:
    train, evaluation = make_rows(4), make_rows(3, seed=1)
    rows = [*train, train[0]], [*evaluation, evaluation[2], train[1]]
    prepared = prepare(load(*rows, data_preprocessing__remove_duplicates=True))
    assert (numbers(prepared.train_rows), numbers(prepared.eval_rows)) == ({1, 2, 3, 4}, {1, 2, 3})
    (warning,) = prepared.warnings
    assert warning.startswith("3 rows are left out, because they repeat earlier rows: rows 5, 4, 5 (")
    assert len(prepare(load(*rows)).train_rows) == 5


def test_empty_rows_are_left_out_and_counted_if_asked(load: Load, make_rows: MakeRows) -> None:
    rows = [*make_rows(3), {"instruction": "what?", "input": "", "output": " "}]
    prepared = prepare(load(rows, data_preprocessing__filter_empty=True))
    assert len(prepared.train_rows) == 3
    assert prepared.warnings[0].startswith("1 rows of")
    with pytest.raises(DataError, match="answer is empty") as caught:
        prepare(load(rows))
    assert caught.value.where.endswith("train.jsonl:4")


def test_rows_that_are_too_long_are_left_out_whole_and_counted(load: Load, make_rows: MakeRows) -> None:
    rows = [*make_rows(4, words=(2, 4)), *make_rows(2, seed=1, words=(40, 50))]
    prepared = prepare(load(rows, data_preprocessing__max_length=60))
    assert numbers(prepared.train_rows) == {1, 2, 3, 4}
    assert prepared.warnings[0].startswith("2 of 6 training rows are too long and left out")
    assert max(row.num_tokens for row in prepared.train_rows) <= 60


@pytest.mark.parametrize(("limit", "kept"), [("max_input_length", {2}), ("max_output_length", {1})])
def test_prompts_and_answers_have_limits_of_their_own(load: Load, limit: str, kept: set[int]) -> None:
    long, short = "pain in the heart " * 6, "pain"
    rows = [{"instruction": long, "output": short}, {"instruction": short, "output": long}]
    prepared = prepare(load(rows, **{f"data_preprocessing__{limit}": 20}))
    assert numbers(prepared.train_rows) == kept


def test_no_row_within_the_limits_is_an_error(load: Load, make_rows: MakeRows) -> None:
    with pytest.raises(DataError, match="no training row is left within 5 tokens"):
        prepare(load(make_rows(3), data_preprocessing__max_length=5))


def test_the_base_models_context_is_the_longest_a_row_may_be(load: Load, make_rows: MakeRows) -> None:
    assert prepare(load(make_rows(3))).max_length == 256
    assert prepare(load(make_rows(3), data_preprocessing__max_length=1000)).max_length == 256
    assert prepare(load(make_rows(3), data_preprocessing__max_length=100)).max_length == 100


def test_a_range_of_epochs_has_a_least_and_a_most_and_stops_in_between(
    load: Load, make_rows: MakeRows
) -> None:
    plan = prepare(load(make_rows(6), make_rows(2, seed=1), training_args__num_train_epochs="2-5")).plan
    assert (plan.min_epochs, plan.num_epochs, plan.patience) == (2, 5, 1)
    plan = prepare(load(make_rows(6), make_rows(2, seed=1), training_args__num_train_epochs=5)).plan
    assert (plan.min_epochs, plan.num_epochs, plan.patience) == (0, 5, None)


@pytest.mark.parametrize(
    ("settings", "evaluate_every", "save_every"),
    [
        ({}, Every(None), Every(None)),
        ({"eval_steps": 7}, Every(7), Every(7)),
        ({"eval_strategy": "steps"}, Every(50), Every(50)),
        ({"eval_strategy": "epoch", "eval_steps": 7}, Every(None), Every(None)),
        ({"eval_steps": 7, "save_steps": 9}, Every(7), Every(9)),
        ({"eval_steps": 7, "save_strategy": "epoch"}, Every(7), Every(None)),
        ({"save_strategy": "no"}, Every(None), None),
        ({"eval_strategy": "no"}, None, Every(None)),
    ],
)
def test_the_rhythms_of_evaluating_and_saving(
    load: Load,
    make_rows: MakeRows,
    settings: dict[str, Any],
    evaluate_every: Every | None,
    save_every: Every | None,
) -> None:
    given = {f"training_args__{name}": value for name, value in settings.items()}
    plan = prepare(load(make_rows(4), make_rows(2, seed=1), **given)).plan
    assert (plan.evaluate_every, plan.save_every) == (evaluate_every, save_every)


def test_checkpoints_can_be_switched_off_as_a_whole(load: Load, make_rows: MakeRows) -> None:
    loaded = load(make_rows(4), training_args__save_steps=2, monitoring__save_checkpoints=False)
    assert prepare(loaded).plan.save_every is None


def test_a_step_takes_batch_size_times_accumulation_rows(load: Load, make_rows: MakeRows) -> None:
    settings = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}
    given = {f"training_args__{name}": value for name, value in settings.items()}
    plan = prepare(load(make_rows(25), **given)).plan
    assert (plan.rows_per_step, plan.steps_per_epoch) == (12, 3)


def test_the_order_of_rows_has_a_seed_of_its_own_or_that_of_the_run(load: Load, make_rows: MakeRows) -> None:
    assert prepare(load(make_rows(4), environment__seed=7)).plan.seed == 7
    settings = {"environment__seed": 7, "data_preprocessing__seed": 0}
    assert prepare(load(make_rows(4), **settings)).plan.seed == 0


def test_a_strategy_without_training_data_is_refused(load: Load, make_rows: MakeRows) -> None:
    with pytest.raises(StrategyError, match="names no training data"):
        prepare(load(make_rows(3), dataset__train_file=None))


def test_a_base_model_that_is_not_there_is_refused(load: Load, make_rows: MakeRows, tmp_path: Path) -> None:
    missing = str(tmp_path / "no-model")
    with pytest.raises(ModelError, match="no-model"):
        prepare(load(make_rows(3), base_model__huggingface_id=missing))
    with pytest.raises(ModelError, match="someone/no-model"):
        prepare(load(make_rows(3), base_model__huggingface_id="someone/no-model"))


def test_fp16_on_a_processor_is_refused(load: Load, make_rows: MakeRows) -> None:
    with pytest.raises(MachineError, match="fp16"):
        prepare(load(make_rows(3), hardware__optimization__mixed_precision="fp16"))


def test_preparing_writes_nothing(load: Load, make_rows: MakeRows, tmp_path: Path) -> None:
    prepare(load(make_rows(3)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["strategies.yaml", "train.jsonl"]


def test_columns_and_bad_rows_are_read_as_the_strategy_says(load: Load, make_rows: MakeRows) -> None:
    rows = [{"Frage": row["instruction"], "Antwort": row["output"]} for row in make_rows(6)]
    columns = {"dataset.columns.instruction": "Frage", "dataset.columns.output": "Antwort"}
    assert len(prepare(load(rows, **columns)).train_rows) == 6
    broken = [*rows[:2], {"Frage": "f"}, *rows[2:]]
    with pytest.raises(DataError) as caught:
        prepare(load(broken, **columns))
    assert caught.value.where.endswith("train.jsonl:3")
    prepared = prepare(load(broken, **columns, dataset__on_bad_row="skip"))
    assert numbers(prepared.train_rows) == {1, 2, 4, 5, 6, 7}
    assert any("1 rows of" in warning and "train.jsonl:3" in warning for warning in prepared.warnings)


def test_which_tokens_are_trained_on_is_as_the_strategy_says(load: Load) -> None:
    turns = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)
    ]

    def trained(**settings: Any) -> int:
        (row,) = prepare(load([{"messages": turns}], **settings)).train_rows
        return row.num_supervised_tokens

    every, last = trained(), trained(dataset__train_on="last")
    whole = trained(dataset__train_on_prompt=True)
    assert last < every < whole
    (row,) = prepare(load([{"messages": turns}], dataset__train_on_prompt=True)).train_rows
    assert whole == row.num_tokens - 1  # nothing predicts the first


def test_rows_that_are_too_long_are_treated_as_the_strategy_says(load: Load, make_rows: MakeRows) -> None:
    long = {"instruction": "word " * 80 + "?", "output": "Yes."}

    def kept(how: str) -> set[int]:
        settings = {"data_preprocessing.max_length": 60, "dataset.when_too_long": how}
        return numbers(prepare(load([*make_rows(2, words=(2, 3)), long], **settings)).train_rows)

    assert kept("drop") == kept("split") == {1, 2}
    assert kept("truncate_prompt") == {1, 2, 3}
    with pytest.raises(DataError, match="max_length is 60"):
        kept("error")


def test_rows_that_are_nearly_the_same_are_left_out_if_asked(load: Load, make_rows: MakeRows) -> None:
    rows = make_rows(4, words=(20, 30))
    nearly = rows[1] | {"output": rows[1]["output"].removesuffix(".") + "!"}
    with_it = [*rows, nearly]
    assert len(prepare(load(with_it)).train_rows) == 5
    asked = {"data_preprocessing.remove_near_duplicates": True}
    prepared = prepare(load(with_it, **asked))
    assert numbers(prepared.train_rows) == {1, 2, 3, 4}
    assert any("nearly the same" in warning for warning in prepared.warnings)
    strict = {"data_preprocessing.near_duplicate_threshold": 1.0}
    assert len(prepare(load(with_it, **asked, **strict)).train_rows) == 5
    leaked = prepare(load(rows, [nearly, *make_rows(2, seed=1)]))
    assert any("1 evaluation rows are nearly training rows" in warning for warning in leaked.warnings)


def test_rows_of_bad_quality_are_left_out_if_asked(load: Load, make_rows: MakeRows) -> None:
    rows = [*make_rows(4), {"instruction": "What is it?", "output": "TODO"}]
    assert len(prepare(load(rows)).train_rows) == 5
    prepared = prepare(load(rows, data_preprocessing__filter_quality=True))
    assert numbers(prepared.train_rows) == {1, 2, 3, 4}
    assert any("data_preprocessing.filter_quality: placeholder" in warning for warning in prepared.warnings)


def test_large_files_are_kept_encoded_where_the_strategy_says(
    load: Load, make_rows: MakeRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamafarm.data.encoding.table._LEAST_BYTES_TO_CACHE", 1)
    loaded = load(make_rows(8), data_preprocessing__cache_dir=str(tmp_path / "kept"))
    scratch = prepare(loaded, scratch_dir=tmp_path / "scratch")
    assert not (tmp_path / "kept").exists(), "a look leaves nothing"
    first = prepare(loaded)
    assert len(list((tmp_path / "kept").iterdir())) == 1
    again = prepare(loaded)
    for other in (scratch, again):
        assert [row.token_ids_T.tolist() for row in other.train_rows] == [
            row.token_ids_T.tolist() for row in first.train_rows
        ]
        assert other.data_files == first.data_files


@pytest.mark.parametrize(("num_workers", "num_processes"), [(0, 1), (1, 1), (3, 3), (None, 2), (99, 99)])
def test_large_files_are_encoded_by_as_many_processes_as_the_strategy_says(
    monkeypatch: pytest.MonkeyPatch, num_workers: int | None, num_processes: int
) -> None:
    monkeypatch.setattr(rows_module, "read_machine", lambda: SimpleNamespace(num_cores=2))
    assert rows_module.num_encoding_processes(num_workers) == num_processes
    monkeypatch.setattr(rows_module, "read_machine", lambda: SimpleNamespace(num_cores=64))
    assert rows_module.num_encoding_processes(None) == 8
