"""`chat`: a conversation with the trained model, or with its base, line by line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm import terminal
from llamafarm.commands.asking import (
    Asked,
    AskedModel,
    MaxTokens,
    RepetitionPenalty,
    Seed,
    System,
    Temperature,
    TopK,
    TopP,
    UsesBase,
    open_asked,
    with_options,
)
from llamafarm.commands.options import IsQuiet, Settings, StrategyFile, StrategyName, set_mode
from llamafarm.commands.talk import Talk
from llamafarm.errors import InputError, LlamaFarmError

if TYPE_CHECKING:
    from llamafarm.inference.generate import Answer

_MARK = "> "


def chat(
    strategy: StrategyName = None,
    strategy_file: StrategyFile = None,
    model: AskedModel = None,
    uses_base: UsesBase = False,
    system: System = None,
    max_new_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    settings: Settings = None,
    compares: Annotated[
        bool, typer.Option("--compare", help="Let the base model answer, too, before the trained one.")
    ] = False,
    is_quiet: IsQuiet = False,
) -> None:
    """Talk with the trained model, with its base, or with both in turn.

    Every line is a prompt, and the model sees what was said before. /help lists the commands. Ctrl-C ends an
    answer, Ctrl-D the conversation. From a pipe, each line is a prompt too, and stdout has the answers.
    """
    set_mode(prints_json=False, is_quiet=is_quiet)
    if uses_base and compares:
        raise InputError(
            "--base asks the base alone, and --compare both", where="--base", remedy="Leave one out."
        )
    asked = open_asked(model, strategy, strategy_file, settings, uses_base=uses_base, is_compared=compares)
    named = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
    }
    chosen = with_options(asked.settings, named)
    talk: Talk | _BothTalk = Talk(asked, chosen, seed, system)
    if compares:
        talk = _BothTalk(
            Talk(_base_of(asked), chosen, seed, system, is_silent=True), Talk(asked, chosen, seed, system)
        )
    try:
        if terminal.is_conversing():
            terminal.hint(f"{asked.name}: /help lists the commands, Ctrl-D leaves")
            _converse(talk)
        else:
            while not talk.is_over and (line := terminal.read_line(_MARK)) is not None:
                talk.take(line)
    finally:
        asked.close()


def _converse(talk: Talk | _BothTalk) -> None:
    """Take lines from somebody who types them, whom an error or one Ctrl-C does not throw out."""
    is_leaving = False
    while not talk.is_over:
        try:
            line = terminal.read_line(_MARK)
        except KeyboardInterrupt:
            terminal.say()
            if is_leaving:
                raise
            is_leaving = True
            terminal.hint("Ctrl-C once more leaves, and so does /exit")
            continue
        except LlamaFarmError as error:
            terminal.show_error(error)
            continue
        is_leaving = False
        if line is None:
            terminal.say()
            return
        try:
            talk.take(line)
        except LlamaFarmError as error:
            terminal.show_error(error)
        except KeyboardInterrupt:  # as an answer ended, or while a command was at work
            terminal.say()


class _BothTalk:
    """The same conversation with base and tuned model in turn; each sees its own answers."""

    def __init__(self, base: Talk, tuned: Talk) -> None:
        self._base, self._tuned = base, tuned

    @property
    def is_over(self) -> bool:
        """Return whether somebody has left."""
        return self._tuned.is_over

    def take(self, line: str) -> None:
        """Do what a line says in both conversations; what is saved is the tuned model's."""
        text = line.strip()
        if text.startswith("/") and not text.startswith("//"):
            if text.split()[0] in ("/reset", "/undo", "/system"):
                self._base.take(line)
            self._tuned.take(line)
        elif text:
            terminal.hint("base")
            self._base.take(line)
            terminal.hint("tuned")
            self._tuned.take(line)


def _base_of(asked: Asked) -> Asked:
    """Return the base of a model as one that is asked by itself."""
    beside = asked.base
    assert beside is not None

    def stream(*arguments: Any) -> Answer:
        with beside() as base:
            return base.stream(*arguments)

    return replace(asked, stream=stream)
