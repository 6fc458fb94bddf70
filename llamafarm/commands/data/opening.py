"""A data file and the encoder that its rows are looked at with, for `data inspect` and `data preview`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llamafarm.commands.options import load_with_options

if TYPE_CHECKING:
    from llamafarm.data.reading.records import DataReader
    from llamafarm.inspection.encoder import RowEncoder


def open_data(
    file: Path, strategy: str | None, strategy_file: Path | None, settings: Sequence[str] | None
) -> tuple[DataReader, RowEncoder, int | None]:
    """Return the file's reader, the encoder of a strategy, and the longest row that it allows.

    Without a strategy: the embedded model's tokenizer, and its template.
    """
    from llamafarm.data.encoding.template import TrainedPart
    from llamafarm.data.reading.records import DataReader, ReadOptions
    from llamafarm.inspection.encoder import open_encoder
    from llamafarm.model.load import find_base
    from llamafarm.training.preparation.prepare import base_name_of

    if strategy is None and strategy_file is None and not settings:
        return DataReader(file), open_encoder(find_base(None)), None
    loaded = load_with_options(strategy, strategy_file, settings)
    chosen = loaded.strategy
    base = find_base(base_name_of(loaded), chosen.base_model.cache_dir)
    prompt, dataset = chosen.prompt_template, chosen.dataset
    trained = TrainedPart(dataset.train_on == "last", dataset.train_on_prompt)
    encoder = open_encoder(base, prompt.format, prompt.system, trained)
    reader = DataReader(file, ReadOptions.of(dataset, chosen.data_preprocessing))
    return reader, encoder, chosen.data_preprocessing.max_length
