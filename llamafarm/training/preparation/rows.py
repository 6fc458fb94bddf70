"""The files of a run, read and encoded. `selection` chooses among their rows, `prepare` asks for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafarm import terminal
from llamafarm.data.encoding.block import BlockEncoder, RowEncoding
from llamafarm.data.encoding.cache import TokenCache
from llamafarm.data.encoding.fitting import Fitting, Limits
from llamafarm.data.encoding.table import EncodedTable, open_table
from llamafarm.data.encoding.template import ChatTemplate, TrainedPart
from llamafarm.data.reading.records import DataReader, ReadOptions
from llamafarm.data.selection.traces import TracesWanted
from llamafarm.hardware.machine import read_machine
from llamafarm.model.load import text_encoder, tokenizer_json
from llamafarm.strategy.load import LoadedStrategy, resolve_path
from llamafarm.strategy.schema import DataPreprocessing, Dataset, EpochRange, Strategy
from llamafarm.training.preparation.sources import training_sources

if TYPE_CHECKING:
    pass

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


def limits_of(preprocessing: DataPreprocessing, config: Any) -> Limits:
    """Return the limits of a strategy for a base model's configuration: its context length is one, too."""
    context_length = int(getattr(config, "max_position_embeddings", 0) or 10**9)
    max_length = min(preprocessing.max_length or context_length, context_length)
    return Limits(max_length, preprocessing.max_input_length, preprocessing.max_output_length)
