"""Splits that are reproducible, lose nothing and do not leak; duplicates."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.selection.corpus import split_file, split_rows
from llamafarm.data.selection.traces import (
    TracesWanted,
    conversation_key,
    first_of_repeats,
    trace_conversations,
)
from llamafarm.errors import DataError, InputError, OutputError


def conversation(prompt: str, answer: str, row_number: int = 1, extra: str = "") -> Conversation:
    return Conversation((Message("user", prompt, extra), Message("assistant", answer)), row_number)


def write_rows(path: Path, num_rows: int) -> list[bytes]:
    """Write a file of distinct rows and return its lines."""
    lines = [
        json.dumps(
            {"instruction": f"Was heißt {n}?", "output": f"„{n}“\u2028"}, ensure_ascii=n % 2 == 0
        ).encode()
        for n in range(num_rows)
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return lines


def lines_of(path: Path) -> list[bytes]:
    content = path.read_bytes()
    assert content.endswith(b"\n")
    return content.split(b"\n")[:-1]


@pytest.mark.parametrize(("num_rows", "percent", "seed"), [(20, 10, 42), (7, 15, 0), (33, 50, 7), (2, 10, 1)])
def test_a_clean_file_is_split_by_the_rule_of_the_original(
    tmp_path: Path, num_rows: int, percent: float, seed: int
) -> None:
    lines = write_rows(tmp_path / "rows.jsonl", num_rows)
    split = split_file(tmp_path / "rows.jsonl", eval_percent=percent, seed=seed)
    random.seed(seed)
    random.shuffle(lines)
    num_train_rows = int(num_rows * (1 - percent / 100))
    assert lines_of(split.train_file) == lines[:num_train_rows]
    assert lines_of(split.eval_file) == lines[num_train_rows:]
    assert (split.num_train_rows, split.num_eval_rows) == (num_train_rows, num_rows - num_train_rows)
    assert split.num_kept_together == 0


def test_the_files_lie_beside_the_source_or_in_the_folder_named(tmp_path: Path) -> None:
    source = tmp_path / "rows.v2.jsonl"
    write_rows(source, 10)
    beside = split_file(source, eval_percent=10, seed=1)
    assert beside.train_file == tmp_path / "rows.v2_train.jsonl"
    assert beside.eval_file == tmp_path / "rows.v2_eval.jsonl"
    elsewhere = split_file(source, eval_percent=10, seed=1, output_dir=tmp_path / "a" / "b")
    assert elsewhere.train_file == tmp_path / "a" / "b" / "rows.v2_train.jsonl"
    assert elsewhere.train_file.read_bytes() == beside.train_file.read_bytes()
    assert elsewhere.eval_file.read_bytes() == beside.eval_file.read_bytes()
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "rows.v2_eval.jsonl",
        "rows.v2_train.jsonl",
    ]


def test_the_split_follows_from_the_seed(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    write_rows(source, 30)
    parts = []
    for seed in (1, 1, 2):
        split = split_file(source, eval_percent=20, seed=seed)
        parts.append((split.train_file.read_bytes(), split.eval_file.read_bytes()))
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize("content_end", [b"", b"\n", b"\r\n", b"\n\n\n"])
def test_line_ends_lose_no_row_and_the_source_stays_as_it_was(tmp_path: Path, content_end: bytes) -> None:
    source = tmp_path / "rows.jsonl"
    lines = [as_bytes(n) for n in range(6)]
    content = b"\xef\xbb\xbf" + b"\r\n".join(lines) + content_end
    source.write_bytes(content)
    split = split_file(source, eval_percent=34, seed=3)
    assert sorted(lines_of(split.train_file) + lines_of(split.eval_file)) == sorted(lines)
    assert source.read_bytes() == content


def as_bytes(key: int) -> bytes:
    return json.dumps({"prompt": f"question {key}", "completion": f"answer {key}"}).encode()


def test_duplicates_stay_together_even_if_written_differently(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    twins = [
        '{"prompt": "What  is\\nit?", "completion": "That."}',
        '{"completion": "THAT.", "prompt": "what is it? "}',
    ]
    source.write_text("\n".join([*(as_bytes(n).decode() for n in range(8)), *twins]))
    num_kept_together = 0
    for seed in range(12):
        split = split_file(source, eval_percent=40, seed=seed)
        train, evaluation = split.train_file.read_text(), split.eval_file.read_text()
        num_kept_together += split.num_kept_together
        for part in (train, evaluation):
            assert len([twin for twin in twins if twin in part]) in (0, 2)
        assert train.count("\n") == split.num_train_rows
        assert evaluation.count("\n") == split.num_eval_rows
    assert num_kept_together > 0


@pytest.mark.parametrize("percent", [0, 100, -5, 150, float("nan"), float("inf")])
def test_a_percentage_that_is_none_is_refused(tmp_path: Path, percent: float) -> None:
    write_rows(tmp_path / "rows.jsonl", 10)
    with pytest.raises(InputError) as caught:
        split_file(tmp_path / "rows.jsonl", eval_percent=percent, seed=1)
    assert f"{percent:g}" in caught.value.problem
    assert not list(tmp_path.glob("*_*.jsonl"))


@pytest.mark.parametrize("keys", [[1], [1, 1], [1, 1, 1, 1]])
def test_too_few_distinct_rows_are_refused(tmp_path: Path, keys: list[int]) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"\n".join(as_bytes(key) for key in keys))
    with pytest.raises(DataError) as caught:
        split_file(source, eval_percent=50, seed=1)
    assert caught.value.where == str(source)
    assert not list(tmp_path.glob("*_*.jsonl"))


def test_a_bad_row_stops_the_split_before_anything_is_written(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(as_bytes(1) + b"\n" + as_bytes(2) + b"\nno\n")
    with pytest.raises(DataError, match=":3"):
        split_file(source, eval_percent=50, seed=1)
    assert list(tmp_path.iterdir()) == [source]


def test_a_folder_that_cannot_be_written_to_is_an_output_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 4)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError) as caught:
        split_file(tmp_path / "rows.jsonl", eval_percent=50, seed=1, output_dir=tmp_path / "taken")
    assert str(tmp_path / "taken") in caught.value.where


@settings(max_examples=200, deadline=None)
@given(
    keys=st.lists(st.integers(0, 12), max_size=20),
    percent=st.floats(0, 100, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**32),
    shuffle=st.booleans(),
)
def test_a_split_loses_nothing_repeats_nothing_and_leaks_nothing(
    keys: list[int], percent: float, seed: int, shuffle: bool
) -> None:
    rows = list(enumerate(keys))
    try:
        train, evaluation = split_rows(rows, keys, percent, seed, "here", shuffle=shuffle)
    except DataError:
        # Distinct rows can always be split.
        assert len(set(keys)) < max(len(keys), 2)
        return
    assert train and evaluation
    assert Counter(train) + Counter(evaluation) == Counter(rows)
    assert not {key for _, key in train} & {key for _, key in evaluation}
    assert (train, evaluation) == split_rows(rows, keys, percent, seed, "here", shuffle=shuffle)


def test_without_shuffling_the_last_rows_are_held_out() -> None:
    rows = list("abcdefghij")
    assert split_rows(rows, rows, 20, 5, "here", shuffle=False) == (rows[:8], rows[8:])


def test_repeats_are_rows_of_equal_turns_but_for_case_and_white_space() -> None:
    first, second = conversation("Is it?", "Yes", 1), conversation("is  IT?\n", " yes", 2)
    other, with_input = conversation("Is it?", "No", 3), conversation("Is", "Yes", 4, extra="it?")
    assert conversation_key(first) == conversation_key(second) == conversation_key(with_input)
    traces = trace_conversations([first, other, second, with_input, other], TracesWanted())
    assert first_of_repeats(traces.keys_N2).tolist() == [0, 1, 0, 0, 1]
    assert traces.row_numbers_N.tolist() == [1, 3, 2, 4, 3]


def test_who_says_something_tells_rows_apart() -> None:
    turns = Message("user", "a"), Message("assistant", "b")
    with_system = Conversation((Message("system", ""), *turns), 1)
    swapped = Conversation((Message("user", "b"), Message("assistant", "a")), 1)
    keys = {conversation_key(row) for row in (Conversation(turns, 1), with_system, swapped)}
    assert len(keys) == 3


def test_each_stratum_keeps_its_share(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    kinds = ["a"] * 60 + ["b"] * 30 + [None] * 10
    rows = [
        {"prompt": f"{n} what is {n}", "completion": f"{n}!"} | ({"kind": kind} if kind else {})
        for n, kind in enumerate(kinds)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = split_file(source, eval_percent=20, seed=3, stratify_by="kind")
    held_out = [json.loads(line).get("kind") for line in lines_of(split.eval_file)]
    assert Counter(held_out) == {"a": 12, "b": 6, None: 2}
    assert split.num_train_rows + split.num_eval_rows == 100
    train = lines_of(split.train_file)
    assert split_file(source, eval_percent=20, seed=3, stratify_by="kind").num_eval_rows == 20
    assert lines_of(split.train_file) == train
    with pytest.raises(InputError, match="no row has the column 'sort'"):
        split_file(source, eval_percent=20, seed=3, stratify_by="sort")


def test_many_small_strata_keep_their_share_together() -> None:
    rows = list(range(40))
    train, evaluation = split_rows(rows, rows, 10, 1, "here", strata=[row // 2 for row in rows])
    assert (len(train), len(evaluation)) == (36, 4)


def test_rows_that_are_nearly_the_same_stay_together(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    text = "the answer is long enough that one word more or less makes hardly any difference to it"
    pairs = [
        (f"row {n} asks", f"{n} {n} {n} {text} {n} {n} {n} {end}") for n in range(20) for end in ("", "so")
    ]
    source.write_text("question,answer\n" + "".join(f"{question},{answer}\n" for question, answer in pairs))
    for seed in range(5):
        split = split_file(source, eval_percent=30, seed=seed)
        sides = [
            {json.loads(line)["question"] for line in lines_of(file)}
            for file in (split.train_file, split.eval_file)
        ]
        assert not sides[0] & sides[1]
        assert split.num_kept_together > 0
    assert split.train_file.name == "rows_train.jsonl"
