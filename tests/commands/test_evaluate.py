"""`evaluate`: one model beside its base, a base alone, several models, and where the figures are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llamafarm import terminal
from llamafarm.cli import app
from llamafarm.strategy.load import load_strategy
from llamafarm.training.run import run_training

Evaluate = Callable[..., dict[str, Any]]
SUMMARY = {
    "model", "base_model", "file", "sha256", "is_held_out", "general", "max_new_tokens", "created",
    "num_left_out", "models", "changes", "findings", "answers",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A strategy file whose strategy is trained, with two checkpoints, into `one` beside it."""
    folder = tmp_path_factory.mktemp("trained")
    for name, numbers in (("train", range(8)), ("eval", range(10, 22))):
        rows = [{"instruction": f"why is {number}?", "output": f"It is {number}."} for number in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.jsonl").write_text('{"text": "The sea is deep."}\n{"text": "Rain falls."}\n')
    (folder / "general.txt").write_text("The sea is deep.\nRain falls in spring.\n")
    strategy = {
        "base_model": {"huggingface_id": str(tiny_base)},
        "hardware": {"device": "cpu", "optimization": {"mixed_precision": "no"}},
        "method": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        "training_args": {"output_dir": str(folder / "one"), "num_train_epochs": 2, "learning_rate": 0.03},
        "dataset": {"train_file": str(folder / "train.jsonl"), "eval_file": str(folder / "eval.jsonl")},
        "generation": {"max_new_tokens": 5},
        "monitoring": {"sample_rows": 0},
        "prompt_template": {"format": "Q: {input}\nA: {output}"},
    }
    path = folder / "strategies.yaml"
    path.write_text(json.dumps({"s": strategy}), encoding="utf-8")
    run_training(load_strategy("s", file=path))
    shutil.copytree(folder / "one", folder / "two")
    return path


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, trained: Path) -> Iterator[None]:
    monkeypatch.setattr(terminal, "mode", terminal.Mode())
    yield
    for path in trained.parent.glob("*/**/evaluation.json"):
        path.unlink()


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def evaluate(trained: Path) -> Evaluate:
    """Return a function to the JSON of `evaluate` with these arguments, measured on little general text."""

    def evaluate_with(*arguments: object, general: str = "no") -> dict[str, Any]:
        result = run(*arguments, "--general", general, "--json")
        assert result.exit_code == 0, result.stderr
        record: dict[str, Any] = json.loads(result.stdout)
        return record

    return evaluate_with


def names_of(record: dict[str, Any]) -> list[str]:
    return [model["name"] for model in record["models"]]


def kept(trained: Path) -> list[str]:
    return sorted(
        str(path.parent.relative_to(trained.parent)) for path in trained.parent.rglob("evaluation.json")
    )


def test_a_strategys_model_is_measured_beside_its_base_and_kept(
    trained: Path, evaluate: Evaluate, tiny_base: Path
) -> None:
    record = evaluate("--strategy-file", trained)
    assert set(record) == SUMMARY
    assert names_of(record) == ["base", "tuned"]
    assert (record["model"], record["base_model"]) == (
        str(trained.parent / "one" / "final_model"),
        str(tiny_base),
    )
    assert record["file"] == str(trained.parent / "eval.jsonl") and len(record["sha256"]) == 64
    assert record["max_new_tokens"] == 5 and record["is_held_out"] is True and record["general"] is None
    assert len(record["answers"]) == 12
    assert record["models"][1]["eval_loss"] < record["models"][0]["eval_loss"]
    change = record["changes"]["eval_loss"]
    assert change["low"] <= change["estimate"] <= change["high"] < 0
    assert kept(trained) == ["one"]
    assert json.loads((trained.parent / "one" / "evaluation.json").read_text()) == record


def test_a_run_folder_needs_no_strategy(trained: Path, evaluate: Evaluate) -> None:
    rows = trained.parent / "eval.jsonl"
    by_run = evaluate("--model", trained.parent / "two", "--eval-dataset", rows)
    by_model = evaluate("--model", trained.parent / "two" / "final_model", "--file", rows)
    assert kept(trained) == ["two"]
    for record in (by_run, by_model):
        assert names_of(record) == ["base", "tuned"]
    assert by_run["models"][1]["eval_loss"] == by_model["models"][1]["eval_loss"]


def test_the_base_alone_has_no_changes_and_is_not_kept(trained: Path, evaluate: Evaluate) -> None:
    rows = trained.parent / "eval.jsonl"
    for arguments in (("--strategy-file", trained), ("--model", trained.parent / "one", "--file", rows)):
        record = evaluate(*arguments, "--base")
        assert names_of(record) == ["base"]
        assert record["changes"] == {} and record["model"] == record["base_model"]
    assert kept(trained) == []


def test_several_models_stand_side_by_side_with_their_base_once(trained: Path, evaluate: Evaluate) -> None:
    rows, runs = (
        trained.parent / "eval.jsonl",
        [trained.parent / "one", trained.parent / "two" / "final_model"],
    )
    record = evaluate("--model", runs[0], "--model", runs[1], "--file", rows)
    assert set(record) == {"models"}
    assert [names_of(one) for one in record["models"]] == [["base", "one"], ["two"]]
    losses = [one["models"][-1]["eval_loss"] for one in record["models"]]
    assert losses[0] == pytest.approx(losses[1])
    assert kept(trained) == []


def test_a_checkpoint_is_measured_with_its_own_weights_and_not_kept(
    trained: Path, evaluate: Evaluate
) -> None:
    rows, one = trained.parent / "eval.jsonl", trained.parent / "one"
    early, late = sorted((one / "checkpoints").iterdir())
    record = evaluate("--model", early, "--model", late, "--model", one, "--file", rows)
    assert [names_of(part) for part in record["models"]] == [["base", early.name], [late.name], ["one"]]
    losses = [part["models"][-1]["eval_loss"] for part in record["models"]]
    assert losses[0] != pytest.approx(losses[2], abs=1e-3)
    assert losses[1] == pytest.approx(losses[2], abs=1e-5)
    alone = evaluate("--model", early, "--file", rows)
    assert names_of(alone) == ["base", "tuned"] and alone["model"] == str(early)
    assert alone["models"][1]["eval_loss"] == pytest.approx(losses[0], abs=1e-5)
    assert kept(trained) == []


def test_only_the_first_rows_are_measured_if_asked(trained: Path, evaluate: Evaluate) -> None:
    record = evaluate("--strategy-file", trained, "--rows", 2)
    assert [answer["row"] for answer in record["answers"]] == [1, 2]
    assert run("--strategy-file", trained, "--rows", 0).exit_code == 2


def test_general_text_is_the_built_in_one_a_file_or_none(trained: Path, evaluate: Evaluate) -> None:
    file = str(trained.parent / "general.txt")
    record = evaluate("--strategy-file", trained, "--rows", 1, general=file)
    assert record["general"] == {"name": file, "num_words": 8}
    assert record["models"][0]["general_loss"] > 0 and "general_loss" in record["changes"]
    assert "general_loss" not in evaluate("--strategy-file", trained, "--rows", 1)["models"][0]
    built_in = json.loads(run("--strategy-file", trained, "--rows", 1, "--json").stdout)
    assert built_in["general"]["name"] == "the built-in text"


def test_a_general_text_that_is_not_there_is_refused(trained: Path) -> None:
    result = run("--strategy-file", trained, "--general", "nowhere.txt")
    assert result.exit_code == 2 and "nowhere.txt" in result.stderr


def test_plain_text_is_measured_and_asked_nothing(trained: Path, evaluate: Evaluate) -> None:
    rows = trained.parent / "texts.jsonl"
    record = evaluate("--strategy-file", trained, "--eval-dataset", rows)
    assert record["answers"] == [] and record["file"] == str(rows)
    assert [model["rows"] for model in record["models"]] == [0, 0]
    assert all(model["supervised_tokens"] > 4 for model in record["models"])
    assert set(record["changes"]) == {"eval_loss"}
    shown = run("--strategy-file", trained, "--eval-dataset", rows, "--general", "no", "--quiet")
    assert "eval_loss" in shown.stdout and "exact_match" not in shown.stdout
    assert "2 rows" in shown.stdout and "0 answers" in shown.stdout


def test_people_get_a_table_with_what_is_sure_and_a_few_answers(trained: Path) -> None:
    result = run("--strategy-file", trained, "--general", "no", "--examples", 1)
    header, *lines = [line.split() for line in result.stdout.splitlines()]
    assert header == ["base", "tuned", "change"]
    figures = {line[0]: line[1:] for line in lines}
    assert float(figures["eval_loss"][1]) < float(figures["eval_loss"][0])
    assert figures["eval_loss"][2].startswith("-") and figures["eval_loss"][3].startswith("[")
    assert "general_loss" not in figures and figures["stop_rate"][0].endswith("%")
    assert result.stderr.count("why is ") == 1 and "It is 10." in result.stderr
    assert f"kept in {trained.parent / 'one' / 'evaluation.json'}" in result.stderr


def test_several_models_are_columns_of_one_table(trained: Path) -> None:
    one, two, rows = (trained.parent / name for name in ("one", "two", "eval.jsonl"))
    result = run("--model", one, "--model", two, "--file", rows, "--general", "no", "--examples", 1)
    assert result.stdout.splitlines()[0].split() == ["base", "one", "two"]
    assert "change" not in result.stdout
    assert result.stderr.count("why is 10?") == 1
    for name in ("expected", "base", "one", "two"):
        assert f"\n  {name} " in result.stderr


@pytest.mark.parametrize("option", ["--strategy", "--set"])
def test_what_a_folder_decides_cannot_be_set_beside_it(trained: Path, option: str) -> None:
    value = "s" if option == "--strategy" else "generation.top_k=1"
    rows = trained.parent / "eval.jsonl"
    result = run("--model", trained.parent / "one", option, value, "--file", rows)
    assert result.exit_code == 2 and option in result.stderr


def test_without_rows_it_says_which_option_names_them(trained: Path) -> None:
    result = run("--model", trained.parent / "one")
    assert result.exit_code == 2 and "--eval-dataset" in result.stderr
