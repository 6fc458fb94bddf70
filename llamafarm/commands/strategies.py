"""`strategies list|show|validate|schema`: what there is to train with, and whether it is written well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from llamafarm import terminal
from llamafarm.commands.options import PrintsJson, Settings, StrategyFile, load_with_options, set_mode
from llamafarm.errors import StrategyError
from llamafarm.redaction import hide_users, without_users

_MAX_WIDTH = 60
_MAX_FAULTS = 100
"""Each takes a search for its remedy, of some milliseconds."""

if TYPE_CHECKING:
    from llamafarm.strategy.faults import Fault
    from llamafarm.strategy.load import LoadedStrategy


def list_all(strategy_file: StrategyFile = None, prints_json: PrintsJson = False) -> None:
    """List the strategies of a file, or all that can be named without one."""
    from dataclasses import asdict

    from llamafarm.strategy.load import list_strategies

    set_mode(prints_json=prints_json)
    found = list_strategies(strategy_file)
    if prints_json:
        terminal.result_json({"strategies": [asdict(summary) for summary in found]})
        return
    _print_columns([(one.key, one.name, one.where, one.description) for one in found])


def show(
    name: Annotated[str, typer.Argument(help="Name of the strategy.")],
    strategy_file: StrategyFile = None,
    settings: Settings = None,
    prints_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print a flat strategy that loads to the same.")
    ] = False,
    prints_json: PrintsJson = False,
) -> None:
    """Show every setting of a strategy, and where its value comes from."""
    from llamafarm.strategy.schema import walk_leaves
    from llamafarm.strategy.writing import write_strategy, write_value

    set_mode(prints_json=prints_json)
    loaded = load_with_options(name, strategy_file, settings)
    if prints_json:
        terminal.result_json(_as_record(loaded))
    elif prints_yaml:
        written = write_strategy(loaded).rstrip("\n")
        shown = hide_users(written)
        terminal.result(shown)
        if shown != written:
            terminal.warn("whom an address names is left out: write it in where … stands")
    else:
        _print_columns(
            [
                (path, _shorten(hide_users(write_value(value))), str(loaded.origins[path]))
                for path, value in walk_leaves(loaded.strategy)
            ]
        )
    if not prints_json:
        for retired in loaded.retired:
            terminal.warn(f"{retired.path} ({retired.origin.where}) changes nothing: {retired.why}")


def validate(
    name: Annotated[
        str | None, typer.Argument(help="Name of the strategy; left out, all are checked.")
    ] = None,
    strategy_file: StrategyFile = None,
    prints_json: PrintsJson = False,
) -> None:
    """Check strategies without running them, and tell every fault. Exit code 2 when there is one."""
    from llamafarm.strategy.load import find_faults

    set_mode(prints_json=prints_json)
    checked = find_faults(name, file=strategy_file)
    if any(checked.values()):
        _raise_all(checked)
    if prints_json:
        terminal.result_json({"strategies": list(checked), "faults": []})
        return
    terminal.result("\n".join(f"{key} is valid" for key in checked) or "there is no strategy to check")


def schema() -> None:
    """Print the JSON Schema of strategy files, for editors that complete and check them."""
    from llamafarm.strategy.json_schema import strategy_json_schema
    from llamafarm.strict_json import to_json

    terminal.result(to_json(strategy_json_schema(), indent=2))


def _as_record(loaded: LoadedStrategy) -> dict[str, object]:
    return {
        "strategy": loaded.key,
        "file": None if loaded.file is None else str(loaded.file),
        "settings": without_users(loaded.strategy.model_dump(mode="json")),
        "origins": {path: str(origin) for path, origin in loaded.origins.items()},
        "retired": loaded.retired_record,
    }


def _raise_all(checked: dict[str, list[Fault]]) -> None:
    """Print each fault once, with its remedy, and raise the error that sums them up."""
    found = [(key, fault) for key, faults in checked.items() for fault in faults]
    records = [
        {"strategy": key, "problem": fault.problem, "where": fault.where, "remedy": fault.tell_remedy()}
        for key, fault in found[:_MAX_FAULTS]
    ]
    if not terminal.mode.prints_json:
        # A parent's fault is each child's too.
        told = dict.fromkeys((one["problem"], one["where"], one["remedy"]) for one in records)
        for problem, where, remedy in told:
            terminal.show_error(StrategyError(problem, where=where, remedy=remedy))
    faulty = [key for key, faults in checked.items() if faults]
    others = f" ({len(found)} faults, of which the first are told)" if len(found) > _MAX_FAULTS else ""
    raise StrategyError(
        f"{len(faulty)} of {len(checked)} strategies cannot be loaded: {', '.join(faulty)}{others}",
        where="strategies validate",
        remedy="Mend what is listed above, and validate again.",
        details={"faults": records, "num_faults": len(found)},
    )


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_WIDTH else text[: _MAX_WIDTH - 1] + "…"


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)] if rows else []
    for row in rows:
        terminal.result(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
