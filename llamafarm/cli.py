"""The command line: which verb is which command, and the one place where errors become exit codes.

Exit codes: 0 done, 1 our fault, 2 the user's input, 3 the machine, 130 interrupted, 143 terminated. The
modules of the commands import what they need when they run, so that `--help` is instant.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import typer

from llamafarm import terminal
from llamafarm.commands.chat import chat
from llamafarm.commands.complete import complete
from llamafarm.commands.convert import convert
from llamafarm.commands.data.clean import clean
from llamafarm.commands.data.inspect import inspect
from llamafarm.commands.data.preview import preview
from llamafarm.commands.data.split import split
from llamafarm.commands.doctor import doctor
from llamafarm.commands.evaluate import evaluate
from llamafarm.commands.plan import plan
from llamafarm.commands.recommend import recommend
from llamafarm.commands.report import report
from llamafarm.commands.setup import setup
from llamafarm.commands.strategies import list_all, schema, show, validate
from llamafarm.commands.train import train
from llamafarm.commands.verify import verify
from llamafarm.errors import InputError, LlamaFarmError
from llamafarm.redaction import hide_secrets, hide_users


def _guard(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with every error made into a message and an exit code."""

    @wraps(command)
    def guarded(*arguments: object, **options: object) -> None:
        try:
            command(*arguments, **options)
        except LlamaFarmError as error:
            terminal.show_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as interrupt:
            _leave_at_the_next_signal()
            terminal.warn("interrupted")
            raise typer.Exit(143 if isinstance(interrupt, _Terminated) else 130) from None
        except BrokenPipeError:
            # Whoever read our output has seen enough. Nothing more can be written, at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Exception as error:
            shown = _as_bad_name(error) or _as_bug(error)
            terminal.show_error(shown)
            raise typer.Exit(shown.exit_code) from None

    return guarded


def _as_bad_name(error: Exception) -> InputError | None:
    """Return what is wrong with a name that no file system takes, wherever it was asked for."""
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    return InputError(
        f"{str(error.filename)[:80]!r}… is too long to be the name of a file",
        where="a path that was named",
        remedy="Check what was given as a path.",
    )


def _as_bug(error: Exception) -> LlamaFarmError:
    """Return an unforeseen error with its traceback kept in a file."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="llamafarm-traceback-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(hide_secrets(hide_users("".join(traceback.format_exception(error)))))
    return LlamaFarmError(
        f"this should not have happened ({type(error).__name__}: {error})",
        where=f"the traceback is in {Path(file.name)}",
        remedy="Report it with that file; it is our fault.",
    )


app = typer.Typer(
    help="From a YAML strategy and a file of examples to a fine-tuned language model, on your own hardware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    help="Work on data files.", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)
for verb in (setup, plan, train, complete, chat, evaluate, report, convert, verify, recommend, doctor):
    app.command()(_guard(verb))
for data_verb in (inspect, preview, clean, split):
    data_app.command()(_guard(data_verb))
app.add_typer(data_app, name="data")
strategies_app = typer.Typer(
    help="List, show and check strategies.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
strategies_app.command("list")(_guard(list_all))
strategies_app.command()(_guard(show))
strategies_app.command()(_guard(validate))
strategies_app.command()(_guard(schema))
app.add_typer(strategies_app, name="strategies")


class _Terminated(KeyboardInterrupt):
    """SIGTERM came where nothing else listens for it: what is held is let go of, as on Ctrl-C."""

    has_come = False


def _terminate(*_: object) -> None:
    _Terminated.has_come = True
    raise _Terminated


def _leave_at_the_next_signal() -> None:
    """Have another signal end the process; as an exception, click would give it exit code 1."""
    if signal.getsignal(signal.SIGTERM) is _terminate:  # else the process is somebody else's
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os._exit(128 + number))


def main() -> None:
    """Run the command line; leaves the process with its exit code, and signals to whom they were before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except SystemExit as left:
        # Before a command has begun typer answers, which takes every interruption for Ctrl-C.
        if _Terminated.has_come and left.code in (1, 130):
            raise SystemExit(143) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
