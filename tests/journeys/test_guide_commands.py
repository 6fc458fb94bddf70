"""The guide's command lines, word for word, in a copy of the checkout: from setting up to an answer."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

SETUP = "setup demos/strategies.yaml --strategy demo3_training_optimized --verify-only"
TRAIN = """train \
  --strategy demo3_training_optimized \
  --strategy-file demos/strategies.yaml \
  --train-dataset medical_qa_train.jsonl \
  --eval-dataset medical_qa_eval.jsonl"""
COMPLETE = """complete "What are symptoms of diabetes?" \
  --strategy demo3_finetuned_model \
  --strategy-file demos/strategies.yaml"""
CONVERT = """convert \
  ./fine_tuned_models/medical_optimized/final_model \
  ./medical-model \
  --format ollama \
  --model-name medical-llama3.2"""
SPLIT = "--input data.jsonl --eval-percent {}"


@pytest.fixture(scope="module")
def trained(run_python: Run, checkout: Path) -> tuple[Any, Path]:
    """Train as the guide does, for two steps; return what was said, and the run's folder."""
    said = run_python("cli.py", *shlex.split(TRAIN), "--max-steps", "2")
    assert said.code == 0, said.err
    return said, checkout / "fine_tuned_models" / "medical_optimized"


def test_setup_checks_a_strategy_and_writes_nothing(
    run_python: Run, checkout: Path, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    before = snapshot(checkout)
    said = run_python("cli.py", *shlex.split(SETUP))
    assert (said.code, said.out) == (0, "demo3_training_optimized can run on this machine\n")
    assert snapshot(checkout) == before
    # Each setting is printed with where it was written.
    (line,) = [line for line in said.err.splitlines() if line.startswith("training_args.learning_rate ")]
    assert line.split()[1:] == [
        "5e-05",
        f"demos/strategies.yaml:{line_of('learning_rate: 0.00005', checkout)}",
    ]
    assert "1012 training rows, 113 evaluation rows" in said.err


def line_of(text: str, checkout: Path) -> int:
    lines = (checkout / "demos" / "strategies.yaml").read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


def test_train_finds_the_data_beside_the_strategys_own_and_leaves_a_whole_run(
    trained: tuple[Any, Path], checkout: Path
) -> None:
    said, folder = trained
    assert said.out.strip() == "fine_tuned_models/medical_optimized/final_model"
    assert {path.name for path in folder.iterdir()} >= {"final_model", "metrics.jsonl", "run.json"}
    assert {path.name for path in (folder / "final_model").iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "llamafarm.json", "tokenizer.json",
    }  # fmt: skip
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    data = "demos/datasets/medical/medical_qa_{}.jsonl"
    assert [entry["file"] for entry in record["data"]] == [data.format("train"), data.format("eval")]
    assert record["origins"]["dataset.train_file"] == "command line --train-dataset"
    assert record["result"]["num_steps"] == 2
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[-1]["eval_loss"] == record["result"]["eval_loss"] > 0


def test_complete_answers_with_what_was_trained(trained: tuple[Any, Path], run_python: Run) -> None:
    said = run_python("cli.py", *shlex.split(COMPLETE), "--max-tokens", "8", "--temperature", "0")
    assert said.code == 0, said.err
    assert said.out.strip()
    assert "Question:" not in said.out
    assert "<|" not in said.out


@pytest.mark.parametrize("uses_base", [False, True], ids=["tuned", "base"])
def test_complete_prints_one_json_object_and_nothing_else(
    trained: tuple[Any, Path], speak: Run, checkout: Path, monkeypatch: pytest.MonkeyPatch, uses_base: bool
) -> None:
    monkeypatch.chdir(checkout)
    options = ["--json", "--max-tokens", "4", "--temperature", "0", *(["--base"] if uses_base else [])]
    said = speak([*shlex.split(COMPLETE), *options])
    assert (said.code, said.err) == (0, "")
    answer = json.loads(said.out)
    assert said.out.count("\n") == 1
    assert answer["prompt"] == "What are symptoms of diabetes?"
    assert answer["base_model"] == "cria-5m"
    assert answer["model"] == ("cria-5m" if uses_base else "fine_tuned_models/medical_optimized/final_model")
    assert isinstance(answer["response"], str)
    assert answer["tokens"] <= 4


def test_a_run_can_be_asked_without_its_strategy(
    trained: tuple[Any, Path], speak: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = speak(["complete", "What is asthma?", "--model", str(trained[1]), "--json", "--max-tokens", "4"])
    assert said.code == 0, said.out
    assert json.loads(said.out)["model"] == str(trained[1] / "final_model")


def test_evaluate_puts_the_base_beside_the_tuned_model(
    trained: tuple[Any, Path], run_python: Run, checkout: Path
) -> None:
    lines = (checkout / "demos/datasets/medical/medical_qa_eval.jsonl").read_text().splitlines()[:4]
    (checkout / "few.jsonl").write_text("\n".join(lines) + "\n")
    options = ["--eval-dataset", "few.jsonl", "--json", "--set", "generation.max_new_tokens=4"]
    said = run_python("cli.py", "evaluate", *shlex.split(COMPLETE)[2:], *options)
    assert said.code == 0, said.err
    measured = json.loads(said.out)
    assert said.out.count("\n") == 1
    assert measured["file"] == "few.jsonl"
    base, tuned = measured["models"]
    assert (base["name"], tuned["name"]) == ("base", "tuned")
    for one in (base, tuned):
        assert one["rows"] == 4
        assert one["eval_loss"] > 0
    assert base["supervised_tokens"] == tuned["supervised_tokens"]


@pytest.mark.parametrize("percent", [10, 15, 5])
def test_both_ways_to_split_a_file_give_the_same_bytes(
    run_python: Run, checkout: Path, tmp_path: Path, percent: int
) -> None:
    content = (checkout / "demos/datasets/medical/medical_qa_eval.jsonl").read_bytes()
    parts = []
    for folder, words in (("a", ["cli.py", "data", "split"]), ("b", ["demos/create_data_split.py"])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.jsonl").write_bytes(content)
        said = run_python(*words, *shlex.split(SPLIT.format(percent)), folder=tmp_path / folder)
        assert said.code == 0, said.err
        assert said.out.splitlines()[0].startswith("data_train.jsonl ")
        parts.append([(tmp_path / folder / f"data_{part}.jsonl").read_bytes() for part in ("train", "eval")])
    assert parts[0] == parts[1]
    train, evaluation = ([*part.splitlines()] for part in parts[0])
    assert sorted(train + evaluation) == sorted(content.splitlines())
    assert len(evaluation) == pytest.approx(len(content.splitlines()) * percent / 100, abs=1)
    assert not set(train) & set(evaluation)


@pytest.mark.slow
def test_the_demo_goes_from_set_up_to_better_answers(run_python: Run) -> None:
    said = run_python("demos/demo3_training.py", timeout=900)
    assert said.code == 0, said.err
    before, after = re.findall(r"^exact_match +([0-9.]+)% +([0-9.]+)%", said.out, re.M)[-1]
    assert float(before) < 5
    assert float(after) > 70


def test_convert_makes_a_model_for_ollama_as_the_guide_types_it(
    trained: tuple[Any, Path], run_python: Run, checkout: Path, ollama: Any
) -> None:
    server = {"OLLAMA_HOST": ollama.address}
    said = run_python("cli.py", *shlex.split(CONVERT), "--overwrite", variables=server)
    assert said.code == 0, said.err
    assert said.out.strip() == "medical-model/medical-llama3.2-q8_0.gguf"
    assert "verified against the trained model" in said.err and "merged weights  100.0%" in said.err
    assert f"medical-llama3.2 is in Ollama 0.33.0 at {ollama.address}" in said.err
    assert list(ollama.models) == ["medical-llama3.2:latest"]
    folder = checkout / "medical-model"
    assert {path.name for path in folder.iterdir()} == {
        "Modelfile", "medical-llama3.2-q8_0.gguf", "medical-llama3.2-q8_0.verify.json",
    }  # fmt: skip
    assert ollama.models["medical-llama3.2:latest"]["system"].startswith("Answer medical questions")
    again = run_python("cli.py", *shlex.split(CONVERT))
    assert again.code == 2 and "is there already" in again.err and "--overwrite" in again.err


@pytest.mark.slow
def test_the_file_that_training_exported_is_verified_and_asked(
    trained: tuple[Any, Path], run_python: Run
) -> None:
    file = "fine_tuned_models/medical_optimized/export/medical-llama3.2-optimized-q8_0.gguf"
    said = run_python("cli.py", "verify", file, "fine_tuned_models/medical_optimized", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["steps"][-1]["name"] == "q8_0"
    said = run_python("cli.py", "complete", "What is asthma?", "--model", file, "--max-tokens", "5")
    assert said.code == 0 and said.out.strip(), said.err


@pytest.mark.parametrize(
    "options",
    [
        ["--format", "safetensors", "--quantization", "q4_k_m"],
        ["--format", "pytorch", "--system-prompt", "x", "--importance"],
        ["--format", "gguf", "--push"],
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    trained: tuple[Any, Path], run_python: Run, checkout: Path, options: list[str]
) -> None:
    said = run_python("cli.py", "convert", "fine_tuned_models/medical_optimized", "unwritten", *options)
    assert said.code == 2 and f"would change nothing of the format {options[1]}" in said.err
    assert options[2] in said.err and not (checkout / "unwritten").exists()
