"""`convert`: make of a trained model what others serve."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm import terminal
from llamafarm.commands.options import IsQuiet, PrintsJson, set_mode

if TYPE_CHECKING:
    from llamafarm.deploy.convert import Exported
    from llamafarm.deploy.verify import Verified


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
    verify_dataset: Annotated[
        Path | None, typer.Option(help="Rows to compare the file with the trained model on.")
    ] = None,
    verifies: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the file with the trained model.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    prints_json: PrintsJson = False,
    is_quiet: IsQuiet = False,
) -> None:
    """Make of a trained model what others serve: a model in Ollama, a GGUF file, or merged weights."""
    from llamafarm.deploy.convert import OLLAMA, ExportWishes, export
    from llamafarm.deploy.rows import rows_to_verify_on
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
        verifies=verifies,
        conversations=rows_to_verify_on(verify_dataset, source),
    )
    exported = export(source, output, wishes)
    record = _show(exported)
    if format_name == OLLAMA:
        record |= _give_to_ollama(exported, pushes)
    if prints_json:
        terminal.result_json(record)
    else:
        terminal.result(str(exported.path))


def _show(exported: Exported) -> dict[str, Any]:
    """Say what was written, and return it for `--json`."""
    for note in exported.notes:
        terminal.warn(note)
    if exported.verified is not None:
        show_verified(exported.verified)
    terminal.say(f"wrote {exported.path}, {exported.num_bytes / 2**20:,.1f} MiB")
    return {
        "verified": None if exported.verified is None else exported.verified.as_record(),
        "path": str(exported.path),
        "format": exported.format,
        "bytes": exported.num_bytes,
        "notes": list(exported.notes),
    }


def show_verified(verified: Verified) -> None:
    """Print what was shown of a file."""
    terminal.heading("verified against the trained model")
    terminal.columns(verified.rows())
    if verified.base_divergence is not None:
        terminal.say(f"the base model's divergence is {verified.base_divergence:.5f}")
    if not verified.num_conversations:
        return
    terminal.say(
        f"{verified.num_conversations} conversations have the same token ids; "
        f"{verified.num_equal_answers} of {verified.num_answers} greedy answers are the same, "
        f"{verified.num_stopped} end by themselves (trained: {verified.num_trained_stopped})"
    )


def _give_to_ollama(exported: Exported, pushes: bool) -> dict[str, Any]:
    """Make the model in Ollama where one is there; else say what does it later."""
    from llamafarm.deploy.hand_over import hand_over
    from llamafarm.inference.ollama import Ollama

    assert exported.gguf is not None and exported.modelfile is not None and exported.name is not None
    by_hand = f"ollama create {exported.name} -f {shlex.quote(str(exported.modelfile_path))}"
    server = Ollama()
    is_there = server.is_there()
    server.close()
    if not is_there and not pushes:
        terminal.warn(f"nothing answers at {server.address}: start Ollama, then run  {by_hand}")
        return {"ollama": None, "next": by_hand}
    given = hand_over(exported.gguf, exported.modelfile, exported.name, pushes=pushes)
    terminal.say(f"{given.name} is in Ollama {given.version} at {given.address}:  ollama run {given.name}")
    return {"ollama": given.name, "next": f"ollama run {given.name}"}
