"""10,000 broken data files: read, or refused with three lines; no traceback, no hang, no changed file.

    nice -n 10 python benchmarks/data_fuzz.py [--cases 10000] [--seed 1]

Good files of every kind get one to three mutations each: bytes changed, cut, doubled or moved; lines of other
files, control characters and half characters put in; packed ones damaged. Each is read with bad rows refused
and with bad rows left out, and its rows are split into texts. Exits 1 when a claim fails. Seconds are the
processor's.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import gzip
import io
import json
import lzma
import random
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafarm import terminal
from llamafarm.data.reading.files import read_row_texts
from llamafarm.data.reading.records import ReadOptions, read_data_file
from llamafarm.errors import DataError

MAX_SECONDS = 5.0

TURNS = [
    {"role": "system", "content": "Be nice."},
    {"role": "user", "content": "Look é 🙂"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "content": "found", "tool_call_id": "1"},
    {"role": "assistant", "content": "It is\nthere.", "weight": 1},
]
SHAREGPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "Add.", "input": "1, 2", "output": "3", "id": 7},
    "messages": {"messages": TURNS, "tools": [{"name": "f"}]},
    "sharegpt": {"conversations": SHAREGPT},
    "prompt-completion": {"prompt": 'a "b"', "completion": "c; d"},
    "text": {"text": "Once upon a time\u2028there was"},
}
INSERTED = [
    b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b'"', b"'", b"{", b"}", b"[", b"]", b",", b";",
    b":", b"\n", b"\r", b"\t", b"\\", b"NaN", b"-Infinity", b"1" * 5000, b"[" * 3000, b'{"a":' * 500, b"null",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8", b"\x1f\x8b", b"PAR1", b"x" * 100_000, b'""', b'"""',
]  # fmt: skip
PACKERS: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A file to be read: its kind, its name and its bytes."""

    kind: str
    name: str
    content: bytes


@dataclass(frozen=True)
class Verdict:
    """What came of a case: rows read, or refused; `fault` is what should not have happened."""

    kind: str
    was_refused: bool
    seconds: float
    fault: str = ""


def make_cases(num_cases: int, seed: int) -> Iterator[Case]:
    """Yield broken files, the same ones for the same seed."""
    draw = random.Random(seed)
    good = list(_good_files())
    for number in range(num_cases):
        kind, name, content = good[number % len(good)]
        for _ in range(draw.randint(1, 3)):
            content = _mutate(content, draw, good)
        if draw.random() < 0.1 and not name.endswith(".parquet"):
            suffix, pack = draw.choice(PACKERS)
            name, content = name + suffix, pack(content)
            if draw.random() < 0.7:
                content = _mutate(content, draw, good)
        yield Case(kind, name, content)


def _good_files() -> Iterator[tuple[str, str, bytes]]:
    for form, row in ROWS.items():
        rows = [row] * 4
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
        yield f"lines, {form}", "rows.jsonl", lines.encode()
        yield f"list, {form}", "rows.json", json.dumps(rows, indent=1).encode()
        yield f"UTF-16, {form}", "rows.jsonl", lines.encode("utf-16")
        yield f"Parquet, {form}", "rows.parquet", _parquet(rows)
        if all(isinstance(value, str | int) for value in row.values()):
            written = io.StringIO(newline="")
            writer = csv.DictWriter(written, list(row))
            writer.writeheader()
            writer.writerows(rows)
            yield f"table, {form}", "rows.csv", written.getvalue().encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def _mutate(content: bytes, draw: random.Random, good: list[tuple[str, str, bytes]]) -> bytes:
    place = draw.randrange(len(content) + 1)
    other = draw.randrange(len(content) + 1)
    start, end = min(place, other), max(place, other)
    what = draw.randrange(7)
    if what == 0:  # some bytes changed
        changed = bytearray(content)
        for _ in range(draw.randint(1, 8)):
            if changed:
                changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed)
    if what == 1:
        return content[:place]
    if what == 2:
        return content[:start] + content[end:]
    if what == 3:
        return content[:end] + content[start:]
    if what == 4:  # a line of another file
        return content[:place] + draw.choice(good)[2][:400] + content[place:]
    return content[:place] + draw.choice(INSERTED) + content[place:]


def judge(case: Case, folder: Path) -> Verdict:
    """Read a case in every way and say what came of it."""
    path = folder / case.name
    path.write_bytes(case.content)
    started = time.process_time()
    was_refused, fault = False, ""
    try:
        for options in (ReadOptions(), ReadOptions(skips_bad_rows=True, filter_empty=True)):
            try:
                file = read_data_file(path, options)
            except DataError as error:
                was_refused = True
                parts = (error.problem, error.where, error.remedy)
                if any(not part.strip() or "\n" in part or len(part) > 1000 for part in parts):
                    fault = f"not three lines: {parts!r}"[:500]
            else:
                if len(list(read_row_texts(path))) < len(file.conversations):
                    fault = "fewer texts than rows"
    except Exception:
        fault = traceback.format_exc()
    seconds = time.process_time() - started
    if seconds > MAX_SECONDS:
        fault = f"{seconds:.1f} s"
    if path.read_bytes() != case.content:
        fault = "the file was changed"
    path.unlink()
    return Verdict(case.kind, was_refused, seconds, fault)


def main() -> None:
    """Judge the cases, print a table, and leave with 1 if a claim fails."""
    parser = argparse.ArgumentParser(usage="python benchmarks/data_fuzz.py [--cases N] [--seed N]")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    by_kind: dict[str, list[Verdict]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for case in make_cases(options.cases, options.seed):
            verdict = judge(case, Path(folder))
            by_kind[verdict.kind].append(verdict)
            if verdict.fault:
                terminal.result(f"{verdict.kind}: {verdict.fault}")
    terminal.result(f"{'kind':<28}{'files':>7}{'refused':>9}{'faults':>8}{'slowest s':>11}")
    for kind, verdicts in by_kind.items():
        num_refused = sum(verdict.was_refused for verdict in verdicts)
        num_faults = sum(bool(verdict.fault) for verdict in verdicts)
        slowest = max(verdict.seconds for verdict in verdicts)
        terminal.result(f"{kind:<28}{len(verdicts):>7}{num_refused:>9}{num_faults:>8}{slowest:>11.2f}")
    sys.exit(any(verdict.fault for verdicts in by_kind.values() for verdict in verdicts))


if __name__ == "__main__":
    main()
