"""What is done with whole data files before anything is rendered: duplicates, and splits that do not leak."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TypeVar

import numpy as np

from llamafarm.confined import confined
from llamafarm.data.columns import ColumnWriter
from llamafarm.data.reading.files import data_files, read_row_texts, stem_of
from llamafarm.data.reading.records import DataReader
from llamafarm.data.selection.near_duplicates import group_near_duplicates
from llamafarm.data.selection.traces import Traces, TracesWanted, trace_conversations
from llamafarm.errors import DataError, InputError, OutputError

Row = TypeVar("Row")

SPLIT_THRESHOLD = 0.85
"""Rows that are as alike as this, or more, never fall on both sides of a split."""

_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class SplitResult:
    """What `split_file` wrote. `num_kept_together` rows joined their duplicates on the training side."""

    train_file: Path
    eval_file: Path
    num_train_rows: int
    num_eval_rows: int
    num_kept_together: int


@contextmanager
def trace_rows(reader: DataReader, wanted: TracesWanted) -> Iterator[Traces]:
    """Read a file and yield the traces of its rows, which lie in files for as long as they are needed."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        writer = ColumnWriter(Path(folder))
        conversations = iter(reader)
        while block := list(islice(conversations, _ROWS_AT_ONCE)):
            writer.append(trace_conversations(block, wanted).columns())
        yield Traces.of_columns(writer.finish())


def split_rows(
    rows: Sequence[Row],
    keys: Sequence[Hashable],
    eval_percent: float,
    seed: int,
    where: str,
    *,
    shuffle: bool = True,
    strata: Sequence[Hashable] | None = None,
) -> tuple[list[Row], list[Row]]:
    """Return (training rows, evaluation rows), shuffled by `seed`, at least one on each side.

    Rows with equal keys land on the training side together, so that nothing is evaluated that was trained
    on. With `strata`, one for each row, every stratum keeps its share. Raises `DataError` if the file has too
    few distinct rows for that.
    """
    draw = random.Random(seed)
    order = list(range(len(rows)))
    if shuffle:
        draw.shuffle(order)
    if strata is None:
        num_train_rows = _num_train_rows(len(rows), eval_percent)
        train, evaluation = order[:num_train_rows], order[num_train_rows:]
    else:
        train, evaluation = _split_strata(order, strata, eval_percent)
    train_keys = {keys[index] for index in train}
    train += [index for index in evaluation if keys[index] in train_keys]
    evaluation = [index for index in evaluation if keys[index] not in train_keys]
    if not train or not evaluation:
        raise DataError(
            f"{len(rows)} row(s), {len(set(keys))} of them distinct, cannot be split in two",
            where=where,
            remedy="Give at least two rows that differ, or a file of its own for evaluation.",
        )
    return [rows[index] for index in train], [rows[index] for index in evaluation]


def _num_train_rows(num_rows: int, eval_percent: float) -> int:
    return min(max(int(num_rows * (1 - eval_percent / 100)), 1), num_rows - 1)


def _split_strata(
    order: Sequence[int], strata: Sequence[Hashable], eval_percent: float
) -> tuple[list[int], list[int]]:
    """Return places for training and for evaluation in the given order, each stratum with its share."""
    places: dict[Hashable, list[int]] = {}
    for place in order:
        places.setdefault(strata[place], []).append(place)
    evaluation: set[int] = set()
    num_wanted = 0.0
    for members in places.values():
        # What rounding leaves over goes to the next stratum: many small ones keep their share together.
        num_wanted += len(members) * eval_percent / 100
        num_taken = min(round(num_wanted), len(members))
        num_wanted -= num_taken
        evaluation.update(members[len(members) - num_taken :])
    return [place for place in order if place not in evaluation], [
        place for place in order if place in evaluation
    ]


def split_file(
    path: Path,
    *,
    eval_percent: float,
    seed: int,
    output_dir: Path | None = None,
    stratify_by: str | None = None,
) -> SplitResult:
    """Split a data file into `STEM_train.jsonl` and `STEM_eval.jsonl`, beside it or in `output_dir`.

    Every row is checked first; of a file of lines each is written as it stood, byte for byte. Rows that are
    the same or nearly so stay together. With `stratify_by`, each value of that column keeps its share, rows
    without it being a kind of their own. The same file, percentage and seed give the same bytes on every
    platform.
    """
    if not 0 < eval_percent < 100:
        raise InputError(
            f"the percentage for evaluation must lie between 0 and 100 (got {eval_percent:g})",
            where="--eval-percent",
            remedy="10 is usual; 5 for very small files, 15 to 20 for firmer figures.",
        )
    strata: list[str] | None = None if stratify_by is None else []
    with trace_rows(DataReader(path), TracesWanted(of_near_duplicates=True)) as traces:
        places = list(range(len(traces)))
        keys = group_near_duplicates([traces.shingled], [np.arange(len(traces))], SPLIT_THRESHOLD)
    with TemporaryFile() as spool:
        # Of each row where its text begins, so that a shuffled file is written without holding it.
        starts = [0]
        for file in data_files(path):
            for _, text in read_row_texts(file):
                starts.append(starts[-1] + spool.write(text.encode()))
                if strata is not None:
                    strata.append(_stratum_of(text, stratify_by))
        if strata is not None and not any(strata):
            raise _without_column(stratify_by, path)

        def text_of(place: int) -> str:
            spool.seek(starts[place])
            return spool.read(starts[place + 1] - starts[place]).decode()

        train, evaluation = split_rows(places, keys, eval_percent, seed, str(path), strata=strata)
        folder, stem = output_dir or path.parent, stem_of(path)
        train_file, eval_file = (confined(folder, f"{stem}_{part}.jsonl") for part in ("train", "eval"))
        for file, part in ((train_file, train), (eval_file, evaluation)):
            write_lines(file, map(text_of, part))
    num_kept_together = max(len(train) - _num_train_rows(len(places), eval_percent), 0)
    return SplitResult(train_file, eval_file, len(train), len(evaluation), num_kept_together)


def _stratum_of(line: str, column: str | None) -> str:
    """Return a row's value in a column as JSON; nothing if it has none."""
    row = json.loads(line)
    return json.dumps(row[column], sort_keys=True) if column in row else ""


def _without_column(column: str | None, path: Path) -> InputError:
    return InputError(
        f"no row has the column {column!r}",
        where=f"--stratify-by, {path}",
        remedy="Name a column of the file.",
    )


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines to a file, which is whole or not there. Raises `OutputError`."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)  # a link there would be written through
        with unfinished.open("wb") as file:
            for line in lines:
                file.write(line.encode() + b"\n")
        os.replace(unfinished, path)
    except OSError as error:
        raise OutputError(
            f"the rows cannot be written: {error.strerror}",
            where=str(path),
            remedy="Choose another place for them.",
        ) from error
