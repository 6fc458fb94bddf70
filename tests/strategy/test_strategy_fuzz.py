"""Broken strategies: no traceback, no hang, single defects named by key and line.

A few hundred seeded cases of what `benchmarks/strategy_fuzz.py` does 10,000 times.
"""

from __future__ import annotations

import json
import random
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from llamafarm import terminal
from llamafarm.cli import main
from llamafarm.strategy import load

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
fuzz: Any = import_module("strategy_fuzz")
mutations: Any = import_module("strategy_mutations")
seeds: Any = import_module("strategy_seeds")

NUM_CASES = 240
NUM_COMMANDS = 50


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    return list(fuzz.make_cases(NUM_CASES, seed=20261125, num_random_seeds=10))


def test_no_traceback_no_hang_and_single_defects_are_named(cases: list[Any], tmp_path: Path) -> None:
    verdicts = [fuzz.judge(case, tmp_path) for case in cases]
    assert fuzz.failures(verdicts) == []
    accepted = [v.case for v in verdicts if v.case.expected.is_single_defect and v.outcome == "loaded"]
    assert accepted == []
    assert {case.kind for case in cases} == set(mutations.MUTATIONS)
    assert len({case.setting for case in cases} & set(seeds.LEAVES)) > len(seeds.LEAVES) / 3


def test_every_seed_is_valid_and_its_keys_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    made = seeds.make_seeds(random.Random(1), 10)
    written = [seed for seed in made if not seed.strategy.startswith("strategy_")]
    assert len(written) > 20 and len(made) >= len(written) + 10
    for seed in made:
        (tmp_path / "s.yaml").write_text(seed.text)
        loaded = load.load_strategy(seed.strategy, file=tmp_path / "s.yaml")
        lines = {path: origin.where.rpartition(":")[2] for path, origin in loaded.origins.items()}
        settings = [key for key in seed.keys if key.leaf is not None and key.value]
        assert settings
        for key in settings:
            assert lines[".".join(key.place)] == str(key.line + 1), key


def test_a_wrong_answer_is_told_from_a_right_one(
    cases: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge itself: a traceback, a hang, a wrong line and a wrong name are failures."""
    case = next(case for case in cases if case.kind == "unknown key")
    expected = case.expected
    wrong_line = mutations.Expected(expected.names, (expected.lines[0] + 1,))
    for other in (wrong_line, mutations.Expected(("another",), expected.lines)):
        verdict = fuzz.judge(mutations.Case(case.kind, case.content, case.strategy, other), tmp_path)
        assert fuzz.failures([verdict])[0] == "only 0.0% of single defects named by key and line, or option"

    def crash(*_: object, **__: object) -> None:
        raise RecursionError("too deep")

    def hang(*_: object, **__: object) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "load_strategy", crash)
    assert "RecursionError" in fuzz.failures([fuzz.judge(case, tmp_path)])[0]
    monkeypatch.setattr(fuzz, "load_strategy", hang)
    monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.05)
    assert "Hang" in fuzz.failures([fuzz.judge(case, tmp_path)])[0]


def test_the_command_line_says_three_lines_and_exits_with_2(
    cases: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "mode", terminal.Mode())
    monkeypatch.chdir(tmp_path)
    single = [case for case in cases if case.expected.is_single_defect and len(case.content) < 20_000]
    for number, case in enumerate(single[:: len(single) // NUM_COMMANDS]):
        Path("s.yaml").write_bytes(case.content)
        arguments = ["cli.py", "setup", "s.yaml", "--verify-only", "--strategy", case.strategy]
        arguments += [f"--set={path}={text}" for path, text in case.overrides]
        prints_json = number % 5 == 0
        monkeypatch.setattr(sys, "argv", arguments + ["--json"] * prints_json)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert left.value.code == 2, (case, said)
        assert "Traceback" not in said.err
        if prints_json:
            assert json.loads(said.out)["exit_code"] == 2 and not said.err
        else:
            assert [line[:7] for line in said.err.splitlines()] == ["error: ", "at:    ", "try:   "], case
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]
