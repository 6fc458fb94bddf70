"""The rows of a run: read, cleaned, set apart for evaluation, and kept within the lengths that are allowed.

`prepare` asks for them, and has the rest of what is settled before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafarm import terminal
from llamafarm.data.encoding.block import BlockEncoder, RowEncoding
from llamafarm.data.encoding.cache import TokenCache
from llamafarm.data.encoding.fitting import Fitting, Limits
from llamafarm.data.encoding.rows import EncodedRows
from llamafarm.data.encoding.table import EncodedTable, fit_rows, open_table
from llamafarm.data.encoding.template import ChatTemplate, TrainedPart
from llamafarm.data.reading.records import DataReader, ReadOptions
from llamafarm.data.selection.cleaning import CleaningRules, clean_rows
from llamafarm.data.selection.corpus import SPLIT_THRESHOLD, split_rows
from llamafarm.data.selection.near_duplicates import group_near_duplicates
from llamafarm.data.selection.traces import TracesWanted, first_of_repeats
from llamafarm.errors import StrategyError
from llamafarm.hardware.machine import read_machine
from llamafarm.model.load import text_encoder, tokenizer_json
from llamafarm.strategy.load import LoadedStrategy, resolve_path
from llamafarm.strategy.schema import DataPreprocessing, Dataset, EpochRange, Strategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The guide's recommendation where evaluation is asked for and no rows are given for it.
_RECOMMENDED_EVAL_PERCENT = 10.0
# One process reads for all of them.
_MOST_PROCESSES = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that was settled for the user: what, to which value, and why."""

    setting: str
    value: str
    why: str


def wants_evaluation(strategy: Strategy) -> bool:
    """Return whether the strategy has a setting that means nothing without evaluation."""
    args = strategy.training_args
    return args.eval_strategy in ("steps", "epoch") or bool(
        args.eval_steps
        or args.load_best_model_at_end
        or args.early_stopping_patience
        or strategy.dataset.eval_file
        or isinstance(args.num_train_epochs, EpochRange)
    )


def read_tables(
    loaded: LoadedStrategy, tokenizer: Any, template: ChatTemplate, limits: Limits, scratch_dir: Path | None
) -> list[EncodedTable]:
    """Return the training file and, if the strategy names one, the evaluation file, encoded.

    Large files are kept encoded for the next run; below `scratch_dir`, where that is given.
    """
    strategy = loaded.strategy
    dataset, preprocessing = strategy.dataset, strategy.data_preprocessing
    if dataset.train_file is None:
        raise StrategyError(
            "the strategy names no training data",
            where=f"{loaded.file or 'preset'}: {loaded.key}",
            remedy="Add dataset.train_file, or pass --train-dataset.",
        )
    paths = [dataset.train_file] + ([dataset.eval_file] if dataset.eval_file else [])
    encoding = encoding_of(tokenizer, template, dataset, limits)
    wanted = TracesWanted(
        of_quality=preprocessing.filter_quality,
        of_near_duplicates=preprocessing.remove_near_duplicates or is_split(strategy) or len(paths) > 1,
    )
    chosen = preprocessing.cache_dir
    cache = TokenCache(Path(chosen).expanduser() if chosen else None, scratch_dir)
    options = ReadOptions.of(dataset, preprocessing)
    num_processes = num_encoding_processes(strategy.training_args.dataloader_num_workers)
    return [
        _open(DataReader(resolve_path(path, loaded), options), encoding, wanted, cache, num_processes)
        for path in paths
    ]


def _open(
    reader: DataReader, encoding: RowEncoding, wanted: TracesWanted, cache: TokenCache, num_processes: int
) -> EncodedTable:
    encoder = BlockEncoder(reader.options, encoding, wanted)
    with show_reading(reader) as on_block:
        return open_table(reader, encoder, num_processes=num_processes, cache=cache, on_block=on_block)


@contextmanager
def show_reading(reader: DataReader) -> Iterator[Callable[[int], None]]:
    """Show how far a file has been read; what is yielded is told how many bytes that is."""
    num_mebibytes = reader.num_bytes() // 2**20
    if not num_mebibytes:
        yield lambda _: None
        return
    with terminal.progress(f"encoding {reader.path.name}, MiB", num_mebibytes) as progress:
        num_shown = 0

        def on_block(num_bytes: int) -> None:
            nonlocal num_shown
            if num_bytes // 2**20 > num_shown:
                progress.advance("", num_bytes // 2**20 - num_shown)
                num_shown = num_bytes // 2**20

        yield on_block


def encoding_of(
    tokenizer: Any, template: ChatTemplate, dataset: Dataset, limits: Limits | None
) -> RowEncoding:
    """Return how a strategy's rows become tokens; with `limits`, they are made to fit if it wants that."""
    how = dataset.when_too_long
    fitting = Fitting(limits, how) if limits and (how == "truncate_prompt" or how == "split") else None
    return RowEncoding(
        template=template,
        encoder=text_encoder(tokenizer),
        num_ids=len(tokenizer),
        tokenizer_json=tokenizer_json(tokenizer),
        trained=TrainedPart(dataset.train_on == "last", dataset.train_on_prompt),
        fitting=fitting,
    )


def num_encoding_processes(num_workers: int | None) -> int:
    """Return how many processes encode a large file: as many as the strategy says, else one a processor."""
    if num_workers is not None:
        return max(num_workers, 1)
    return min(read_machine().num_cores, _MOST_PROCESSES)


def is_split(strategy: Strategy) -> bool:
    """Return whether evaluation rows are taken from the training file."""
    if strategy.dataset.eval_file is not None:
        return False
    is_wanted = wants_evaluation(strategy) and strategy.training_args.eval_strategy != "no"
    return strategy.dataset.eval_split is not None or is_wanted


def settle_rows(
    loaded: LoadedStrategy,
    tables: Sequence[EncodedTable],
    limits: Limits,
    choices: list[Choice],
    warnings: list[str],
) -> tuple[EncodedRows, EncodedRows]:
    """Return the training and the evaluation rows; what was chosen and what was left out is said."""
    dataset = loaded.strategy.dataset
    for table in tables:
        warnings += table.report.warnings()
    kept = _clean(tables, loaded.strategy.data_preprocessing, warnings)
    if len(tables) == 2:
        if dataset.eval_split is not None:
            choices.append(
                Choice("evaluation rows", str(tables[1].report.path), "eval_file, so eval_split is not used")
            )
        _warn_of_leaks(tables, kept, warnings)
        parts = [(tables[0], kept[0]), (tables[1], kept[1])]
    elif is_split(loaded.strategy):
        parts = [(tables[0], part) for part in _split(tables[0], kept[0], loaded.strategy, choices)]
    else:
        parts = [(tables[0], kept[0]), (tables[0], np.zeros(0, np.int64))]
    fitted = []
    for (table, chosen), kind in zip(parts, ("training", "evaluation"), strict=True):
        rows, said = fit_rows(table, chosen, limits, dataset.when_too_long, kind)
        fitted.append(rows)
        warnings += said
    return fitted[0], fitted[1]


def _split(
    table: EncodedTable, kept: NDArray[np.int64], strategy: Strategy, choices: list[Choice]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    dataset = strategy.dataset
    percent = dataset.eval_split * 100 if dataset.eval_split else _RECOMMENDED_EVAL_PERCENT
    why = "dataset.eval_split" if dataset.eval_split else "evaluation is asked for; the guide recommends 10 %"
    choices.append(Choice("evaluation rows", f"{percent:g} % of the training file", why))
    keys = group_near_duplicates([table.traces.shingled], [kept], SPLIT_THRESHOLD)
    train, evaluation = split_rows(
        kept.tolist(), keys, percent, dataset.seed, str(table.report.path), shuffle=dataset.shuffle
    )
    return np.array(train, np.int64), np.array(evaluation, np.int64)


def _clean(
    tables: Sequence[EncodedTable], preprocessing: DataPreprocessing, warnings: list[str]
) -> list[NDArray[np.int64]]:
    """Return the rows of each file that the strategy does not want left out; what went is said."""
    threshold = preprocessing.near_duplicate_threshold if preprocessing.remove_near_duplicates else None
    rules = CleaningRules(preprocessing.remove_duplicates, threshold, preprocessing.filter_quality)
    kept, left_out = clean_rows([table.traces for table in tables], rules)
    warnings += map(str, left_out)
    return kept


def _warn_of_leaks(
    tables: Sequence[EncodedTable], kept: Sequence[NDArray[np.int64]], warnings: list[str]
) -> None:
    """Warn of evaluation rows that are, or nearly are, training rows."""
    num_train = len(kept[0])
    traces = [table.traces for table in tables]
    keys = [part.keys_N2[rows] for part, rows in zip(traces, kept, strict=True)]
    is_repeat = first_of_repeats(np.concatenate(keys))[num_train:] < num_train
    numbers = traces[1].row_numbers_N[kept[1]]
    if is_repeat.any():
        warnings.append(
            f"{is_repeat.sum()} evaluation rows are training rows, too, so that their loss flatters: "
            f"{_show_numbers(numbers[is_repeat])} of {tables[1].report.path}; "
            "data_preprocessing.remove_duplicates: true drops them"
        )
    groups = group_near_duplicates([part.shingled for part in traces], kept, SPLIT_THRESHOLD)
    is_near = (np.array(groups[num_train:], np.int64) < num_train) & ~is_repeat
    if is_near.any():
        warnings.append(
            f"{is_near.sum()} evaluation rows are nearly training rows, so that their loss flatters: "
            f"{_show_numbers(numbers[is_near])} of {tables[1].report.path}; "
            "data_preprocessing.remove_near_duplicates: true drops them"
        )


def _show_numbers(row_numbers: NDArray[np.int64]) -> str:
    more = ", …" if len(row_numbers) > 5 else ""
    return f"rows {', '.join(map(str, row_numbers[:5].tolist()))}{more}"


def limits_of(preprocessing: DataPreprocessing, config: Any) -> Limits:
    """Return the limits of a strategy for a base model's configuration: its context length is one, too."""
    context_length = int(getattr(config, "max_position_embeddings", 0) or 10**9)
    max_length = min(preprocessing.max_length or context_length, context_length)
    return Limits(max_length, preprocessing.max_input_length, preprocessing.max_output_length)
