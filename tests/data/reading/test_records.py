"""Reading data files: the forms of rows, what is refused, and the line that it is refused at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.data.conversation import Message
from llamafarm.data.reading.formats import FORMATS
from llamafarm.data.reading.records import DataFile, ReadOptions, read_data_file
from llamafarm.errors import DataError

Write = Callable[[bytes], Path]

GOOD = b'{"prompt": "p", "completion": "c"}'
USER, ASSISTANT, SYSTEM = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Write the bytes of a data file and return its path."""
    path = tmp_path_factory.mktemp("records") / "rows.jsonl"

    def write_bytes(content: bytes) -> Path:
        path.write_bytes(content)
        return path

    return write_bytes


def as_line(row: Any) -> bytes:
    return json.dumps(row).encode()


def refusal(path: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_data_file(path, ReadOptions(**options))
    error = caught.value
    assert all(part.strip() and "\n" not in part for part in (error.problem, error.where, error.remedy))
    return error


def rows_of(file: DataFile) -> list[tuple[int, tuple[Message, ...]]]:
    return [(row.row_number, row.messages) for row in file.conversations]


@pytest.mark.parametrize(
    ("format_name", "row", "messages"),
    [
        (
            "messages",
            {"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]},
            [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "u"), ("assistant", "a")],
        ),
        ("alpaca", {"instruction": "i", "output": "o"}, [("user", "i"), ("assistant", "o")]),
        ("alpaca", {"instruction": "i", "input": "", "output": "o"}, [("user", "i"), ("assistant", "o")]),
        (
            "alpaca",
            {"instruction": "i", "input": "x", "output": "o"},
            [("user", "i", "x"), ("assistant", "o")],
        ),
        ("alpaca", {"instruction": "", "input": "x", "output": "o"}, [("user", "x"), ("assistant", "o")]),
        (
            "alpaca",
            {"instruction": "i", "input": None, "output": "o", "system": "s"},
            [("system", "s"), ("user", "i"), ("assistant", "o")],
        ),
        ("prompt-completion", {"prompt": "p", "completion": "c"}, [("user", "p"), ("assistant", "c")]),
        ("question-answer", {"question": "q", "answer": "a"}, [("user", "q"), ("assistant", "a")]),
        ("text", {"text": "t", "label": 1}, [("text", "t")]),
        (
            "sharegpt",
            {
                "system": "s",
                "conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}],
            },
            [("system", "s"), ("user", "u"), ("assistant", "a")],
        ),
        (
            "sharegpt",
            {"conversations": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
            [("user", "u"), ("assistant", "a")],
        ),
        (
            "prompt-completion",
            {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
            [("system", "s"), ("user", "u"), ("assistant", "a")],
        ),
        ("question-answer", {"question": "q", "answer": "a", "id": 7}, [("user", "q"), ("assistant", "a")]),
    ],
)
def test_every_form_of_row_is_told_from_its_keys(
    write: Write, format_name: str, row: dict[str, Any], messages: list[tuple[str, ...]]
) -> None:
    path = write(as_line(row) + b"\n")
    expected = [(1, tuple(Message(*message) for message in messages))]
    for asked in ("auto", format_name):
        file = read_data_file(path, ReadOptions(asked))
        assert file.format_name == format_name
        assert rows_of(file) == expected


def test_the_forms_of_the_test_above_are_all_there_are() -> None:
    names = {row_format.name for row_format in FORMATS}
    assert names == {"messages", "sharegpt", "alpaca", "prompt-completion", "question-answer", "text"}


@pytest.mark.parametrize(
    ("line", "mentions"),
    [
        (b"prompt,completion", "JSON"),
        (b'{"prompt": "p", "completion": "c"', "JSON"),
        (b'{"prompt": "p"} {"completion": "c"}', "JSON"),
        (b"{'prompt': 'p', 'completion': 'c'}", "JSON"),
        (b'{"prompt": "a\tb", "completion": "c"}', "JSON"),
        (b"[1, 2]", "list"),
        (b'"text"', "str"),
        (b"12", "int"),
        (b"null", "NoneType"),
        (b'\xff{"prompt": "p", "completion": "c"}', "UTF-8"),
        (b'{"prompt": "\xe9t\xe9", "completion": "c"}', "UTF-8"),
        (b'{"prompt": "p", "completion": ""}', "answer"),
        (b'{"prompt": "p", "completion": " \\n\\t"}', "answer"),
        (b'{"prompt": "p", "completion": null}', "answer"),
        (b'{"prompt": "p"}', "'completion'"),
        (b'{"prompt": "", "completion": "c"}', "prompt"),
        (b'{"completion": "c"}', "'prompt'"),
        (b'{"prompt": 5, "completion": "c"}', "'prompt' is int"),
        (b'{"prompt": "p", "completion": ["c"]}', "'completion' is list"),
        (b'{"prompt": NaN, "completion": "c"}', "NaN"),
        (b'{"prompt": "p", "completion": "c", "n": -Infinity}', "-Infinity"),
        (b'{"prompt": "p", "completion": "c", "prompt": "q"}', "'prompt' twice"),
        (b'{"prompt": "p", "completion": "c", "n": {"a": 1, "a": 1}}', "'a' twice"),
        (b'{"prompt": "p", "completion": "a \\ud83d"}', "'completion' has half of a character"),
        (b'{"prompt": "\\ude42 b", "completion": "c"}', "'prompt' has half of a character"),
        (b'{"instruction": "i", "output": "o"}', "prompt-completion"),
        (b'{"prompt": ' + b"[" * 100_000, "JSON"),
        (b'{"a": ' * 100_000, "JSON"),
        (b'{"prompt": ' + b"1" * 5_000 + b', "completion": "c"}', "JSON"),
    ],
)
def test_a_bad_row_is_refused_at_its_line(write: Write, line: bytes, mentions: str) -> None:
    path = write(GOOD + b"\n\n" + line + b"\n" + GOOD + b"\n")
    error = refusal(path)
    assert error.where == f"{path}:3"
    assert mentions in error.problem
    assert len(str(error)) < 600


@pytest.mark.parametrize(
    ("messages", "mentions"),
    [
        ([], "answer"),
        ([SYSTEM], "answer"),
        ([USER], "answer"),
        ([USER, ASSISTANT, USER], "answer"),
        ([ASSISTANT], "'assistant' stands where one of 'user'"),
        ([USER, USER, ASSISTANT], "'user' stands where one of 'assistant'"),
        ([USER, ASSISTANT, ASSISTANT], "'assistant' stands where one of 'user'"),
        ([USER, SYSTEM, ASSISTANT], "'system' stands where one of 'assistant'"),
        ([SYSTEM, SYSTEM, USER, ASSISTANT], "'system'"),
        ([USER, {"role": "tool", "content": "t"}], "'tool'"),
        ([USER, {"content": "a"}], "none says who speaks"),
        ([{"role": "user", "content": " "}, ASSISTANT], "prompt is empty"),
        ([USER, {"role": "assistant", "content": ""}, USER, ASSISTANT], "answer is empty"),
        ([USER, {"role": "assistant", "content": None}], "answer is empty"),
        ([USER, {"role": "assistant", "content": [{"type": "image_url"}]}], "holds 'image_url'"),
        ([USER, {"role": "assistant", "content": 5}], "'content' is int"),
        ([USER, {"role": "assistant", "content": "a", "weight": 0.5}], "weight is '0.5'"),
        ([USER, {"role": "assistant", "content": "a", "tool_calls": {}}], "'tool_calls' is not a list"),
        ([USER, {"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}], "names no function"),
        ([{"role": 1, "content": "u"}, ASSISTANT], "a turn of '1' is none of"),
        ({"role": "user"}, "list"),
        (["u", "a"], "list of objects"),
        ("u", "list of objects"),
    ],
)
def test_turns_in_a_wrong_order_are_refused(write: Write, messages: Any, mentions: str) -> None:
    good = as_line({"messages": [USER, ASSISTANT]})
    path = write(good + b"\n" + as_line({"messages": messages}))
    error = refusal(path)
    assert error.where == f"{path}:2"
    assert mentions in error.problem


@pytest.mark.parametrize("row", [{}, {"texts": "t"}, {"Prompt": "p", "response": "r"}])
def test_a_first_row_of_no_known_form_shows_its_keys_and_the_known_ones(
    write: Write, row: dict[str, str]
) -> None:
    path = write(as_line(row))
    error = refusal(path)
    assert error.where == f"{path}:1"
    assert all(repr(key) in error.problem for key in row)
    assert all(", ".join(sorted(row_format.keys)) in error.remedy for row_format in FORMATS)


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ({"prompt": "p", "response": "r"}, "completion"),
        ({"question": "q", "response": "r"}, "answer"),
        ({"instruction": "i", "response": "r"}, "output"),
        ({"completion": "c"}, "prompt"),
    ],
)
def test_a_first_row_with_a_part_of_a_form_is_told_what_is_missing(
    write: Write, row: dict[str, str], missing: str
) -> None:
    path = write(as_line(row))
    error = refusal(path)
    assert error.where == f"{path}:1"
    assert repr(missing) in error.problem
    assert repr(missing) in error.remedy


def test_a_form_that_is_asked_for_is_not_guessed(write: Write) -> None:
    row = {"instruction": "i", "output": "o", "question": "q", "answer": "a"}
    path = write(as_line(row))
    assert read_data_file(path, ReadOptions("question-answer")).conversations[0].messages[0].content == "q"
    assert read_data_file(path, ReadOptions("alpaca")).conversations[0].messages[0].content == "i"
    assert "'completion'" in refusal(path, format_name="prompt-completion").problem


@pytest.mark.parametrize(
    ("content", "line_numbers"),
    [
        (GOOD, [1]),
        (GOOD + b"\n", [1]),
        (b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD, [1, 2]),
        (GOOD + b"\r\n" + GOOD + b"\r\n", [1, 2]),
        (b"\n \t\r\n" + GOOD + b"\n\n\n" + GOOD + b"\n\n", [3, 6]),
        (b"  " + GOOD + b"  \n" + GOOD, [1, 2]),
        (GOOD.replace(b", ", b",\r") + b"\n" + GOOD, [1, 2]),
    ],
    ids=["no-last-newline", "newline", "byte-order-mark", "crlf", "blank-lines", "indented", "bare-cr"],
)
def test_line_ends_of_every_kind_are_read(write: Write, content: bytes, line_numbers: list[int]) -> None:
    file = read_data_file(write(content))
    expected = (Message("user", "p"), Message("assistant", "c"))
    assert rows_of(file) == [(number, expected) for number in line_numbers]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r", "\u00a0", "\x00"])
def test_only_a_newline_ends_a_row(write: Write, character: str) -> None:
    row = {"prompt": f"a{character}b", "completion": f"c{character}d"}
    raw = json.dumps(row, ensure_ascii=ord(character) < 0x20).encode()
    file = read_data_file(write(raw + b"\n" + GOOD))
    assert [message.content for message in file.conversations[0].messages] == list(row.values())
    assert [row.row_number for row in file.conversations] == [1, 2]


def test_a_character_that_is_escaped_in_two_halves_is_whole(write: Write) -> None:
    file = read_data_file(write(b'{"prompt": "p", "completion": "\\ud83d\\ude42"}'))
    assert file.conversations[0].messages[1].content == "🙂"


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n\t", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_an_empty_file_is_refused(write: Write, content: bytes) -> None:
    path = write(content)
    error = refusal(path)
    assert error.where == str(path)
    assert "no rows" in error.problem


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert "holds no data file" in refusal(tmp_path).problem
    missing = tmp_path / "nowhere" / "rows.jsonl"
    error = refusal(missing)
    assert "no file 'rows.jsonl'" in error.problem
    assert error.where == str(missing)


def test_filter_empty_leaves_out_rows_without_prompt_or_answer_and_counts_them(write: Write) -> None:
    empty = [
        b'{"prompt": "p"}',
        b'{"prompt": "p", "completion": " "}',
        b'{"prompt": "p", "completion": null}',
        b'{"prompt": "", "completion": "c"}',
    ]
    path = write(b"\n".join([GOOD, *empty, b"", GOOD]))
    file = read_data_file(path, ReadOptions(filter_empty=True))
    assert file.num_empty_rows == len(empty)
    assert [row.row_number for row in file.conversations] == [1, 7]
    assert refusal(path).where == f"{path}:2"


def test_filter_empty_hides_no_other_fault_and_leaves_no_empty_file(write: Write) -> None:
    path = write(GOOD + b'\n{"prompt": 1, "completion": ""}')
    assert refusal(path, filter_empty=True).where == f"{path}:2"
    path = write(b'{"prompt": "p", "completion": ""}')
    assert refusal(path, filter_empty=True).where == str(path)


def test_the_hash_is_that_of_the_bytes(write: Write) -> None:
    content = b"\xef\xbb\xbf\r\n" + GOOD + b"\r\n"
    file = read_data_file(write(content))
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert file.num_empty_rows == 0


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "prompt", "completion", "instruction", "output"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(st.binary(max_size=40) | _json.map(as_line) | st.just(GOOD), max_size=4))
def test_whatever_stands_in_a_file_is_read_or_refused(write: Write, lines: list[bytes]) -> None:
    path = write(b"\n".join(lines))
    try:
        file = read_data_file(path)
    except DataError as error:
        assert error.where.startswith(str(path))
    else:
        assert file.conversations
        assert all(row.messages[-1].role in ("assistant", "text") for row in file.conversations)


_words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(_words, _words), min_size=1, max_size=5), escapes=st.booleans())
def test_texts_come_back_as_they_were_written(
    write: Write, pairs: list[tuple[str, str]], escapes: bool
) -> None:
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    lines = [json.dumps(row, ensure_ascii=escapes).encode() for row in rows]
    file = read_data_file(write(b"\n".join(lines)))
    assert [tuple(message.content for message in row.messages) for row in file.conversations] == pairs
