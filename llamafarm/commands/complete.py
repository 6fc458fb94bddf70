"""`complete`: answer one prompt with the trained model, or with its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamafarm import terminal
from llamafarm.commands.asking import open_asked
from llamafarm.commands.options import PrintsJson, Settings, StrategyFile, StrategyName, set_mode


def complete(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    strategy: StrategyName = None,
    strategy_file: StrategyFile = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="A final_model, run folder or GGUF file; with it, no strategy is needed."
        ),
    ] = None,
    uses_base: Annotated[bool, typer.Option("--base", help="Ask the base model, as it was before.")] = False,
    system: Annotated[str | None, typer.Option(help="System message instead of the strategy's.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-m", min=1, help="Most tokens to generate.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", min=0, max=2, help="0 takes the likeliest token.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.")] = None,
    settings: Settings = None,
    prints_json: PrintsJson = False,
) -> None:
    """Answer one prompt with the trained model, or with its base."""
    from dataclasses import replace

    from llamafarm.data.conversation import Message
    from llamafarm.errors import InputError

    set_mode(prints_json=prints_json)
    if not prompt.strip():
        raise InputError("the prompt is empty", where="complete", remedy='Ask something: complete "…".')
    opened = open_asked(model, strategy, strategy_file, settings, uses_base=uses_base)
    chosen = replace(
        opened.settings,
        max_new_tokens=opened.settings.max_new_tokens if max_new_tokens is None else max_new_tokens,
        temperature=opened.settings.temperature if temperature is None else temperature,
    )
    messages = [Message("system", system)] if system is not None else []
    messages.append(Message("user", prompt))
    write = (lambda piece: None) if prints_json else terminal.result_piece
    try:
        answer = opened.stream(messages, chosen, write, seed)
    finally:
        opened.close()
    if prints_json:
        terminal.result_json(
            {
                "prompt": prompt,
                "response": answer.text,
                "model": opened.name,
                "base_model": opened.base_name,
                "ended_by": answer.ended_by,
                "tokens": answer.num_tokens,
            }
        )
        return
    terminal.result("")
    if answer.ended_by == "max-new-tokens":
        terminal.warn(f"the answer was cut at {answer.num_tokens} tokens (generation.max_new_tokens)")
