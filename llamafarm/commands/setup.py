"""`setup`: check that a strategy can run on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamafarm import terminal
from llamafarm.commands.options import (
    PrintsJson,
    Settings,
    StrategyName,
    load_with_options,
    set_mode,
    show_settings,
)


def setup(
    strategy_file: Annotated[Path, typer.Argument(help="YAML file with strategies.")],
    strategy: StrategyName = None,
    verifies_only: Annotated[
        bool, typer.Option("--verify-only", help="Change nothing: neither download nor write.")
    ] = False,
    settings: Settings = None,
    prints_json: PrintsJson = False,
) -> None:
    """Check that a strategy can run on this machine: its data, template, base model, device, folder.

    Without --verify-only the base model is downloaded where it is not there yet, and loaded once.
    """
    from dataclasses import asdict

    import torch

    from llamafarm.model.load import load_model
    from llamafarm.training.preparation.prepare import prepare
    from llamafarm.training.record import check_output_dir, earlier_run_in
    from llamafarm.training.run import show_preparation

    set_mode(prints_json=prints_json)
    loaded = load_with_options(strategy, strategy_file, settings)
    if not prints_json:
        show_settings(loaded)
    preparation = prepare(loaded, may_download=not verifies_only)
    check_output_dir(preparation.output_dir, overwrite=True)
    if taken := earlier_run_in(preparation.output_dir):
        preparation.warnings.append(
            f"{preparation.output_dir} holds an earlier run ({', '.join(taken)}): train needs "
            "--overwrite, or another --output-dir"
        )
    if not verifies_only:
        load_model(preparation.base, dtype=torch.bfloat16, device=torch.device("cpu"))
    if prints_json:
        terminal.result_json(
            {
                "strategy": loaded.key,
                "is_ready": True,
                "choices": [asdict(choice) for choice in preparation.choices],
                "warnings": preparation.warnings,
            }
        )
        return
    show_preparation(preparation)
    terminal.result(f"{loaded.key} can run on this machine")
