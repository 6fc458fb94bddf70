"""A conversation with a model: what was said, what of it the model is shown, and `chat`'s commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llamafarm import terminal
from llamafarm.commands.asking import Asked
from llamafarm.errors import InputError, LlamaFarmError, OutputError
from llamafarm.strict_json import to_json

if TYPE_CHECKING:
    from llamafarm.data.conversation import Message
    from llamafarm.inference.generate import Answer, GenerationSettings


class Talk:
    """What has been said, and who answers.

    Of the exchanges of prompt and answer, the model is shown those from `_first_shown` on. One that
    `is_silent` answers and says nothing else.
    """

    def __init__(
        self,
        asked: Asked,
        settings: GenerationSettings,
        seed: int | None,
        system: str | None,
        *,
        is_silent: bool = False,
    ) -> None:
        self._asked = asked
        self._settings = settings
        self._seed = seed
        self._system = system
        self._exchanges: list[tuple[Message, Message]] = []
        self._first_shown = 0
        self._num_last_read: int | None = None
        self._is_silent = is_silent
        self.is_over = False

    def take(self, line: str) -> None:
        """Do what a line says: a command, or a prompt, which is answered on stdout."""
        text = line.strip()
        if text.startswith("/") and not text.startswith("//"):
            name, _, rest = text.partition(" ")
            if name not in COMMANDS:
                raise InputError(
                    f"there is no command {name}",
                    where="chat",
                    remedy="See /help. To say something that begins with a slash, write two.",
                )
            COMMANDS[name][0](self, rest.strip())
        elif text:
            self._ask(text.removeprefix("/"))

    def _ask(self, prompt: str) -> None:
        from llamafarm.data.conversation import Message

        question = Message("user", prompt)
        answer = self._answer(question)
        if answer.is_interrupted and not answer.text:
            self._hint("interrupted before a word came: the question is forgotten")
            return
        self._exchanges.append((question, Message("assistant", answer.text)))
        if answer.is_interrupted:
            self._hint("interrupted: what has come is kept")
        elif answer.ended_by == "max-new-tokens":
            self._hint(f"cut at {answer.num_tokens} tokens; --max-tokens allows more")
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
            self._hint(
                f"the model's context is full: {_count(self._first_shown, 'exchange')} left out, the oldest"
            )

    def _tell_of_a_short_memory(self, answer: Answer) -> None:
        """Say so where a server has read no more than for the last prompt, though more had been said."""
        read, before = answer.num_prompt_tokens, self._num_last_read
        self._num_last_read = read
        if read is not None and before is not None and read <= before:
            self._hint("the model's context is full: Ollama leaves out what was said first (num_ctx)")

    def _hint(self, text: str) -> None:
        if not self._is_silent:
            terminal.hint(text)

    def _show_all_again(self) -> None:
        self._first_shown = 0
        self._num_last_read = None

    def help(self, _: str) -> None:
        """List the commands."""
        terminal.columns(
            [(f"{name} {operand}".strip(), what) for name, (_, operand, what) in COMMANDS.items()]
        )

    def reset(self, _: str) -> None:
        """Forget everything that was said, the system message excepted."""
        self._exchanges.clear()
        self._show_all_again()
        self._hint("everything said is forgotten")

    def set_system(self, text: str) -> None:
        """Take another system message from now on; none gives way to the strategy's."""
        self._system = text or None
        self._show_all_again()
        self._hint("another system message from here on" if text else "the strategy's system message, if any")

    def undo(self, _: str) -> None:
        """Forget the last prompt and its answer."""
        if not self._exchanges:
            self._hint("nothing has been said")
            return
        question, _answer = self._exchanges.pop()
        self._show_all_again()
        self._hint(f"forgotten: {question.content}")

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
        self._hint(f"{_count(len(self._exchanges), 'exchange')} added to {path}")

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


COMMANDS: dict[str, tuple[Callable[[Talk, str], None], str, str]] = {
    "/help": (Talk.help, "", "list the commands"),
    "/reset": (Talk.reset, "", "forget everything that was said"),
    "/undo": (Talk.undo, "", "forget the last prompt and its answer"),
    "/system": (Talk.set_system, "TEXT", "another system message; without TEXT the strategy's"),
    "/save": (Talk.save, "FILE", "add the conversation to a JSONL file, as a row that can be trained on"),
    "/exit": (Talk.leave, "", "leave, as Ctrl-D does"),
}
