"""What a person gets whose input is wrong: three lines, exit code 2, and nothing else changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Speak = Callable[..., Any]
Snapshot = Callable[[Path], dict[str, bytes]]

STRATEGY = """\
mine:
  dataset: {train_file: rows.jsonl}
  training_args: {output_dir: out, max_steps: 1}
"""
ROWS = [{"instruction": f"what is {number}?", "input": "", "output": "a number."} for number in range(4)]
FILES = {
    "strategies.yaml": STRATEGY,
    "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "broken.yaml": "mine:\n  dataset: [rows.jsonl\n",
    "typo.yaml": STRATEGY + "  trainig_args: {max_steps: 1}\n",
    "misplaced.yaml": STRATEGY.replace("max_steps", "max_step"),
    "empty.jsonl": "",
    "no_answer.jsonl": json.dumps(ROWS[0]) + "\n" + json.dumps({"instruction": "why?", "output": ""}) + "\n",
    "no_json.jsonl": "what is it?\n",
    "taken/metrics.jsonl": "{}\n",
    "file": "not a folder\n",
}
TRAIN = ("train", "--strategy", "mine")

# What was typed; what must stand in the line that says what is wrong, and in the one that says where.
CASES = {
    "missing data file": ((*TRAIN, "--train-dataset", "gone.jsonl"), "gone.jsonl", "tried "),
    "missing eval file": ((*TRAIN, "--eval-dataset", "gone.jsonl"), "gone.jsonl", "tried "),
    "missing strategy file": ((*TRAIN, "--strategy-file", "gone.yaml"), "", "gone.yaml"),
    "broken YAML": ((*TRAIN, "--strategy-file", "broken.yaml"), "", "broken.yaml:"),
    "unknown strategy": (("train", "--strategy", "mien"), "mien", "strategies.yaml"),
    "unknown section": ((*TRAIN, "--strategy-file", "typo.yaml"), "trainig_args", "typo.yaml:4"),
    "unknown key": ((*TRAIN, "--strategy-file", "misplaced.yaml"), "max_step", "misplaced.yaml:3"),
    "unknown setting": ((*TRAIN, "--set", "training_args.learning_rat=1"), "learning_rat", "--set"),
    "bad value": ((*TRAIN, "--set", "training_args.learning_rate=fast"), "fast", "--set"),
    "bad option": ((*TRAIN, "--max-steps", "0"), "0", "--max-steps"),
    "empty data file": ((*TRAIN, "--train-dataset", "empty.jsonl"), "no rows", "empty.jsonl"),
    "row without an answer": ((*TRAIN, "--train-dataset", "no_answer.jsonl"), "answer", "no_answer.jsonl:2"),
    "data that is no JSON": ((*TRAIN, "--train-dataset", "no_json.jsonl"), "JSON", "no_json.jsonl:1"),
    "missing base folder": (
        (*TRAIN, "--set", "base_model.huggingface_id=./gone"), "./gone", "base_model.huggingface_id",
    ),
    "unreachable base": (
        (*TRAIN, "--set", "base_model.huggingface_id=some/model"), "some/model", "base_model.huggingface_id",
    ),
    "output folder taken": ((*TRAIN, "--output-dir", "taken"), "earlier run", "taken"),
    "output folder is a file": ((*TRAIN, "--output-dir", "file"), "is a file", "file"),
    "module that is not there": (
        (*TRAIN, "--set", "method.target_modules=[query]"), "query", "method.target_modules",
    ),
    "nothing trained yet": (("complete", "why?", "--strategy", "mine"), "no trained model", "out"),
    "empty prompt": (("complete", "  ", "--strategy", "mine"), "empty", ""),
    "nothing to evaluate on": (("evaluate", "--strategy", "mine"), "no rows", "dataset.eval_file"),
    "split of nothing": (("data", "split", "--input", "gone.jsonl"), "gone.jsonl", "gone.jsonl"),
    "split of too much": (
        ("data", "split", "--input", "rows.jsonl", "--eval-percent", "100"), "100", "--eval-percent",
    ),
    "setup of nothing": (("setup", "gone.yaml", "--verify-only"), "", "gone.yaml"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(err: str) -> tuple[str, str, str]:
    """Return what is wrong, where, and what to try: the last three lines, after none of the kind."""
    *before, problem, where, remedy = err.splitlines()
    assert not any(line.startswith(("error:", "at:", "try:")) for line in before)
    assert "Traceback" not in err
    parts = tuple(
        line.removeprefix(label).strip()
        for line, label in zip((problem, where, remedy), ("error:", "at:", "try:"), strict=True)
        if line.startswith(label)
    )
    assert len(parts) == 3
    assert all(parts)
    return parts


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_three_lines_and_changes_nothing(
    folder: Path, speak: Speak, snapshot: Snapshot, case: str
) -> None:
    arguments, in_problem, in_where = CASES[case]
    before = snapshot(folder)
    said = speak(arguments)
    assert (said.code, said.out) == (2, "")
    problem, where, _ = error_of(said.err)
    assert in_problem in problem
    assert in_where in where
    assert snapshot(folder) == before


def test_nothing_wrong_is_no_error(folder: Path, speak: Speak) -> None:
    said = speak(TRAIN)
    assert said.code == 0, said.err
    assert "error:" not in said.err


def test_the_hint_names_the_nearest_key_and_strategy(folder: Path, speak: Speak) -> None:
    assert "max_steps" in error_of(speak((*TRAIN, "--strategy-file", "misplaced.yaml")).err)[2]
    assert "mine" in error_of(speak(("train", "--strategy", "mien")).err)[2]


def test_with_json_the_error_is_the_one_object_on_stdout(folder: Path, speak: Speak) -> None:
    said = speak(("complete", "why?", "--strategy", "mine", "--json"))
    assert (said.code, said.err) == (2, "")
    record = json.loads(said.out)
    assert set(record) == {"error", "problem", "where", "remedy", "exit_code"}
    assert record["exit_code"] == 2


def test_a_process_of_its_own_says_and_leaves_the_same(
    folder: Path, run_python: Callable[..., Any], snapshot: Snapshot
) -> None:
    before = snapshot(folder)
    said = run_python("cli.py", *TRAIN, "--train-dataset", "no_answer.jsonl", folder=folder)
    assert (said.code, said.out) == (2, "")
    assert error_of(said.err)[1].endswith("no_answer.jsonl:2")
    assert snapshot(folder) == before
