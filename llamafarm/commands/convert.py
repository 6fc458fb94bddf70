"""`convert`: make of a trained model what others serve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llamafarm import terminal
from llamafarm.commands.exported import give_to_ollama, show_exported
from llamafarm.commands.options import IsQuiet, PrintsJson, set_mode

Rows = Annotated[
    Path | None,
    typer.Option(help="Rows to compare the file with the trained model on. Else the run's own."),
]
WeighsInputs = Annotated[
    bool, typer.Option("--importance", help="Round least what matters most on the rows.")
]
SkipsVerifying = Annotated[
    bool, typer.Option("--no-verify", help="Do not compare what is written with the trained model.")
]


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A run, a final_model, a PEFT adapter or a whole model.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder, or a .gguf file, to write.")],
    format_name: Annotated[
        str, typer.Option("--format", help="ollama, gguf, pytorch, safetensors or adapter-gguf.")
    ] = "gguf",
    quantization: Annotated[
        str | None,
        typer.Option(help="Type of the weights in a GGUF file: f16, q8_0 (unless told otherwise), q4_k_m, …"),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option("--model-name", help="Name of the model in Ollama, and of the file.")
    ] = None,
    system_prompt: Annotated[
        str | None, typer.Option("--system-prompt", help="System message instead of the strategy's.")
    ] = None,
    pushes: Annotated[bool, typer.Option("--push", help="Push the model to its registry.")] = False,
    verify_dataset: Rows = None,
    weighs_inputs: WeighsInputs = False,
    skips_verifying: SkipsVerifying = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    prints_json: PrintsJson = False,
    is_quiet: IsQuiet = False,
) -> None:
    """Make of a trained model what others serve: a model in Ollama, a GGUF file, or merged weights."""
    from llamafarm.deploy.convert import DEFAULT_QUANTIZATION, OLLAMA, ExportWishes, export
    from llamafarm.deploy.rows import rows_to_verify_on, rows_to_weigh_on

    set_mode(prints_json=prints_json, is_quiet=is_quiet)
    format_name = format_name.lower()
    given = (
        ("--quantization", quantization),
        ("--model-name", model_name),
        ("--system-prompt", system_prompt),
        ("--importance", weighs_inputs),
        ("--push", pushes),
    )
    _refuse_what_changes_nothing(format_name, [option for option, value in given if value])
    wishes = ExportWishes(
        format_name,
        (quantization or DEFAULT_QUANTIZATION).lower(),
        model_name,
        system_prompt,
        overwrites=overwrite,
        weighed=rows_to_weigh_on(verify_dataset, source) if weighs_inputs else None,
        verifies=not skips_verifying,
        conversations=rows_to_verify_on(verify_dataset, source),
    )
    exported = export(source, output, wishes)
    record = show_exported(exported)
    if format_name == OLLAMA:
        record |= give_to_ollama(exported, pushes=pushes)
    if prints_json:
        terminal.result_json(record)
    else:
        terminal.result(str(exported.path))


def _refuse_what_changes_nothing(format_name: str, given: Sequence[str]) -> None:
    """Raise `InputError` for options of other formats than the one that is written."""
    from llamafarm.deploy.convert import OLLAMA, PYTORCH, SAFETENSORS
    from llamafarm.errors import InputError

    is_merged = format_name in (PYTORCH, SAFETENSORS)
    named = [option for option in given if is_merged or (option == "--push" and format_name != OLLAMA)]
    if named:
        wanted = "ollama" if "--push" in named else "gguf or ollama"
        raise InputError(
            f"{', '.join(named)} would change nothing of the format {format_name}",
            where=named[0],
            remedy=f"Leave it out, or write --format {wanted}.",
        )
