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
from llamafarm.data.encoding.fitting import Fitting, Limits, WhenTooLong
from llamafarm.data.encoding.rows import EncodedRows
from llamafarm.data.encoding.table import EncodedTable, fit_rows, open_table
from llamafarm.data.encoding.template import ChatTemplate, TrainedPart
from llamafarm.data.reading.records import DataReader, ReadOptions
from llamafarm.data.selection.cleaning import CleaningRules, clean_rows
from llamafarm.data.selection.corpus import SPLIT_THRESHOLD, split_rows
from llamafarm.data.selection.near_duplicates import group_near_duplicates
from llamafarm.data.selection.traces import TracesWanted, first_of_repeats
from llamafarm.hardware.machine import read_machine
from llamafarm.model.load import text_encoder, tokenizer_json
from llamafarm.strategy.load import LoadedStrategy, resolve_path
from llamafarm.strategy.schema import DataPreprocessing, Dataset, EpochRange, Strategy
from llamafarm.training.preparation.sources import repeat_by_weight, training_sources

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


# A file, and which of its conversations.
Part = tuple[EncodedTable, "NDArray[np.int64]"]


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


@dataclass(frozen=True, slots=True)
class Tables:
    """The files of a run, encoded: those with training rows and, if the strategy names one, its eval_file.

    `weights` say how often an epoch takes the rows of each training file.
    """

    training: list[EncodedTable]
    weights: list[float]
    evaluation: EncodedTable | None = None

    @property
    def all(self) -> list[EncodedTable]:
        """Return the training files and then that for evaluation."""
        return [*self.training, *([self.evaluation] if self.evaluation else [])]

    @property
    def shown(self) -> str:
        """Return the training files as they are named in an error."""
        return ", ".join(str(table.report.path) for table in self.training)


def read_tables(
    loaded: LoadedStrategy, tokenizer: Any, template: ChatTemplate, limits: Limits, scratch_dir: Path | None
) -> Tables:
    """Return the files of a run, encoded.

    Large ones are kept encoded for the next run; below `scratch_dir`, where that is given.
    """
    strategy = loaded.strategy
    dataset, preprocessing = strategy.dataset, strategy.data_preprocessing
    sources = training_sources(loaded, scratch_dir)
    eval_path = resolve_path(dataset.eval_file, loaded) if dataset.eval_file else None
    encoding = encoding_of(tokenizer, template, dataset, limits)
    wanted = TracesWanted(
        of_quality=preprocessing.filter_quality,
        of_near_duplicates=preprocessing.remove_near_duplicates
        or is_split(strategy)
        or eval_path is not None,
    )
    chosen = preprocessing.cache_dir
    cache = TokenCache(Path(chosen).expanduser() if chosen else None, scratch_dir)
    options = ReadOptions.of(dataset, preprocessing)
    num_processes = num_encoding_processes(strategy.training_args.dataloader_num_workers)

    def read(path: Path) -> EncodedTable:
        return _open(DataReader(path, options), encoding, wanted, cache, num_processes)

    return Tables(
        [read(source.path) for source in sources],
        [source.weight for source in sources],
        None if eval_path is None else read(eval_path),
    )


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
        trained=trained_part_of(dataset),
        fitting=fitting,
    )


def trained_part_of(dataset: Dataset) -> TrainedPart:
    """Return which part of a row a strategy trains on."""
    return TrainedPart(dataset.train_on == "last", dataset.train_on_prompt)


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
    loaded: LoadedStrategy, tables: Tables, limits: Limits, choices: list[Choice], warnings: list[str]
) -> tuple[EncodedRows, EncodedRows]:
    """Return the training and the evaluation rows; what was chosen and what was left out is said."""
    strategy = loaded.strategy
    for table in tables.all:
        warnings += table.report.warnings()
    kept = _clean(tables.all, strategy.data_preprocessing, warnings)
    training = list(zip(tables.training, kept, strict=False))
    evaluation: list[Part] = []
    if tables.evaluation is not None:
        if strategy.dataset.eval_split is not None:
            path = str(tables.evaluation.report.path)
            choices.append(Choice("evaluation rows", path, "eval_file, so eval_split is not used"))
        _warn_of_leaks(tables, kept, warnings)
        evaluation = [(tables.evaluation, kept[-1])]
    elif is_split(strategy):
        training, evaluation = _split(training, tables.shown, strategy, choices)
    weights = tables.weights
    if any(weight != 1 for weight in weights):
        seed = strategy.dataset.seed
        training = [
            (table, repeat_by_weight(rows, weight, seed))
            for (table, rows), weight in zip(training, weights, strict=True)
        ]
    how = strategy.dataset.when_too_long
    return (
        _fit(training, limits, how, "training", warnings),
        _fit(evaluation, limits, how, "evaluation", warnings),
    )


def _fit(
    parts: Sequence[Part], limits: Limits, how: WhenTooLong, kind: str, warnings: list[str]
) -> EncodedRows:
    """Return the rows of all parts within the limits; of which file a sentence speaks is said if need be."""
    fitted = [fit_rows(table, rows, limits, how, kind) for table, rows in parts]
    for (table, _), (_, said) in zip(parts, fitted, strict=True):
        warnings += said if len(parts) == 1 else [f"{table.report.path}: {sentence}" for sentence in said]
    return EncodedRows.joined([rows for rows, _ in fitted]) if fitted else EncodedRows.of([])


def _split(
    parts: Sequence[Part], shown: str, strategy: Strategy, choices: list[Choice]
) -> tuple[list[Part], list[Part]]:
    """Return the training and the evaluation rows of each part."""
    dataset = strategy.dataset
    percent = dataset.eval_split * 100 if dataset.eval_split else _RECOMMENDED_EVAL_PERCENT
    why = "dataset.eval_split" if dataset.eval_split else "evaluation is asked for; the guide recommends 10 %"
    of_what = "the training file" if len(parts) == 1 else "the training files"
    choices.append(Choice("evaluation rows", f"{percent:g} % of {of_what}", why))
    kept = [rows for _, rows in parts]
    keys = group_near_duplicates([table.traces.shingled for table, _ in parts], kept, SPLIT_THRESHOLD)
    sides = split_rows(range(len(keys)), keys, percent, dataset.seed, shown, shuffle=dataset.shuffle)
    # Places count through all parts, one after the other.
    firsts = np.cumsum([0, *map(len, kept)])
    of_sides = []
    for side in sides:
        places = np.array(side, np.int64)
        part_of = np.searchsorted(firsts, places, side="right") - 1
        of_sides.append(
            [
                (table, rows[places[part_of == number] - firsts[number]])
                for number, (table, rows) in enumerate(parts)
            ]
        )
    return of_sides[0], of_sides[1]


def _clean(
    tables: Sequence[EncodedTable], preprocessing: DataPreprocessing, warnings: list[str]
) -> list[NDArray[np.int64]]:
    """Return the rows of each file that the strategy does not want left out; what went is said."""
    threshold = preprocessing.near_duplicate_threshold if preprocessing.remove_near_duplicates else None
    rules = CleaningRules(preprocessing.remove_duplicates, threshold, preprocessing.filter_quality)
    kept, left_out = clean_rows([table.traces for table in tables], rules)
    warnings += map(str, left_out)
    return kept


def _warn_of_leaks(tables: Tables, kept: Sequence[NDArray[np.int64]], warnings: list[str]) -> None:
    """Warn of evaluation rows that are, or nearly are, training rows."""
    assert tables.evaluation is not None
    num_train = sum(map(len, kept[:-1]))
    traces = [table.traces for table in tables.all]
    keys = [part.keys_N2[rows] for part, rows in zip(traces, kept, strict=True)]
    is_repeat = first_of_repeats(np.concatenate(keys))[num_train:] < num_train
    numbers, path = traces[-1].row_numbers_N[kept[-1]], tables.evaluation.report.path
    if is_repeat.any():
        warnings.append(
            f"{is_repeat.sum()} evaluation rows are training rows, too, so that their loss flatters: "
            f"{_show_numbers(numbers[is_repeat])} of {path}; "
            "data_preprocessing.remove_duplicates: true drops them"
        )
    groups = group_near_duplicates([part.shingled for part in traces], kept, SPLIT_THRESHOLD)
    is_near = (np.array(groups[num_train:], np.int64) < num_train) & ~is_repeat
    if is_near.any():
        warnings.append(
            f"{is_near.sum()} evaluation rows are nearly training rows, so that their loss flatters: "
            f"{_show_numbers(numbers[is_near])} of {path}; "
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
