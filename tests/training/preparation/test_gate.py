"""The gate before step 1: each finding in a case that has it, none without, and through training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from llamafarm.data.encoding.rows import EncodedRow, EncodedRows
from llamafarm.errors import DataError
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.sections.data import FindingName
from llamafarm.training.preparation import gate as gate_module
from llamafarm.training.preparation import prepare as prepare_module
from llamafarm.training.preparation.gate import GateFigures, check_gate, find_faults
from llamafarm.training.preparation.prepare import prepare
from llamafarm.training.run import run_training

Load = Callable[..., LoadedStrategy]
END, MARK, PROMPT, WORD = 9, 8, 1, 2


def row(tokens: list[int], trained: list[int], number: int = 1) -> EncodedRow:
    return EncodedRow(np.asarray(tokens, np.int32), np.asarray(trained, bool), number)


GOOD = row([PROMPT, WORD, END, PROMPT, WORD, WORD, END, PROMPT], [0, 1, 1, 0, 1, 1, 1, 0])


def figures(*rows: EncodedRow, untrained: dict[int, str] | None = None) -> GateFigures:
    """Count GOOD and the rows, in two parts."""
    found = GateFigures(frozenset({END}), untrained or {})
    found.add(EncodedRows.of([GOOD]))
    found.add(EncodedRows.of(rows))
    return found


CASES: dict[FindingName, tuple[GateFigures, bool, str]] = {
    "no_supervised_tokens": (figures(row([PROMPT, WORD], [0, 0], 7)), True, "1 of 2 training rows (7)"),
    "answer_without_end": (
        figures(*(row([PROMPT, WORD, WORD], [0, 1, 1], number) for number in range(1, 8))),
        True,
        "7 of 8 training rows (1, 2, 3, 4, 5, …)",
    ),
    "untrained_control_tokens": (
        figures(row([MARK, WORD, END], [0, 1, 1]), untrained={MARK: "<|mark|>", 99: "<|other|>"}),
        False,
        "<|mark|> in 1 rows",
    ),
    "few_supervised_tokens": (figures(), False, "a step has"),
}


@pytest.mark.parametrize("name", get_args(FindingName))
def test_each_finding_is_made_told_and_can_be_allowed(name: FindingName) -> None:
    seen, is_blocking, mentions = CASES[name]
    num_steps = 2 if name == "few_supervised_tokens" else 1
    found = {finding.name: finding for finding in find_faults(seen, num_steps)}
    assert found[name].is_blocking == is_blocking
    assert mentions in found[name].problem
    others: list[FindingName] = [other for other in found if other != name]
    if is_blocking:
        with pytest.raises(DataError) as caught:
            check_gate(seen, num_steps, others, "rows.jsonl")
        assert caught.value.where == "rows.jsonl"
        assert f"dataset.allow: [{name}]" in caught.value.remedy
    else:
        (warning,) = check_gate(seen, num_steps, others, "rows.jsonl")
        assert name in warning
    assert check_gate(seen, num_steps, [*others, name], "rows.jsonl") == []


def test_good_rows_have_no_finding() -> None:
    whole = row([PROMPT, WORD, END, PROMPT], [1, 1, 1, 1])
    assert list(find_faults(figures(whole, untrained={MARK: "<|mark|>"}), 1)) == []


def test_an_end_of_turn_that_was_never_trained_blocks() -> None:
    (finding,) = find_faults(figures(untrained={END: "<|end|>"}), 1)
    assert (finding.name, finding.is_blocking) == ("untrained_control_tokens", True)


def test_a_row_with_nothing_to_train_on_stops_the_run_before_it_starts(load: Load, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    rows = [{"messages": turns}, {"messages": [turns[0], turns[1] | {"weight": 1}]}]
    with pytest.raises(DataError, match=r"1 of 2 training rows \(1\) have no token"):
        run_training(load(rows))
    assert not (tmp_path / "run").exists()
    prepared = prepare(load(rows, dataset__allow=["no_supervised_tokens"]))
    assert len(prepared.train_rows) == 2


def test_an_adapter_does_not_train_what_a_token_is_and_full_training_does(
    load: Load, make_rows: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "find_untrained_tokens", lambda _, texts: texts)
    with pytest.raises(DataError, match="was never trained on"):
        prepare(load(make_rows(4)))
    full = {"method.type": "full_finetune", "method.target_modules": None, "method.dropout": None}
    settings = {**full, "method.r": None, "method.alpha": None, "training_args.learning_rate": 1e-5}
    assert prepare(load(make_rows(4), **settings)).train_rows


def test_what_is_not_here_yet_is_looked_at_once_it_is(
    load: Load,
    make_rows: Callable[..., list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    find = prepare_module.find_source
    monkeypatch.setattr(prepare_module, "find_source", lambda *names: replace(find(*names), is_local=False))
    num_looks = 0

    def find_untrained(_: Path, texts: dict[int, str]) -> dict[int, str]:
        nonlocal num_looks
        num_looks += 1
        return texts if num_looks == 2 else {}

    monkeypatch.setattr(gate_module, "find_untrained_tokens", find_untrained)
    with pytest.raises(DataError, match="was never trained on"):
        run_training(load(make_rows(4)))
    assert not (tmp_path / "run").exists()
