"""What is left out of a file: each rule in a case that breaks it and in ones that do not; `data clean`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llamafarm import terminal
from llamafarm.commands.data.clean import clean
from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.selection.cleaning import CleaningRules, LeftOut, clean_rows
from llamafarm.data.selection.quality import RULES
from llamafarm.data.selection.traces import TracesWanted, trace_conversations
from llamafarm.errors import InputError, OutputError


def row(question: str, answer: str, number: int = 1) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), number)


def clean_parts(
    parts: Sequence[Sequence[Conversation]], rules: CleaningRules
) -> tuple[list[list[Conversation]], list[LeftOut]]:
    wanted = TracesWanted(of_quality=True, of_near_duplicates=True)
    kept, left_out = clean_rows([trace_conversations(part, wanted) for part in parts], rules)
    return [[part[index] for index in indices] for part, indices in zip(parts, kept, strict=True)], left_out


def filter_quality(rows: Sequence[Conversation]) -> tuple[list[Conversation], list[LeftOut]]:
    (kept,), left_out = clean_parts([rows], CleaningRules(drops_repeats=False, filters_quality=True))
    return kept, left_out


PROPER = [
    row(f"What is {n}?", f"It is the number that comes after {n - 1} and before {n + 1}.") for n in range(30)
]

# Of each rule: rows that break it, and rows that look like it and do not.
CASES: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    "placeholder": (
        [("a?", "N/A"), ("a?", " TODO ")],
        [("a?", "None"), ("a?", "-"), ("a?", "n/a is short for it")],
    ),
    "repeats_question": (
        [("What is it ?", "what is it?"), ("Is X inherited ?", "Is X inherited?")],
        [("Repeat: a", "a"), ("yes", "yes"), ("What is it?", "What is it? A cat.")],
    ),
    "loop": (
        [("a?", "so on so on so on so on"), ("a?", "It is very very very very good.")],
        [("a?", "ha ha ha"), ("a?", "one two one two one two three")],
    ),
    "wrong_letters": ([("a?", "CafÃ© donâ€™t")], [("a?", "Café, Ã and â stand alone")]),
    "html_left": (
        [("a?", "One<br>two"), ("a?", "<p>One</p>"), ("a?", "a &nbsp; b")],
        [
            ("a?", "press <p>"),
            ("Write HTML", "<p>a</p>"),
            ("a?", "```\n<p>a</p>\n```"),
            ("a?", "if a < b > c"),
        ],
    ),
    "cut_off": (
        [("a?", "It begins well and then it goes on until it stops in the")],
        [("a?", "John Smith"), ("a?", "one, two, three, four, five, six, seven, eight!"), ("a?", "x = 3")],
    ),
}


def test_every_rule_has_its_cases() -> None:
    assert list(CASES) == [rule.name for rule in RULES]


@pytest.mark.parametrize("name", CASES)
def test_a_rule_removes_what_breaks_it_and_nothing_else(name: str) -> None:
    broken, good = CASES[name]
    rows = [row(*texts, number) for number, texts in enumerate([*broken, *good], start=101)]
    kept, removed = filter_quality([*PROPER, *rows])
    (found,) = removed
    assert found.setting == f"data_preprocessing.filter_quality: {name}"
    assert found.row_numbers == tuple(range(101, 101 + len(broken)))
    assert str(found).startswith(f"{len(broken)} rows are left out, because ")
    assert kept == [*PROPER, *rows[len(broken) :]]


def test_answers_may_break_off_in_a_file_where_they_do() -> None:
    rows = [row("a?", "a list of words without any full stop at all", number) for number in range(30)]
    assert filter_quality(rows) == (rows, [])
    # Too few to have a habit.
    few = [*PROPER[:5], rows[0]]
    assert filter_quality(few) == (few, [])


def test_a_later_part_loses_what_an_earlier_one_has() -> None:
    one, two = row("a b c d", "e f g h", 1), row("i j k l", "m n o p", 2)
    again, nearly = row("A b c d", "e f  g h", 3), row("i j k l", "m n o p q", 4)
    kept, left_out = clean_parts([[one, two], [again, nearly]], CleaningRules(near_duplicate_threshold=0.8))
    assert kept == [[one, two], []]
    assert [(found.setting, found.row_numbers) for found in left_out] == [
        ("data_preprocessing.remove_duplicates", (3,)),
        ("data_preprocessing.remove_near_duplicates", (4,)),
    ]
    kept, left_out = clean_parts([[one], [again]], CleaningRules(drops_repeats=False))
    assert (kept, left_out) == ([[one], [again]], [])


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(terminal, "mode", terminal.Mode())
    path = tmp_path / "rows.jsonl"
    lines = [
        '{ "prompt":"a b c d" , "completion":"e f g h"}\r',
        "",
        '{"prompt": "A b c d", "completion": "e f g h"}',
        "{broken",
        '{"prompt": "a b c d", "completion": "e f g h i"}',
        '{"prompt": "what?", "completion": "TODO"}',
        '{"prompt": "\\u00e9", "completion": "x"}',
    ]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    return path


def test_the_rows_that_stay_are_written_as_they_stood(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_bytes()
    clean(file, drops_near=True, threshold=0.7, filters_quality=True, report=file.with_name("report.json"))
    written = file.with_name("rows_clean.jsonl")
    said = capsys.readouterr()
    assert said.out == f"{written}  2 of 6 rows\n"
    assert written.read_text(encoding="utf-8").splitlines() == [
        '{ "prompt":"a b c d" , "completion":"e f g h"}',
        '{"prompt": "\\u00e9", "completion": "x"}',
    ]
    assert file.read_bytes() == before
    report: dict[str, Any] = json.loads(file.with_name("report.json").read_text(encoding="utf-8"))
    assert (report["num_rows"], report["num_kept"], report["num_bad_rows"]) == (6, 2, 1)
    assert [found["row_numbers"] for found in report["left_out"]] == [[3], [5], [6]]
    assert report["bad_rows"][0]["where"] == f"{file}:4"
    assert "placeholder" in said.err and f"{file}:4" in said.err


def test_only_repeats_go_unless_more_is_asked_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean(file, output=file.with_name("out.jsonl"), prints_json=True)
    record = json.loads(capsys.readouterr().out)
    assert (record["num_kept"], [found["row_numbers"] for found in record["left_out"]]) == (4, [[3]])


@pytest.mark.parametrize(("output", "error"), [("rows.jsonl", InputError), ("rows.jsonl/x", OutputError)])
def test_the_file_itself_is_never_written_to(
    file: Path, output: str, error: type[Exception], snapshot_of: Callable[[Path], dict[str, bytes]]
) -> None:
    before = snapshot_of(file.parent)
    with pytest.raises(error):
        clean(file, output=file.parent / output)
    with pytest.raises(InputError, match="folder"):
        clean(file.parent)
    assert snapshot_of(file.parent) == before


@pytest.fixture
def snapshot_of() -> Callable[[Path], dict[str, bytes]]:
    return lambda folder: {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
