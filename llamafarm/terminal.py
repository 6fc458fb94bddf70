"""The only writer to stdout and stderr.

Results go to stdout, everything else to stderr. With `--json`, stdout carries one JSON object and nothing
else. Secrets of the environment are hidden in both. rich is loaded when something is printed, so that
importing this module costs nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafarm.errors import InputError, LlamaFarmError, OutputError
from llamafarm.redaction import hide_secrets, hide_users, without_users
from llamafarm.strict_json import to_json

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Mode:
    """How this process speaks: set once, by the command line."""

    prints_json: bool = False
    is_quiet: bool = False
    log_level: str = "info"


mode = Mode()

_LEVELS = ("debug", "info", "warning", "error")


def shows(level: str) -> bool:
    """Return whether messages of this level (debug, info, warning or error) are printed."""
    least = max(mode.log_level, "warning" if mode.is_quiet else "debug", key=_LEVELS.index)
    return _LEVELS.index(level) >= _LEVELS.index(least)


@cache
def console() -> Console:
    """Return the one console for messages: stderr, what is printed as it stands: no markup, no `:x:`."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(line: str = "") -> None:
    """Print a message, unless asked to be quiet."""
    if shows("info"):
        console().print(_without_secrets(line))


def debug(line: str) -> None:
    """Print a message that only `monitoring.log_level: debug` shows."""
    if shows("debug"):
        console().print(_without_secrets(line), style="dim")


def heading(line: str) -> None:
    """Print the first line of a new part of the output, after an empty one."""
    if shows("info"):
        console().print(f"\n{_without_secrets(line)}", style="bold")


def hint(line: str) -> None:
    """Print a message that is no part of what is being said, faintly."""
    if shows("info"):
        console().print(_without_secrets(line), style="dim")


def warn(line: str) -> None:
    """Print a warning; `--quiet` does not hide it."""
    if shows("warning"):
        console().print(f"warning: {_without_secrets(line)}", style="yellow")


def _without_secrets(line: str) -> str:
    """Return a message as it may stand in a log: who is named in an address is nobody's business either."""
    return hide_secrets(hide_users(line))


def is_conversing() -> bool:
    """Return whether somebody types what this process reads."""
    return sys.stdin.isatty()


def read_line(mark: str) -> str | None:
    """Return the next line of stdin, without its end; None at the end of it.

    Whoever types it sees `mark` before it, and can edit it and recall earlier ones where Python has readline.
    Raises `InputError` for what is not text.
    """
    with _only_text():
        if not is_conversing():
            line = sys.stdin.readline()
        elif sys.stdout.isatty():
            with suppress(ImportError):
                import readline  # noqa: F401 - `input` uses it from then on
            try:
                return _checked(input(mark))
            except EOFError:
                return None
        else:  # `input` would write the mark to stdout, which is for results
            console().print(mark, end="")
            line = sys.stdin.readline()
        return _checked(line).rstrip("\r\n") if line else None


def read_all() -> str:
    """Return all of stdin. Raises `InputError` for what is not text."""
    with _only_text():
        return _checked(sys.stdin.read())


def _checked(text: str) -> str:
    # Where the locale says ASCII, Python reads other bytes as halves of characters.
    text.encode("utf-8")
    return text


@contextmanager
def _only_text() -> Iterator[None]:
    try:
        yield
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise InputError(
            f"what is read is not UTF-8: {error.reason}",
            where="stdin",
            remedy="Send UTF-8.",
        ) from None


def columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of messages as aligned columns; nothing is wrapped, so that a line can be copied whole."""
    for line in align(rows):
        say(line)


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines whose columns stand under each other."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)] if rows else []
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def show_error(error: LlamaFarmError) -> None:
    """Print an error's three lines to stderr, or as the one JSON object on stdout."""
    if mode.prints_json:
        result_json(without_users(error.as_record()))
        return
    out = console()
    for label, text in (("error", error.problem), ("at", error.where), ("try", error.remedy)):
        shown = _without_secrets(text)
        out.print(f"{label + ':':<7}{shown}", style="bold red" if label == "error" else None)


def result(text: str) -> None:
    """Print a result to stdout."""
    sys.stdout.write(hide_secrets(text) + "\n")
    sys.stdout.flush()


def result_piece(text: str) -> None:
    """Print a piece of a result that is still being made, such as a streamed answer, to stdout."""
    sys.stdout.write(text)
    sys.stdout.flush()


# How pieces of a styled result look.
_STYLES = {
    "trained": "bold green",
    "special": "dim reverse",
    "trained special": "green reverse",
    "bold": "bold",
    "faint": "dim",
    "": "",
}


@cache
def _result_console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def result_has_color() -> bool:
    """Return whether results are shown in colours: on a terminal that has some, without `NO_COLOR`."""
    out = _result_console()
    return out.is_terminal and out.color_system is not None and not out.no_color


def result_styled(pieces: Iterable[tuple[str, str]]) -> None:
    """Print a result to stdout in pieces of text and style, nothing added; styles are those of `_STYLES`."""
    from rich.text import Text

    out = _result_console()
    for text, style in pieces:
        out.print(Text(text, style=_STYLES[style]), end="")
    sys.stdout.flush()


def write_text(path: Path, text: str) -> None:
    """Write a result to a file. Raises `OutputError`."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"the file cannot be written: {error.strerror}", where=str(path), remedy="Choose another place."
        ) from error


def result_json(record: Mapping[str, Any]) -> None:
    """Print the one JSON object of `--json` to stdout."""
    result(to_json(record))


class Progress:
    """A progress bar with time left; in a pipe or a log file, a line now and then."""

    def __init__(self, bar: Any, task: Any, label: str, num_total: int, seconds_a_line: float = 0.0) -> None:
        self._bar = bar
        self._task = task
        self._label = label
        self._num_total = num_total
        self._num_done = 0
        self._line_every = max(1, num_total // 10)
        self._seconds_a_line = seconds_a_line
        self._last_line = time.monotonic()

    def advance(self, note: str, by: int = 1) -> None:
        """Move on by `by` and show `note` beside the bar."""
        self._num_done += by
        note = _without_secrets(note)
        if self._bar is not None:
            self._bar.update(self._task, advance=by, note=note)
        elif self._is_worth_a_line(by):
            say(f"{self._label} {self._num_done}/{self._num_total}  {note}")
            self._last_line = time.monotonic()

    def _is_worth_a_line(self, by: int) -> bool:
        is_at_a_tenth = self._num_done % self._line_every < by or self._num_done == self._num_total
        return is_at_a_tenth and time.monotonic() - self._last_line >= self._seconds_a_line


@contextmanager
def progress(
    label: str, num_total: int, num_done: int = 0, *, seconds_a_line: float = 0.0
) -> Iterator[Progress]:
    """Show progress over `num_total` pieces of work; messages printed meanwhile stay above the bar.

    In a pipe or a log file a line comes after every tenth of them, and not before `seconds_a_line`.
    """
    out = console()
    if not shows("info") or not out.is_terminal:
        yield Progress(None, None, label, num_total, seconds_a_line)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=out,
        # Else rich prints results beside the bar to stderr, and not into the file or pipe that stdout is.
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(label, total=num_total, completed=num_done, note="")
        yield Progress(bar, task, label, num_total)


def has_screen() -> bool:
    """Return whether messages go to a terminal whose lines can be drawn anew, in Unicode.

    `FORCE_COLOR` makes rich take a log file for a terminal, which is why the file itself is asked too.
    """
    out = console()
    can_draw = out.is_interactive and out.file.isatty() and not out.legacy_windows
    return can_draw and out.encoding.startswith("utf")
