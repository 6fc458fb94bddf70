"""`chat`: a conversation with the trained model, or with its base, line by line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
from llamafarm.errors import InputError, LlamaFarmError, OutputError
from llamafarm.strict_json import to_json

if TYPE_CHECKING:
    from llamafarm.data.conversation import Message
    from llamafarm.inference.generate import Answer, GenerationSettings

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
    is_quiet: IsQuiet = False,
) -> None:
    """Talk with the trained model, or with its base.

    Every line is a prompt, and the model sees what was said before. /help lists the commands. Ctrl-C ends an
    answer, Ctrl-D the conversation. From a pipe, each line is a prompt too, and stdout has the answers.
    """
    set_mode(prints_json=False, is_quiet=is_quiet)
    asked = open_asked(model, strategy, strategy_file, settings, uses_base=uses_base)
    named = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
    }
    talk = _Talk(asked, with_options(asked.settings, named), seed, system)
    try:
        if terminal.is_conversing():
            terminal.hint(f"{asked.name}: /help lists the commands, Ctrl-D leaves")
            _converse(talk)
        else:
            while not talk.is_over and (line := terminal.read_line(_MARK)) is not None:
                talk.take(line)
    finally:
        asked.close()


def _converse(talk: _Talk) -> None:
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


class _Talk:
    """What has been said, and who answers.

    Of the exchanges of prompt and answer, the model is shown those from `_first_shown` on.
    """

    def __init__(
        self, asked: Asked, settings: GenerationSettings, seed: int | None, system: str | None
    ) -> None:
        self._asked = asked
        self._settings = settings
        self._seed = seed
        self._system = system
        self._exchanges: list[tuple[Message, Message]] = []
        self._first_shown = 0
        self._num_last_read: int | None = None
        self.is_over = False

    def take(self, line: str) -> None:
        """Do what a line says: a command, or a prompt, which is answered on stdout."""
        text = line.strip()
        if text.startswith("/") and not text.startswith("//"):
            name, _, rest = text.partition(" ")
            if name not in _COMMANDS:
                raise InputError(
                    f"there is no command {name}",
                    where="chat",
                    remedy="See /help. To say something that begins with a slash, write two.",
                )
            _COMMANDS[name][0](self, rest.strip())
        elif text:
            self._ask(text.removeprefix("/"))

    def _ask(self, prompt: str) -> None:
        from llamafarm.data.conversation import Message

        question = Message("user", prompt)
        answer = self._answer(question)
        if answer.is_interrupted and not answer.text:
            terminal.hint("interrupted before a word came: the question is forgotten")
            return
        self._exchanges.append((question, Message("assistant", answer.text)))
        if answer.is_interrupted:
            terminal.hint("interrupted: what has come is kept")
        elif answer.ended_by == "max-new-tokens":
            terminal.hint(f"cut at {answer.num_tokens} tokens; --max-tokens allows more")
        self._tell_of_a_short_memory(answer)
        if terminal.is_conversing():
            terminal.say()

    def _answer(self, question: Message) -> Answer:
        """Answer on stdout, leaving out the oldest exchanges where there is no room for them all."""
        from llamafarm.errors import PromptTooLongError

        first_shown_before = self._first_shown
        while not self._has_room_after(self._messages(question)) and self._may_leave_out():
            self._first_shown += 1
        self._tell_of_what_is_left_out(first_shown_before)
        while True:
            try:
                return self._stream(self._messages(question))
            except PromptTooLongError:  # of a server, which alone knows how much it takes
                if not self._may_leave_out():
                    raise
            self._first_shown += 1
            self._tell_of_what_is_left_out(self._first_shown - 1)

    def _stream(self, messages: Sequence[Message]) -> Answer:
        """Answer on stdout, where the line is ended in any case once something stands on it."""
        is_begun = False

        def write(piece: str) -> None:
            nonlocal is_begun
            is_begun = True
            terminal.result_piece(piece)

        try:
            answer = self._asked.stream(messages, self._settings, write, self._seed)
        except LlamaFarmError:  # a server that broke off
            if is_begun:
                terminal.result("")
            raise
        terminal.result("")
        return answer

    def _messages(self, question: Message) -> list[Message]:
        """Return what the model is shown."""
        return [*self._messages_from(self._first_shown), question]

    def _messages_from(self, first: int) -> list[Message]:
        from llamafarm.data.conversation import Message

        given = [] if self._system is None else [Message("system", self._system)]
        shown = [message for exchange in self._exchanges[first:] for message in exchange]
        return [*given, *shown]

    def _may_leave_out(self) -> bool:
        return self._first_shown < len(self._exchanges)

    def _has_room_after(self, messages: Sequence[Message]) -> bool:
        """Return whether an answer has room, as far as that can be known: at most half of the context."""
        if self._asked.count_tokens is None or self._asked.context_tokens is None:
            return True
        wanted = min(self._settings.max_new_tokens, self._asked.context_tokens // 2)
        return self._asked.count_tokens(messages) + wanted <= self._asked.context_tokens

    def _tell_of_what_is_left_out(self, first_shown_before: int) -> None:
        if self._first_shown > first_shown_before:
            terminal.hint(
                f"the model's context is full: {_count(self._first_shown, 'exchange')} left out, the oldest"
            )

    def _tell_of_a_short_memory(self, answer: Answer) -> None:
        """Say so where a server has read no more than for the last prompt, though more had been said."""
        read, before = answer.num_prompt_tokens, self._num_last_read
        self._num_last_read = read
        if read is not None and before is not None and read <= before:
            terminal.hint("the model's context is full: Ollama leaves out what was said first (num_ctx)")

    def _show_all_again(self) -> None:
        self._first_shown = 0
        self._num_last_read = None

    def help(self, _: str) -> None:
        """List the commands."""
        terminal.columns(
            [(f"{name} {operand}".strip(), what) for name, (_, operand, what) in _COMMANDS.items()]
        )

    def reset(self, _: str) -> None:
        """Forget everything that was said, the system message excepted."""
        self._exchanges.clear()
        self._show_all_again()
        terminal.hint("everything said is forgotten")

    def set_system(self, text: str) -> None:
        """Take another system message from now on; none gives way to the strategy's."""
        self._system = text or None
        self._show_all_again()
        terminal.hint(
            "another system message from here on" if text else "the strategy's system message, if any"
        )

    def undo(self, _: str) -> None:
        """Forget the last prompt and its answer."""
        if not self._exchanges:
            terminal.hint("nothing has been said")
            return
        question, _answer = self._exchanges.pop()
        self._show_all_again()
        terminal.hint(f"forgotten: {question.content}")

    def save(self, name: str) -> None:
        """Add the conversation to a file as a row of data. Raises `InputError`."""
        if not name or not self._exchanges:
            raise InputError(
                "nothing has been said that could be saved" if name else "/save needs the name of a file",
                where="/save",
                remedy="For example: /save conversations.jsonl, after an answer.",
            )
        path = Path(name).expanduser()
        turns = [{"role": one.role, "content": one.content} for one in self._messages_from(0)]
        _add_line(path, to_json({"messages": turns}))
        terminal.hint(f"{_count(len(self._exchanges), 'exchange')} added to {path}")

    def leave(self, _: str) -> None:
        """End the conversation."""
        self.is_over = True


def _add_line(path: Path, line: str) -> None:
    """Add a line to a file, which need not be there, or end with a line break."""
    try:
        with path.open("a+b") as file:
            file.seek(0)
            is_broken_off = not file.read().endswith(b"\n") and file.tell() > 0
            file.write((b"\n" if is_broken_off else b"") + line.encode() + b"\n")
    except OSError as error:
        raise OutputError(
            f"the file cannot be written: {error.strerror}", where=str(path), remedy="Choose another place."
        ) from error


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


_COMMANDS: dict[str, tuple[Callable[[_Talk, str], None], str, str]] = {
    "/help": (_Talk.help, "", "list the commands"),
    "/reset": (_Talk.reset, "", "forget everything that was said"),
    "/undo": (_Talk.undo, "", "forget the last prompt and its answer"),
    "/system": (_Talk.set_system, "TEXT", "another system message; without TEXT the strategy's"),
    "/save": (_Talk.save, "FILE", "add the conversation to a JSONL file, as a row that can be trained on"),
    "/exit": (_Talk.leave, "", "leave, as Ctrl-D does"),
}
