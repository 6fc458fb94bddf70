"""Which model a verb means: a folder, what a strategy trained, or the base that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamafarm.commands.options import load_with_options

if TYPE_CHECKING:
    from llamafarm.inference.generate import GenerationSettings
    from llamafarm.inference.open import OpenModel
    from llamafarm.strategy.load import LoadedStrategy

ModelFolder = Annotated[
    Path | None,
    typer.Option("--model", help="A final_model, run or checkpoint folder; with it, no strategy is needed."),
]


def open_model(
    model: Path | None,
    strategy: str | None,
    strategy_file: Path | None,
    settings: Sequence[str] | None,
    *,
    uses_base: bool,
) -> OpenModel:
    """Load the model that the options mean. Raises `ModelError` if it is not there."""
    from llamafarm.hardware.device import find_device
    from llamafarm.inference.open import open_base, open_final_model
    from llamafarm.model.bundle import final_model_in, weights_folder_of
    from llamafarm.training.preparation.prepare import base_name_of, output_dir_of
    from llamafarm.training.preparation.rows import trained_part_of

    if model is not None:
        _refuse_what_a_folder_decides(strategy, strategy_file, settings)
        opened = open_final_model(final_model_in(model), find_device("auto").kind, weights_folder_of(model))
        return opened.as_base() if uses_base else opened
    loaded = load_with_options(strategy, strategy_file, settings)
    chosen = loaded.strategy
    device_kind = find_device(chosen.hardware.device).kind
    generation = generation_of(loaded)
    if not uses_base:
        return open_final_model(final_model_in(output_dir_of(loaded)), device_kind).with_settings(generation)
    return open_base(
        base_name_of(loaded),
        chosen.base_model.cache_dir,
        device_kind,
        prompt_format=chosen.prompt_template.format,
        system=chosen.prompt_template.system,
        settings=generation,
        trained=trained_part_of(chosen.dataset),
    )


def generation_of(loaded: LoadedStrategy) -> GenerationSettings:
    """Return how a strategy's answers are sampled, and where they end."""
    from llamafarm.inference.generate import GenerationSettings

    chosen = loaded.strategy
    return GenerationSettings(
        **chosen.generation.model_dump(), stop_sequences=chosen.prompt_template.stop_sequences
    )


def _refuse_what_a_folder_decides(
    strategy: str | None, strategy_file: Path | None, settings: Sequence[str] | None
) -> None:
    from llamafarm.errors import InputError

    given = {"--strategy": strategy, "--strategy-file": strategy_file, "--set": settings}
    if named := [option for option, value in given.items() if value]:
        raise InputError(
            f"{', '.join(named)} would change nothing beside --model: the folder has its own settings",
            where=named[0],
            remedy="Leave out either --model or the others.",
        )
