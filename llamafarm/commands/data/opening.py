"""A data file and the encoder that its rows are looked at with, for `data inspect` and `data preview`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llamafarm.commands.options import load_with_options

if TYPE_CHECKING:
    from llamafarm.data.encoding.fitting import Limits
    from llamafarm.data.reading.records import DataReader
    from llamafarm.inspection.encoder import RowEncoder
    from llamafarm.strategy.schema import Strategy


@dataclass(frozen=True, slots=True)
class OpenData:
    """A data file, whose bad rows are left out and counted, and what its rows are looked at with."""

    reader: DataReader
    encoder: RowEncoder
    strategy: Strategy
    limits: Limits


def open_data(
    file: Path, strategy: str | None, strategy_file: Path | None, settings: Sequence[str] | None
) -> OpenData:
    """Return a file as a strategy reads it. Without one: the embedded model's tokenizer, and its template."""
    from llamafarm.data.reading.records import DataReader, ReadOptions
    from llamafarm.inspection.encoder import RowEncoder
    from llamafarm.model.load import find_base, load_config, load_tokenizer
    from llamafarm.model.prompt import build_template
    from llamafarm.strategy.schema import Strategy
    from llamafarm.training.preparation.prepare import base_name_of
    from llamafarm.training.preparation.rows import encoding_of, limits_of

    if strategy is None and strategy_file is None and not settings:
        base, chosen = find_base(None), Strategy()
    else:
        loaded = load_with_options(strategy, strategy_file, settings)
        chosen = loaded.strategy
        base = find_base(base_name_of(loaded), chosen.base_model.cache_dir)
    tokenizer = load_tokenizer(base)
    template, origin = build_template(tokenizer, chosen.prompt_template.format, chosen.prompt_template.system)
    # What is too long is shown as it is.
    encoder = RowEncoder(base, tokenizer, origin, encoding_of(tokenizer, template, chosen.dataset, None))
    options = replace(ReadOptions.of(chosen.dataset, chosen.data_preprocessing), skips_bad_rows=True)
    limits = limits_of(chosen.data_preprocessing, load_config(base))
    return OpenData(DataReader(file, options), encoder, chosen, limits)
