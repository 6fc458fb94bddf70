"""Files of every kind give the same rows: lines, lists, tables, Parquet; packed or not; in any encoding."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from llamafarm.data.reading.files import read_row_texts
from llamafarm.data.reading.records import DataReader, ReadOptions, read_data_file
from llamafarm.errors import DataError

ROWS = [
    {"question": 'What, is "it"?', "answer": "A\nline\u2028more é 🙂"},
    {"question": "q2", "answer": "a2"},
    {"question": "q3", "answer": "a3; a, b"},
]
TEXTS = [tuple(row.values()) for row in ROWS]


def jsonl(rows: list[dict[str, Any]] = ROWS) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(delimiter: str) -> str:
    written = io.StringIO(newline="")
    writer = csv.DictWriter(written, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return written.getvalue()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


def texts_of(path: Path, **options: Any) -> list[tuple[str, ...]]:
    conversations = read_data_file(path, ReadOptions(**options)).conversations
    return [tuple(message.content for message in row.messages) for row in conversations]


def refusal(path: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_data_file(path, ReadOptions(**options))
    error = caught.value
    assert all(part.strip() and "\n" not in part for part in (error.problem, error.where, error.remedy))
    return error


KINDS: dict[str, bytes] = {
    "rows.jsonl": jsonl().encode(),
    "rows.ndjson": jsonl().encode(),
    "no_suffix": jsonl().encode(),
    "lines.json": jsonl().encode(),
    "list.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "named.json": json.dumps({"version": 1, "data": ROWS}, indent=1).encode(),
    "list.jsonl": json.dumps(ROWS).encode(),
    "rows.csv": table(",").encode(),
    "semicolons.csv": table(";").encode(),
    "rows.tsv": table("\t").encode(),
    "rows.parquet": parquet(ROWS),
    "misnamed.jsonl": parquet(ROWS),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl().encode(),
    "bom.csv": b"\xef\xbb\xbf" + table(",").encode(),
    "utf16.jsonl": jsonl().encode("utf-16"),
    "utf16be.jsonl": b"\xfe\xff" + jsonl().encode("utf-16-be"),
    "utf16_no_bom.jsonl": jsonl().encode("utf-16-le"),
    "utf16.csv": table("\t").encode("utf-16"),
    "crlf.jsonl": jsonl().replace("\n", "\r\n").encode(),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress
}  # fmt: skip


# Parquet is compressed inside.
PACKED = [
    (name, suffix)
    for name, content in KINDS.items()
    for suffix in PACKERS
    if not (suffix and content[:4] == b"PAR1")
]


@pytest.mark.parametrize(("name", "suffix"), PACKED)
def test_the_same_rows_come_from_every_kind_of_file(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / (name + suffix)
    content = PACKERS[suffix](KINDS[name])
    path.write_bytes(content)
    expected = TEXTS
    if "csv" in name or "tsv" in name:  # a table's cells with line breaks are written with its own
        expected = [tuple(text.replace("\r\n", "\n") for text in texts) for texts in TEXTS]
    assert texts_of(path) == expected
    reader = DataReader(path)
    assert len(list(reader)) == reader.num_rows == 3
    assert reader.format_name == "question-answer"
    assert reader.sha256 == hashlib.sha256(content).hexdigest()
    assert path.read_bytes() == content
    assert [json.loads(text) for _, text in read_row_texts(path)] == ROWS


def test_lines_are_given_back_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(
        gzip.compress(b'{ "question":"q" , "answer":"a"}\r\n\n{"question": "\\u00e9", "answer": "a"}')
    )
    assert list(read_row_texts(path)) == [
        (1, '{ "question":"q" , "answer":"a"}'),
        (3, '{"question": "\\u00e9", "answer": "a"}'),
    ]


def test_nested_columns_of_parquet_are_turns(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "u", "name": None},
        {"role": "assistant", "content": "a", "name": None},
    ]
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet([{"messages": turns}, {"messages": turns}, {"messages": turns[:1]}]))
    error = refusal(path)
    assert error.where == f"{path}:3"
    assert "no answer" in error.problem
    assert texts_of(path, skips_bad_rows=True) == [("u", "a"), ("u", "a")]


def test_turns_in_a_cell_of_a_table_are_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    turns = json.dumps([{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]).replace('"', '""')
    path.write_text(f'id,conversations\n1,"{turns}"\n')
    assert texts_of(path) == [("u", "a")]


def test_a_folder_is_all_its_data_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(jsonl(ROWS[1:2]))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table(",").encode()))
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("not data")
    (tmp_path / "sub").mkdir()
    assert [answer for _, answer in texts_of(tmp_path)] == [TEXTS[0][1], "a2", "a3; a, b", "a2"]
    (tmp_path / "b.jsonl").write_text("{}\n")
    assert refusal(tmp_path).where == f"{tmp_path / 'b.jsonl'}:1"


@pytest.mark.parametrize(
    ("name", "content", "mentions", "line"),
    [
        ("a.csv", b"question,answer\nq,a\nq,a,b\n", "3 cells and the header 2", 3),
        ("a.csv", b"question,answer\nq\n", "1 cells and the header 2", 2),
        ("a.csv", b'question,answer\n"q,a\n', "cannot be read", None),
        ("a.csv", b"question,question\nq,a\n", "one twice", None),
        ("a.csv", b"question,\nq,a\n", "without a name", None),
        ("a.csv", b"question,answer\nq,\xff\n", "not UTF-8", None),
        ("a.csv", b"", "no rows", None),
        ("a.csv", b"question,answer\n", "no rows", None),
        ("a.json", b"[]", "no rows", None),
        ("a.json", b'[{"question": "q", "answer": "a"}, 3]', "entry 2 of the list is int", 2),
        ("a.json", b'[\n{"question": "q"\n"answer": "a"}]', "line 3 is not JSON", None),
        ("a.json", b'{\n"question": "q",\n"answer": "a"}', "one JSON object", None),
        ("a.json", b'{\n"train": [{"a": 1}],\n"test": []}', "one JSON object", None),
        ("a.parquet", b"PAR1 and then nothing", "Parquet file cannot be read", None),
        ("a.jsonl.gz", gzip.compress(KINDS["rows.jsonl"])[:-20], "damaged", None),
        ("a.jsonl.xz", lzma.compress(KINDS["rows.jsonl"])[:-20], "damaged", None),
        ("a.jsonl.bz2", b"BZh9" + b"x" * 40, "cannot be read", None),
        ("a.jsonl", jsonl().encode("utf-16")[:-1], "not UTF-16-LE", None),
        ("a.jsonl", b"\x00" * 40, "not JSON", 1),
    ],
)
def test_a_broken_file_is_refused_with_its_line(
    tmp_path: Path, name: str, content: bytes, mentions: str, line: int | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = refusal(path)
    assert mentions in error.problem
    assert error.where == (str(path) if line is None else f"{path}:{line}")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    assert "is not a file" in refusal(pipe).problem


def test_a_line_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "a" * 10 * 2**20}) + "\n" + jsonl(ROWS[1:2]))
    assert [len(answer) for _, answer in texts_of(path)] == [10 * 2**20, 2]


def test_a_line_without_end_is_refused_before_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafarm.data.reading import streams

    monkeypatch.setattr(streams, "_MOST_BYTES_OF_A_LINE", 64)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(ROWS[1:2]).encode() + b"x" * 1000 + b"\n" + jsonl(ROWS[1:2]).encode())
    error = refusal(path)
    assert error.where == f"{path}:2"
    assert "longer than" in error.problem
    assert texts_of(path, skips_bad_rows=True) == [("q2", "a2"), ("q2", "a2")]


def test_bad_rows_are_left_out_counted_and_listed_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    bad = [b'{"', b'{"question": "q"}', b"\xff", b'{"question": 1, "answer": "a"}', b"[]"]
    path.write_bytes(b"\n".join([*bad, jsonl(ROWS[1:2]).encode(), *[b"{"] * 30]))
    assert refusal(path).where == f"{path}:1"
    file = read_data_file(path, ReadOptions(skips_bad_rows=True))
    assert [row.row_number for row in file.conversations] == [6]
    assert (file.num_bad_rows, len(file.bad_rows)) == (35, 20)
    assert [bad.where for bad in file.bad_rows[:5]] == [f"{path}:{line}" for line in range(1, 6)]
    (warning,) = file.warnings()
    assert "35 rows" in warning and f"{path}:1: " in warning and "dataset.on_bad_row" in warning
    path.write_bytes(b"\n".join(bad))
    error = refusal(path, skips_bad_rows=True)
    assert "none of the file's 5 rows can be read" in error.problem
    assert error.where == f"{path}:1"


def test_columns_are_read_under_the_names_that_the_strategy_gives(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,Frage,Antwort,answer\n1,f,a,x\n")
    columns = {"instruction": "Frage", "output": "Antwort"}
    assert texts_of(path, columns=columns) == [("f", "a")]
    assert texts_of(path, columns=columns | {"input": "id"}) == [("f", "a")]
    assert texts_of(path, columns={"text": "Antwort"}) == [("a",)]
    assert texts_of(path, columns=columns | {"system": "answer"}) == [("x", "f", "a")]
    turns = tmp_path / "turns.jsonl"
    chat = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    turns.write_text(json.dumps({"chat": chat}))
    assert texts_of(turns, columns={"messages": "chat"}) == [("u", "a")]
    error = refusal(path, columns={"instruction": "Frage", "output": "Antworten"})
    assert "no column 'Antworten'" in error.problem and "'Antwort'" in error.problem
    assert error.where == f"{path}:2"


def test_tools_calls_and_weights_are_kept(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "found"},
        {"role": "assistant", "content": "a", "weight": 0},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm", "weight": 1},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages, "tools": [tool]}))
    (row,) = read_data_file(path).conversations
    assert [message.role for message in row.messages] == [
        "system", "user", "assistant", "tool", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert row.tools == (tool,)
    (made,) = (row.messages[2].extras or {})["tool_calls"]
    assert made["function"] == {"name": "look", "arguments": {"at": "it"}}
    assert row.messages[3].extras == {"tool_call_id": "1"}
    assert [message.weight for message in row.messages if message.role == "assistant"] == [1, 0, 1]
    assert row.messages[6].extras == {"reasoning_content": "hm"}


def test_a_call_in_a_turn_of_its_own_is_the_assistants(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "u"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "it"}}'},
        {"from": "observation", "value": "found"},
        {"from": "gpt", "value": "a"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"conversations": turns, "tools": '[{"name": "look"}]'}))
    (row,) = read_data_file(path).conversations
    assert [message.role for message in row.messages] == ["user", "assistant", "tool", "assistant"]
    assert row.tools == ({"name": "look"},)
    turns[1]["value"] = "look(it)"
    path.write_text(json.dumps({"conversations": turns}))
    assert "no JSON object with a name" in refusal(path).problem
