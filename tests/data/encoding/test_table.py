"""A file encoded: the same by one process and by several, in memory and from the cache; what may go wrong."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from llamafarm import terminal
from llamafarm.data.columns import ColumnWriter
from llamafarm.data.encoding import cache as cache_module
from llamafarm.data.encoding import processes, table
from llamafarm.data.encoding.block import BlockEncoder, RowEncoding
from llamafarm.data.encoding.cache import TokenCache, default_folder
from llamafarm.data.encoding.fitting import Fitting, Limits
from llamafarm.data.encoding.table import EncodedTable, open_table
from llamafarm.data.reading.records import DataReader, ReadOptions
from llamafarm.data.selection.traces import TracesWanted
from llamafarm.errors import DataError, MachineError, OutputError, TemplateError
from llamafarm.model.load import text_encoder, tokenizer_json
from llamafarm.model.prompt import build_template

EVERYTHING = TracesWanted(True, True, True)


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_LEAST_BYTES_TO_CACHE", 1)
    monkeypatch.setattr(processes, "_LEAST_BYTES_FOR_PROCESSES", 1)
    monkeypatch.setattr(processes, "_ROWS_OF_A_BLOCK", 3)
    monkeypatch.setattr(terminal, "mode", terminal.Mode())


@pytest.fixture(scope="module")
def encoding(chat_tokenizer: Any) -> RowEncoding:
    template, _ = build_template(chat_tokenizer, "Q: {input}\nA: {output}", None)
    return RowEncoding(
        template, text_encoder(chat_tokenizer), len(chat_tokenizer), tokenizer_json(chat_tokenizer)
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"what is {n} and why", "completion": f"it is {n} " * (n + 1)} for n in range(20)]
    lines = [json.dumps(row) for row in rows]
    lines[7] = "{broken"
    lines[9] = '{"prompt": "", "completion": ""}'
    path.write_text("\n".join(lines) + "\n")
    return path


Open = Callable[..., EncodedTable]


@pytest.fixture
def open_file(file: Path, encoding: RowEncoding, tmp_path: Path) -> Open:
    def open_it(
        num_processes: int = 1,
        options: ReadOptions | None = None,
        cache: TokenCache | None = None,
        **changes: Any,
    ) -> EncodedTable:
        from dataclasses import replace

        reader = DataReader(file, options or ReadOptions(filter_empty=True, skips_bad_rows=True))
        return open_table(
            reader,
            BlockEncoder(reader.options, replace(encoding, **changes), EVERYTHING),
            num_processes=num_processes,
            cache=cache or TokenCache(tmp_path / "cache"),
            on_block=lambda _: None,
        )

    return open_it


def assert_same(one: EncodedTable, other: EncodedTable) -> None:
    assert one.report == other.report
    for name, column in one.traces.columns().items():
        assert np.array_equal(column, other.traces.columns()[name]), name
    assert one.is_remade_N.tolist() == other.is_remade_N.tolist()
    assert one.num_rows_N.tolist() == other.num_rows_N.tolist()
    assert len(one.rows) == len(other.rows)
    for row, same in zip(one.rows, other.rows, strict=True):
        assert row.token_ids_T.tolist() == same.token_ids_T.tolist()
        assert row.is_supervised_T.tolist() == same.is_supervised_T.tolist()
        assert row.row_number == same.row_number


def test_processes_memory_and_the_cache_give_the_same(
    open_file: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = open_file(cache=TokenCache(tmp_path / "one"))
    assert here.report.num_rows == 18
    assert (here.report.num_bad_rows, here.report.num_empty_rows) == (1, 1)
    assert here.traces.row_numbers_N.tolist() == [n for n in range(1, 21) if n not in (8, 10)]
    assert_same(here, open_file(3, cache=TokenCache(tmp_path / "three")))
    monkeypatch.setattr(table, "encode_file", lambda *_: iter(()))
    assert_same(here, open_file(cache=TokenCache(tmp_path / "one")))
    monkeypatch.undo()  # now the file is a small one, which stays in memory
    assert_same(here, open_file(cache=TokenCache(tmp_path / "other")))


def test_rows_are_made_to_fit_by_every_process(open_file: Open, tmp_path: Path) -> None:
    fitting = Fitting(Limits(60), "truncate_prompt")
    here = open_file(fitting=fitting, cache=TokenCache(tmp_path / "one"))
    assert here.is_remade_N.any()
    assert_same(here, open_file(2, fitting=fitting, cache=TokenCache(tmp_path / "two")))


@pytest.mark.parametrize("what", ["content", "options", "template", "tokenizer", "fitting"])
def test_whatever_rows_follow_from_makes_another_folder(
    open_file: Open, file: Path, tmp_path: Path, chat_tokenizer: Any, what: str
) -> None:
    open_file()
    open_file()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    if what == "content":
        file.write_text(file.read_text() + '{"prompt": "one", "completion": "more"}\n')
        open_file()
    elif what == "options":
        open_file(options=ReadOptions("prompt-completion", filter_empty=True, skips_bad_rows=True))
    elif what == "template":
        open_file(template=build_template(chat_tokenizer, "{input}: {output}", None)[0])
    elif what == "tokenizer":
        open_file(tokenizer_json=chat_tokenizer.backend_tokenizer.to_str() + " ")
    else:
        open_file(fitting=Fitting(Limits(60), "split"))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_bad_rows_are_told_with_the_place_of_the_file_that_is_read(
    open_file: Open, file: Path, encoding: RowEncoding, tmp_path: Path
) -> None:
    open_file()
    moved = file.rename(tmp_path / "moved.jsonl")
    reader = DataReader(moved, ReadOptions(filter_empty=True, skips_bad_rows=True))
    encoder = BlockEncoder(reader.options, encoding, EVERYTHING)
    cache = TokenCache(tmp_path / "cache")
    found = cache.find(cache.key_of(reader, reader.hash_files(), encoder), reader)
    assert found is not None
    assert [bad.where for bad in found[0].bad_rows] == [f"{moved}:8"]
    assert found[0].path == moved


def test_the_same_bytes_under_the_name_of_another_kind_are_another_file(
    open_file: Open, file: Path, encoding: RowEncoding, tmp_path: Path
) -> None:
    open_file()
    table_of_cells = file.rename(tmp_path / "rows.csv")
    reader = DataReader(table_of_cells, ReadOptions(filter_empty=True, skips_bad_rows=True))
    encoder = BlockEncoder(reader.options, encoding, EVERYTHING)
    cache = TokenCache(tmp_path / "cache")
    assert cache.find(cache.key_of(reader, reader.hash_files(), encoder), reader) is None


def test_rows_that_json_does_not_have_are_encoded_here(encoding: RowEncoding, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    days = [datetime.date(2026, 1, day) for day in range(1, 10)]
    questions = [f"what happened on day {day.day}" for day in days]
    columns = {"prompt": questions, "completion": ["nothing"] * len(days), "day": days}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    blocks = []
    for num_processes in (1, 2):
        reader = DataReader(path)
        encoder = BlockEncoder(reader.options, encoding, EVERYTHING)
        made = list(processes.encode_file(reader, encoder, num_processes))
        blocks.append(np.concatenate([block.marked_ids_T for block in made]).tolist())
    assert blocks[0] == blocks[1]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_error_of_a_row_is_that_of_one_process(
    open_file: Open, file: Path, tmp_path: Path, num_processes: int
) -> None:
    with pytest.raises(DataError) as caught:
        open_file(num_processes, options=ReadOptions())
    assert caught.value.where == f"{file}:8"
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    rows = [
        {"messages": [*turns, call, {"role": "tool", "content": "x"}, {"role": "assistant", "content": "c"}]}
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(TemplateError, match="cannot render"):
        open_file(num_processes)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_process_that_dies_is_told_of(
    open_file: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = processes.write_message

    def write_and_kill(stream: IO[bytes], what: object) -> None:
        write(stream, what)
        for process in started:
            process._process.kill()

    started: list[Any] = []
    start = processes._Process.__init__

    def remember(self: Any) -> None:
        start(self)
        started.append(self)

    monkeypatch.setattr(processes._Process, "__init__", remember)
    monkeypatch.setattr(processes, "write_message", write_and_kill)
    with pytest.raises(MachineError, match="ended by itself") as caught:
        open_file(2)
    assert "dataloader_num_workers" in caught.value.remedy
    assert not list((tmp_path / "cache").glob("*"))


def test_whoever_stops_early_leaves_no_process(file: Path, encoding: RowEncoding) -> None:
    reader = DataReader(file, ReadOptions(filter_empty=True, skips_bad_rows=True))
    blocks = processes.encode_file(reader, BlockEncoder(reader.options, encoding, EVERYTHING), 2)
    next(blocks)
    started = time.monotonic()
    blocks.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 5
    children = subprocess.run(
        ["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=False
    )
    assert "encoding.worker" not in children.stdout


def test_the_other_process_loads_no_torch() -> None:
    loaded = (
        "import sys, llamafarm.data.encoding.worker;"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("damage", ["manifest", "short", "gone"])
def test_what_is_damaged_is_made_anew_and_said(
    open_file: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    whole = open_file()
    (folder,) = (tmp_path / "cache").iterdir()
    if damage == "manifest":
        (folder / "manifest.json").write_text('{"shapes": ')
    else:
        column = folder / "marked_ids_T.bin"
        column.write_bytes(column.read_bytes()[:-1]) if damage == "short" else column.unlink()
    assert_same(open_file(), whole)
    assert "is damaged and made anew" in " ".join(capsys.readouterr().err.split())
    capsys.readouterr()
    assert_same(open_file(), whole)
    said = capsys.readouterr().err
    assert "encoded before" in said and "warning" not in said


def test_a_file_that_changes_while_it_is_read_is_refused(
    open_file: Open, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(DataReader, "hash_files", lambda _: "of what it was before")
    with pytest.raises(DataError, match="changed while it was read"):
        open_file()
    assert not list((tmp_path / "cache").glob("*"))


def test_a_run_that_is_cut_off_leaves_nothing_that_is_taken_for_whole(
    open_file: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    append = ColumnWriter.append

    def fail_later(self: ColumnWriter, block: Any) -> None:
        if self.shapes:
            raise OSError(28, "No space left on device")
        append(self, block)

    monkeypatch.setattr(ColumnWriter, "append", fail_later)
    with pytest.raises(OutputError, match="No space left") as caught:
        open_file()
    assert "cache_dir" in caught.value.remedy
    assert not list((tmp_path / "cache").glob("*"))


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "taken").write_text("a file")
    yield tmp_path / "taken" / "tokens"


def test_a_folder_that_cannot_be_written_to(
    open_file: Open, unwritable: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OutputError):
        open_file(cache=TokenCache(unwritable))
    monkeypatch.setattr(cache_module, "default_folder", lambda: unwritable)
    assert len(open_file(cache=TokenCache()).rows) == 18
    assert "cannot be kept" in " ".join(capsys.readouterr().err.split())


def test_the_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "llamafarm" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "llamafarm" / "tokens"


def test_with_a_scratch_folder_nothing_is_left_in_the_cache_and_what_is_there_is_used(
    open_file: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    whole = open_file(cache=TokenCache(tmp_path / "cache", scratch))
    assert not (tmp_path / "cache").exists()
    assert len(list(scratch.iterdir())) == 1
    open_file()
    monkeypatch.setattr(table, "encode_file", lambda *_: iter(()))
    assert_same(open_file(cache=TokenCache(tmp_path / "cache", tmp_path / "never")), whole)
    assert not (tmp_path / "never").exists()


def test_what_nobody_used_for_a_month_goes(open_file: Open, tmp_path: Path, chat_tokenizer: Any) -> None:
    open_file()
    (old,) = (tmp_path / "cache").iterdir()
    month_ago = time.time() - 31 * 24 * 3600
    os.utime(old / "manifest.json", (month_ago, month_ago))
    (tmp_path / "cache" / ".unfinished-x-1").mkdir()
    os.utime(tmp_path / "cache" / ".unfinished-x-1", (month_ago, month_ago))
    (tmp_path / "cache" / "notes").mkdir()
    open_file(tokenizer_json=chat_tokenizer.backend_tokenizer.to_str() + " ")
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert old.name not in left
    assert "notes" in left and len(left) == 2


def test_a_tokenizer_without_a_hash_is_kept_for_this_run_only(open_file: Open, tmp_path: Path) -> None:
    assert len(open_file(tokenizer_json=None).rows) == 18
    assert not (tmp_path / "cache").exists()
