"""`verify`: show that a GGUF file is the model that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamafarm import terminal
from llamafarm.commands.exported import show_verified
from llamafarm.commands.options import PrintsJson, set_mode


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="The file that was exported.")],
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The run, final_model, adapter or model it was made of.")
    ],
    verify_dataset: Annotated[
        Path | None, typer.Option(help="Rows to compare them on. Else those that the run evaluated on.")
    ] = None,
    prints_json: PrintsJson = False,
) -> None:
    """Show that a GGUF file is the model that was trained: token ids, next tokens, answers."""
    from llamafarm.deploy.gguf.types import quantization_in
    from llamafarm.deploy.rows import rows_to_verify_on
    from llamafarm.deploy.source import open_source
    from llamafarm.deploy.verify import verify_file
    from llamafarm.errors import ModelError

    set_mode(prints_json=prints_json)
    if not file.is_file():
        raise ModelError(
            f"there is no file {str(file)!r}", where="verify", remedy="Name a .gguf file that is there."
        )
    rows = rows_to_verify_on(verify_dataset, model)
    with open_source(model) as source:
        verified = verify_file(source, file, quantization_in(file), rows)
    if prints_json:
        terminal.result_json({"file": str(file), **verified.as_record()})
        return
    show_verified(verified)
    terminal.result(f"{file} is the trained model")
