"""After the last step: the tuned model beside its base on rows that were held out, and what run.json says."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from llamafarm import terminal
from llamafarm.errors import DataError, InputError, LlamaFarmError, ModelError
from llamafarm.evaluation.evaluate import evaluate_model
from llamafarm.inference.open import OpenModel
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training import closing
from llamafarm.training.run import run_training

Load = Callable[..., LoadedStrategy]
Row = dict[str, Any]
MakeRows = Callable[..., list[Row]]
QUICK = {"monitoring__sample_rows": 4, "generation__max_new_tokens": 6, "training_args__learning_rate": 0.02}
FULL = {"method__type": "full_finetune"} | dict.fromkeys(
    ("method__r", "method__alpha", "method__dropout", "method__target_modules")
)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(terminal, "warn", said.append)
    return said


@pytest.fixture
def general(tmp_path: Path) -> str:
    """A short general text, which takes less time than the one of the package."""
    path = tmp_path / "general.txt"
    path.write_text("The sea is deep.\nRain falls in spring.\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def train(load: Load, make_rows: MakeRows, general: str) -> Callable[..., Path]:
    """Train on twelve rows, ask afterwards, and return the run's folder."""

    def run(eval_rows: list[Row] | None = None, **settings: Any) -> Path:
        chosen = QUICK | {"monitoring__general_file": general} | settings
        return run_training(load(make_rows(12), eval_rows, **chosen)).final_model.parent

    return run


def evaluation_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return record


def run_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return record


def prompts_of(record: dict[str, Any]) -> set[str]:
    return {answer["prompt"] for answer in record["answers"]}


def questions_of(rows: list[Row]) -> set[str]:
    return {row["instruction"] for row in rows}


@pytest.fixture
def rows_trained_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[str]]:
    """Return a function to the texts of the rows that the run really trained on."""
    seen: list[Any] = []
    compare = closing.evaluate_model

    def remember(opened: OpenModel, *arguments: Any, **options: Any) -> Any:
        seen.append(opened)
        return compare(opened, *arguments, **options)

    monkeypatch.setattr(closing, "evaluate_model", remember)
    prepared: list[Any] = []
    read_sample = closing._read_sample

    def note(preparation: Any, num_rows: int) -> Any:
        prepared.append(preparation)
        return read_sample(preparation, num_rows)

    monkeypatch.setattr(closing, "_read_sample", note)

    def texts() -> set[str]:
        (preparation,) = prepared
        return {preparation.tokenizer.decode(row.token_ids_T) for row in preparation.train_rows}

    return texts


def test_the_first_rows_of_the_eval_file_are_answered_by_base_and_tuned(
    train: Callable[..., Path], make_rows: MakeRows, tmp_path: Path
) -> None:
    eval_rows = make_rows(6, seed=1)
    record = evaluation_of(train(eval_rows))
    assert record["file"] == str(tmp_path / "eval.jsonl")
    assert record["is_held_out"] is True and record["max_new_tokens"] == 6
    assert [model["name"] for model in record["models"]] == ["base", "tuned"]
    assert [answer["row"] for answer in record["answers"]] == [1, 2, 3, 4]
    for answer, row in zip(record["answers"], eval_rows, strict=False):
        assert (answer["prompt"], answer["expected"]) == (row["instruction"], row["output"])
        assert set(answer["base"]) == set(answer["tuned"]) == {"text", "ended_by"}
    assert any(answer["base"]["text"] != answer["tuned"]["text"] for answer in record["answers"])
    assert record["models"][1]["eval_loss"] < record["models"][0]["eval_loss"]


def test_of_a_split_the_rows_that_were_held_out_are_asked(
    train: Callable[..., Path], make_rows: MakeRows, rows_trained_on: Callable[[], set[str]]
) -> None:
    folder = train(dataset__eval_split=0.3)
    asked = prompts_of(evaluation_of(folder))
    assert evaluation_of(folder)["is_held_out"] is True
    assert asked <= questions_of(make_rows(12)) and len(asked) >= 3
    trained = rows_trained_on()
    assert len(trained) == run_of(folder)["data_facts"]["train_rows"] < 12
    assert not {question for question in asked for text in trained if question in text}


def write(path: Path, rows: list[Row], *, spoilt: bool = False) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(row) for row in rows]
    if spoilt:
        lines.insert(1, '{"instruction": "", "output": ""}')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("is_folder", [False, True], ids=["files", "folder"])
def test_of_several_files_the_rows_that_were_held_out_are_asked(
    train: Callable[..., Path],
    make_rows: MakeRows,
    rows_trained_on: Callable[[], set[str]],
    tmp_path: Path,
    is_folder: bool,
) -> None:
    folder = tmp_path / "rows"
    parts = [make_rows(7, seed=seed) for seed in (3, 4)]
    write(folder / "a.jsonl", parts[0], spoilt=True)
    write(folder / "b.jsonl", parts[1])
    named = str(folder) if is_folder else [str(folder / "a.jsonl"), str(folder / "b.jsonl")]
    run = train(
        dataset__train_file=named,
        dataset__eval_split=0.3,
        dataset__on_bad_row="skip",
        data_preprocessing__filter_empty=True,
    )
    record = evaluation_of(run)
    asked = prompts_of(record)
    assert record["is_held_out"] is True and len(record["answers"]) == len(asked) == 4
    assert asked <= questions_of(parts[0] + parts[1])
    trained = rows_trained_on()
    assert len(trained) + run_of(run)["data_facts"]["eval_rows"] == 14
    assert not {question for question in asked for text in trained if question in text}


def test_an_eval_folder_of_several_files_is_asked_too(
    train: Callable[..., Path], make_rows: MakeRows, tmp_path: Path
) -> None:
    parts = [make_rows(2, seed=seed) for seed in (5, 6)]
    for name, rows in zip("ab", parts, strict=True):
        write(tmp_path / "held" / f"{name}.jsonl", rows)
    record = evaluation_of(train(dataset__eval_file=str(tmp_path / "held")))
    assert prompts_of(record) == questions_of(parts[0] + parts[1])


def test_where_nothing_is_held_out_training_rows_are_asked_and_marked(
    train: Callable[..., Path], make_rows: MakeRows
) -> None:
    record = evaluation_of(train())
    assert record["is_held_out"] is False
    assert prompts_of(record) == questions_of(make_rows(12)[:4])


@pytest.mark.parametrize("num_rows", [0, 1])
def test_as_many_rows_are_asked_as_the_strategy_says(
    train: Callable[..., Path], make_rows: MakeRows, num_rows: int
) -> None:
    folder = train(make_rows(3, seed=1), monitoring__sample_rows=num_rows)
    if num_rows:
        assert len(evaluation_of(folder)["answers"]) == num_rows
    else:
        assert not (folder / "evaluation.json").exists()
        assert (folder / "final_model" / "llamafarm.json").is_file()


def test_forgetting_is_measured_on_the_text_that_the_strategy_names(
    train: Callable[..., Path], general: str
) -> None:
    record = evaluation_of(train())
    assert record["general"] == {"name": general, "num_words": 8}
    assert all(model["general_loss"] > 0 for model in record["models"])
    assert "general_loss" in record["changes"]


def test_a_general_text_that_is_not_there_is_refused_before_training(
    load: Load, make_rows: MakeRows, tmp_path: Path
) -> None:
    loaded = load(make_rows(12), **QUICK, monitoring__general_file="nowhere.txt")
    with pytest.raises(LlamaFarmError, match=r"nowhere\.txt"):
        run_training(loaded)
    assert not (tmp_path / "run").exists()
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(DataError, match="empty"):
        run_training(load(make_rows(12), **QUICK, monitoring__general_file=str(empty)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"), "CUDA out of memory."),
        (ModelError("the base is gone", where="here", remedy="Bring it back."), "the base is gone (here)"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
    ids=["memory", "ours", "disk"],
)
def test_what_goes_wrong_in_comparing_costs_no_run(
    train: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    warnings: list[str],
    error: Exception,
    words: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(closing, "evaluate_model", fail)
    folder = train()
    said = [line for line in warnings if "not compared with its base" in line]
    assert len(said) == 1 and words in said[0] and "\n" not in said[0]
    assert (folder / "final_model" / "adapter_model.safetensors").is_file()
    assert run_of(folder)["result"]["num_steps"] == 3
    assert not (folder / "evaluation.json").exists()


@pytest.mark.parametrize(
    "settings", [{}, FULL, {"method__bias": "all"}], ids=["adapter", "all weights", "biases"]
)
def test_what_is_called_base_is_the_base(
    train: Callable[..., Path],
    make_rows: MakeRows,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    measured: list[tuple[OpenModel, Any]] = []

    def remember(opened: OpenModel, *arguments: Any, **options: Any) -> Any:
        measured.append((opened, evaluate_model(opened, *arguments, **options)))
        return measured[0][1]

    monkeypatch.setattr(closing, "evaluate_model", remember)
    folder = train(make_rows(3, seed=1), **settings)
    losses = [model["eval_loss"] for model in evaluation_of(folder)["models"]]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # The evaluation of step 0 is the base's, on the same rows, and that of the last step the tuned one's.
    assert losses[0] == pytest.approx(lines[0]["eval_loss"], abs=1e-4)
    assert losses[1] == pytest.approx(lines[-1]["eval_loss"], abs=1e-4)
    assert abs(losses[0] - losses[1]) > 0.01
    ((opened, _),) = measured
    assert (opened.separate_base is None) is (settings == {})


@pytest.mark.parametrize("is_wanted", [True, False])
def test_the_line_of_step_0_is_there_if_wanted(
    train: Callable[..., Path], make_rows: MakeRows, is_wanted: bool
) -> None:
    folder = train(make_rows(3, seed=1), training_args__eval_on_start=is_wanted, monitoring__sample_rows=0)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == ([0, 1, 2, 3] if is_wanted else [1, 2, 3])


def test_run_json_says_when_on_what_and_what_was_found(
    train: Callable[..., Path], make_rows: MakeRows
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    leaked = [*make_rows(12)[:2], *make_rows(2, seed=1)]
    folder = train(leaked, training_args__num_train_epochs=2)
    record = run_of(folder)
    started, finished = (datetime.fromisoformat(record[name]) for name in ("started", "finished"))
    assert before <= started <= finished <= datetime.now(UTC) + timedelta(seconds=1)
    assert record["plan"] == {"num_steps": 6, "steps_per_epoch": 3, "rows_per_step": 4, "num_epochs": 2}
    facts = record["data_facts"]
    assert (facts["train_rows"], facts["eval_rows"], facts["leaked_rows"]) == (12, 4, 2)
    assert 0 < facts["train_supervised_tokens"] < facts["train_tokens"]
    assert facts["longest_row_tokens"] < facts["max_length"] == 256
    (finding,) = record["findings"]
    assert (finding["name"], finding["level"]) == ("leaked-evaluation-rows", "warning")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert record["seconds"]["steps"] == pytest.approx(lines[-1]["seconds"])
    assert 0 < record["seconds"]["data"] < record["seconds"]["steps"]
    assert record["seconds"]["evaluations"] > 0 and record["seconds"]["saves"] > 0
    assert record["template"]["end_of_turn"] == "<|end|>"
    assert "Question: " in record["template"]["source"]
    assert record["machine"]["precision"] == "fp32" and record["machine"]["memory_bytes"] > 2**20


def test_run_json_has_sample_rows_with_what_is_trained_on(
    train: Callable[..., Path], make_rows: MakeRows
) -> None:
    samples = run_of(train(monitoring__sample_rows=0))["mask_samples"]
    assert [sample["row"] for sample in samples] == [1, 2, 3]
    for sample, row in zip(samples, make_rows(12), strict=False):
        trained = "".join(piece["text"] for piece in sample["pieces"] if piece["is_trained"])
        rest = "".join(piece["text"] for piece in sample["pieces"] if not piece["is_trained"])
        assert trained.strip() == f"{row['output']}<|end|>"
        assert row["instruction"] in rest and row["output"] not in rest
        assert not sample["is_cut"] and 0 < sample["num_supervised_tokens"] < sample["num_tokens"]


def test_ctrl_c_ends_the_comparison_and_leaves_the_run_and_its_report(
    load: Any, make_rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(closing, "evaluate_model", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_training(load(make_rows(8), monitoring__sample_rows=2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert "result" in json.loads((tmp_path / "run" / "run.json").read_text())
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_starting_anew_and_going_on_exclude_each_other(load: Any, make_rows: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="starts anew"):
        run_training(load(make_rows(8)), overwrite=True, resume=str(tmp_path / "step-00000001"))
