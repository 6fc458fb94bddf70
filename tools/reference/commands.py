"""The page of verbs, from the signatures that typer reads too; no terminal's width is asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from llamafarm.cli import app
from tools.reference.markdown import paragraph, table

_HEAD = """# Verbs

`uv run python cli.py VERB …` in a checkout, `llamafarm-finetune VERB …` where the package is installed.
Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 our fault, 2 something in the input,
3 something about the machine, 130 interrupted.
"""


def write_commands() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *_verbs(app, "")])


def verbs(of: typer.Typer = app, prefix: str = "") -> dict[str, Callable[..., Any]]:
    """Return every verb as it is typed, such as `data split`, with its function."""
    found: dict[str, Callable[..., Any]] = {}
    for command in of.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.rstrip("_").replace("_", "-")
        found[f"{prefix}{name}"] = command.callback
    for group in of.registered_groups:
        assert group.typer_instance is not None
        found |= verbs(group.typer_instance, f"{prefix}{group.name} ")
    return found


def _verbs(of: typer.Typer, prefix: str) -> Iterator[str]:
    for name, function in verbs(of, prefix).items():
        arguments, options = parameters(function)
        usage = " ".join(["cli.py", name, *(argument.upper() for argument, _ in arguments), "[OPTIONS]"])
        yield f"## `{name}`\n"
        yield f"`{usage}`\n"
        yield f"{paragraph(inspect.getdoc(function) or '')}\n"
        if arguments:
            yield table(("argument", "what it is"), arguments) + "\n"
        yield table(("option", "what it does"), options) + "\n"


def parameters(function: Callable[..., Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the arguments and the options of a verb, each with its help, type and default."""
    hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    arguments, options = [], []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = _unpack(hints[name])
        if isinstance(info, ArgumentInfo):
            arguments.append((name, _help(info, kind, parameter.default)))
        else:
            # Under Annotated, typer keeps the first name that an option is given where a default would be.
            given = [info.default, *(info.param_decls or ())]
            written = [one for one in given if isinstance(one, str) and one.startswith("-")]
            shown = ", ".join(f"`{one}`" for one in written or [f"--{name.replace('_', '-')}"])
            value = "" if kind is bool else f" {info.metavar or _value(kind)}"
            options.append((f"{shown}{value}", _help(info, kind, parameter.default)))
    return arguments, options


def _unpack(hint: Any) -> tuple[Any, OptionInfo | ArgumentInfo]:
    """Return the plain type of a parameter and what typer was told of it."""
    assert get_origin(hint) is Annotated
    kind, *told = get_args(hint)
    info = next(one for one in told if isinstance(one, OptionInfo | ArgumentInfo))
    alternatives = [one for one in get_args(kind) if one is not NoneType]
    if get_origin(kind) is not Literal and get_origin(kind) is not list and alternatives:
        kind = alternatives[0]
    return kind, info


def _value(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(f"`{word}`" for word in get_args(kind))
    if get_origin(kind) is list:
        return f"{_value(get_args(kind)[0])}, several times"
    return {int: "NUMBER", float: "NUMBER", Path: "FILE", str: "TEXT"}[kind]


def _help(info: OptionInfo | ArgumentInfo, kind: Any, default: Any) -> str:
    limits = [f"at least {info.min}"] if info.min is not None else []
    limits += [f"at most {info.max}"] if info.max is not None else []
    has_default = default is not inspect.Parameter.empty and default not in (None, False, ...)
    limits += [f"default {default}"] if has_default else []
    extra = f" ({', '.join(limits)})" if limits else ""
    text = (info.help or "").rstrip(".")
    return f"{text}{extra}."
