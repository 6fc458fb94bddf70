"""The options that several verbs share, and how they become a loaded strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamafarm import terminal
from llamafarm.errors import InputError
from llamafarm.redaction import hide_users

if TYPE_CHECKING:
    from llamafarm.strategy.load import LoadedStrategy

StrategyName = Annotated[
    str | None,
    typer.Option("--strategy", "-s", help="Name of the strategy; may be left out if the file has only one."),
]
StrategyFile = Annotated[
    Path | None,
    typer.Option(
        "--strategy-file",
        "-f",
        help="YAML file with strategies. Else ./strategies.yaml, demos/strategies.yaml, the presets.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be given several times."
    ),
]
PrintsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")
]
IsQuiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only.")]


def set_mode(*, prints_json: bool, is_quiet: bool = False) -> None:
    """Set how this process speaks."""
    terminal.mode.prints_json = prints_json
    terminal.mode.is_quiet = is_quiet


def load_with_options(
    strategy: str | None,
    strategy_file: Path | None,
    settings: Sequence[str] | None = None,
    named: Mapping[str, tuple[str, object]] | None = None,
) -> LoadedStrategy:
    """Load a strategy with what the command line overrides.

    `named` maps an option to the setting it stands for and its value; options left out have None.
    """
    from llamafarm.strategy.load import Override, load_strategy

    overrides = [
        Override(path, str(value), option, is_literal=isinstance(value, str | Path))
        for option, (path, value) in (named or {}).items()
        if value is not None
    ]
    for setting in settings or ():
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise InputError(
                f"{setting!r} is not SECTION.KEY=VALUE",
                where="--set",
                remedy="For example: --set training_args.learning_rate=1e-4",
            )
        overrides.append(Override(path.strip(), text))
    return load_strategy(strategy, file=strategy_file, overrides=overrides)


def show_settings(loaded: LoadedStrategy) -> None:
    """Print every setting that somebody chose, and where; warn of those that change nothing, and why."""
    from llamafarm.strategy.schema import walk_leaves

    terminal.heading(f"{loaded.key}: {loaded.strategy.name}".rstrip(": "))
    terminal.columns(
        [
            (path, _show_value(value), loaded.origins[path].where)
            for path, value in walk_leaves(loaded.strategy)
            if loaded.origins[path].kind != "default" and path not in ("name", "description")
        ]
    )
    for retired in loaded.retired:
        terminal.warn(f"{retired.path} ({retired.origin.where}) changes nothing: {retired.why}")


def _show_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    text = hide_users(text).strip().replace("\n", "\\n")
    return text if len(text) <= 60 else text[:57] + "…"
