"""`recommend`: write a strategy file for a model, a file of examples and a machine, by the guide's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llamafarm import terminal
from llamafarm.commands.options import PrintsJson, set_mode

UseCase = Literal["quick", "production", "small", "large", "domain", "conversational"]
DeviceName = Literal["auto", "cuda", "rocm", "mps", "cpu"]


def recommend(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Folder, id on the Hub, or size such as 3B. Else the embedded."),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", "-d", help="File of examples: counted and measured.")
    ] = None,
    num_examples: Annotated[int | None, typer.Option(min=1, help="Instead of a file: how many.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of the longest example.")] = None,
    device: Annotated[DeviceName, typer.Option(help="Device to train on, here or elsewhere.")] = "auto",
    memory_gb: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of the device in GB, else what this one has.")
    ] = None,
    use_case: Annotated[
        UseCase | None, typer.Option(help="Else by the number of examples: small, production or large.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Strategy file to write, else to stdout.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file.")] = False,
    prints_json: PrintsJson = False,
) -> None:
    """Write a strategy whose every value says which rule of the guide it comes from."""
    from dataclasses import asdict

    from llamafarm.commands.facts import find_examples, find_machine, find_model, join_facts
    from llamafarm.planning import recommend as planning

    set_mode(prints_json=prints_json)
    base = find_model(model)
    examples = find_examples(dataset, num_examples, length, base.folder)
    facts, sources = join_facts(base, examples, find_machine(device, memory_gb), use_case)
    recommendations, doubts = planning.recommend(facts), planning.doubts(facts)
    text = planning.write_strategy(facts, recommendations, sources, file=output)
    if output is not None:
        planning.save_strategy(output, text, may_overwrite=overwrite)
    if prints_json:
        terminal.result_json(
            {
                "facts": asdict(facts),
                "sources": sources,
                "recommendations": [asdict(one) for one in recommendations],
                "doubts": doubts,
                "file": None if output is None else str(output),
                "text": text,
            }
        )
        return
    for doubt in doubts:
        terminal.warn(doubt)
    terminal.result(text.rstrip("\n") if output is None else str(output))
