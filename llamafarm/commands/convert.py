"""`convert`: make of a trained model what others serve."""

from __future__ import annotations

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
        str, typer.Option("--quantization", help="Type of the weights in a GGUF file: f16, q8_0, q4_k_m, …")
    ] = "q8_0",
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
    from llamafarm.deploy.convert import OLLAMA, ExportWishes, export
    from llamafarm.deploy.rows import rows_to_verify_on, rows_to_weigh_on
    from llamafarm.errors import InputError

    set_mode(prints_json=prints_json, is_quiet=is_quiet)
    format_name = format_name.lower()
    if pushes and format_name != OLLAMA:
        raise InputError(
            f"--push brings a model of Ollama to its registry, and the format is {format_name}",
            where="--push",
            remedy="Write --format ollama.",
        )
    wishes = ExportWishes(
        format_name,
        quantization.lower(),
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
