"""`setup`: check that a strategy can run on this machine, and fetch what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamafarm import terminal
from llamafarm.commands.amounts import show_seconds
from llamafarm.commands.options import (
    PrintsJson,
    Settings,
    StrategyName,
    load_with_options,
    set_mode,
    show_settings,
)
from llamafarm.redaction import without_users

# A run that is longer is worth a rehearsal.
_LONG_SECONDS = 30 * 60

if TYPE_CHECKING:
    from llamafarm.strategy.load import LoadedStrategy
    from llamafarm.training.preparation.checks import Check
    from llamafarm.training.preparation.prepare import Preparation


def setup(
    strategy_file: Annotated[Path, typer.Argument(help="YAML file with strategies.")],
    strategy: StrategyName = None,
    verifies_only: Annotated[
        bool, typer.Option("--verify-only", help="Change nothing: nothing that is fetched stays.")
    ] = False,
    settings: Settings = None,
    prints_json: PrintsJson = False,
) -> None:
    """Check that a strategy can run on this machine.

    Its data, template, base model, device, memory, disk space, output folder and tools are looked at. Without
    --verify-only the base model is downloaded where it is not there yet, and loaded once. Exit code 3 when
    the machine lacks something that is needed, with the list.
    """
    import tempfile

    from llamafarm.errors import MachineError

    set_mode(prints_json=prints_json)
    loaded = load_with_options(strategy, strategy_file, settings)

    # Below the strategy, so that a slip in it is told without waiting for torch.
    from llamafarm.training.preparation.checks import check_preparation
    from llamafarm.training.preparation.prepare import load_once, prepare
    from llamafarm.training.run import show_preparation

    if not prints_json:
        show_settings(loaded)
    with tempfile.TemporaryDirectory() as scratch:
        preparation = prepare(loaded, scratch_dir=Path(scratch) if verifies_only else None)
        checks = check_preparation(preparation, loaded.strategy)
        missing = [check for check in checks if check.state == "missing"]
        if not verifies_only and not missing:
            load_once(preparation)
    if not prints_json:
        show_preparation(preparation)
        terminal.heading("what it needs of this machine")
        terminal.columns([(check.state, check.subject, check.finding, check.remedy) for check in checks])
    record = _as_record(loaded, preparation, checks)
    if missing:
        raise MachineError(
            f"this machine lacks {', '.join(check.subject for check in missing)} for {loaded.key}",
            where=f"setup {strategy_file}",
            remedy=" ".join(check.remedy for check in missing),
            details=record,
        )
    if prints_json:
        terminal.result_json(record)
    else:
        _advise(loaded, preparation)
        terminal.result(f"{loaded.key} can run on this machine")


def _advise(loaded: LoadedStrategy, preparation: Preparation) -> None:
    """Say when a rehearsal would be wise: where much time would be lost by what fails at the end."""
    from llamafarm.training.export import wants_export
    from llamafarm.training.outlook import look_ahead

    seconds = look_ahead(preparation, loaded.strategy).seconds
    if seconds > _LONG_SECONDS or (wants_export(loaded.strategy) and seconds > _LONG_SECONDS / 3):
        terminal.say(
            f"\nthe run takes {show_seconds(seconds)}: rehearse it first, which takes a few minutes, with  "
            f"python cli.py train --strategy {loaded.key} --strategy-file {loaded.file} --rehearse"
        )


def _as_record(
    loaded: LoadedStrategy, preparation: Preparation, checks: Sequence[Check]
) -> dict[str, object]:
    from dataclasses import asdict

    from llamafarm.training.preparation.checks import are_met

    return {
        "strategy": loaded.key,
        "is_ready": are_met(checks),
        "checks": [asdict(check) for check in checks],
        "choices": [asdict(choice) for choice in preparation.choices],
        "warnings": preparation.warnings,
        "settings": without_users(loaded.strategy.model_dump(mode="json")),
        "origins": {path: str(origin) for path, origin in loaded.origins.items()},
        "retired": loaded.retired_record,
    }
