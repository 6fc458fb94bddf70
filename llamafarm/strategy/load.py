"""Resolve a strategy with its parents and the command line, and say where each setting came from.

`places.py` finds it, `flatten.py` puts its settings in their places, `layout.py` merges, `schema.py`
validates, `faults.py` explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from llamafarm.errors import StrategyError
from llamafarm.strategy import layout
from llamafarm.strategy.document import Node, Origin, parse_value, show_key
from llamafarm.strategy.faults import Fault, describe_errors, raise_faults, sort_faults
from llamafarm.strategy.flatten import Findings, flatten
from llamafarm.strategy.loaded import LoadedStrategy, resolve_path
from llamafarm.strategy.places import Entry, chain_of, find_entry, searched_places
from llamafarm.strategy.schema import Strategy, walk_leaves

__all__ = [
    "LoadedStrategy",
    "Origin",
    "Override",
    "StrategySummary",
    "find_faults",
    "list_strategies",
    "load_strategy",
    "resolve_path",
]

DEFAULT = Origin("default", "")


class Override(NamedTuple):
    """A setting given on the command line."""

    path: str
    """Dotted, such as `training_args.learning_rate`."""
    text: str
    """Its value: a YAML scalar or flow collection."""
    option: str = ""
    """The option to name as its origin, such as `--epochs`; empty for `--set`."""
    is_literal: bool = False
    """Take `text` as text and not as YAML, as for a file's name."""


@dataclass(frozen=True)
class StrategySummary:
    """One line of the list of strategies."""

    key: str
    name: str
    description: str
    where: str
    """file:line"""


def load_strategy(
    key: str | None,
    *,
    file: Path | None = None,
    overrides: Sequence[tuple[str, str] | Override] = (),
) -> LoadedStrategy:
    """Return the strategy of that key, with its parents merged below it and the overrides above it.

    Without a file it is looked for in ./strategies.yaml, demos/strategies.yaml and the presets, in that
    order. Without a key the file must hold exactly one. A pair `(path, text)` is an override by `--set`.
    Raises StrategyError for whatever is wrong, with all faults of the strategy in one.
    """
    entry = find_entry(key, file)
    findings = Findings()
    tree = _merge(chain_of(entry), findings)
    own_train_file = _text_at(tree, "dataset", "train_file")
    for override in overrides:
        tree = layout.merge(tree, flatten(_read_override(Override(*override)), findings))
    tree = layout.settle_accumulation(tree)
    strategy = _validate(tree, findings.faults)
    raise_faults(findings.faults)
    assert strategy is not None, "a refused strategy without a fault"
    return LoadedStrategy(
        key=entry.key,
        strategy=strategy,
        file=None if entry.is_preset else entry.file,
        origins={path: _origin_of(tree, path) for path, _ in walk_leaves(strategy)},
        own_train_file=own_train_file,
        retired=tuple(findings.retired.values()),
    )


def find_faults(key: str | None = None, *, file: Path | None = None) -> dict[str, list[Fault]]:
    """Return what is wrong with a strategy, or with each of a file or of the presets, by key.

    Raises StrategyError where there is no such strategy, or a file cannot be read as strategies.
    """
    entries = [find_entry(key, file)] if key is not None else list(_all_entries(file).values())
    return {entry.key: _faults_of(entry) for entry in entries}


def _faults_of(entry: Entry) -> list[Fault]:
    findings = Findings()
    try:
        tree = _merge(chain_of(entry), findings)
    except StrategyError as error:
        return [Fault(error.problem, error.where, error.remedy)]
    _validate(layout.settle_accumulation(tree), findings.faults)
    return sort_faults(findings.faults)


def _validate(tree: Node, faults: list[Fault]) -> Strategy | None:
    """Return the strategy that a tree describes, or None; append what is wrong with it."""
    try:
        return Strategy.model_validate(tree.plain())
    except ValidationError as error:
        faults += describe_errors(error, tree)
        return None


def _merge(chain: Sequence[Entry], findings: Findings) -> Node:
    """Return the flat tree of a strategy over those of the ones that it extends."""
    tree = flatten(chain[-1].node, findings)
    for child in reversed(chain[:-1]):
        tree = layout.merge(tree, flatten(child.node, findings))
    return tree


def list_strategies(file: Path | None = None) -> list[StrategySummary]:
    """Return the strategies of a file, or of all the places that are searched, the first of a key only."""
    return [_summarize(entry) for entry in _all_entries(file).values()]


def _summarize(entry: Entry) -> StrategySummary:
    try:
        chain = chain_of(entry)
    except StrategyError:  # listed all the same; `find_faults` tells what is wrong
        chain = [entry]
    name, description = (
        next(filter(None, (_text_at(one.node, key) for one in chain)), "") for key in ("name", "description")
    )
    return StrategySummary(entry.key, name, description, entry.node.origin.where)


def _all_entries(file: Path | None) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for entries in searched_places(file):
        for key, entry in entries.items():
            found.setdefault(key, entry)
    return found


def _read_override(override: Override) -> Node:
    origin = Origin("command line", override.option or f"--set {show_key(override.path)}")
    path = tuple(override.path.split("."))
    if not all(path) or path[0] == "extends":
        raise StrategyError(
            f"{show_key(override.path)} is not the path of a setting",
            where=origin.where,
            remedy="Write it as in training_args.learning_rate.",
        )
    try:
        (override.path + override.text).encode()
    except UnicodeEncodeError:  # bytes of an argument that no text stands for
        raise StrategyError(
            "the value on the command line is not UTF-8 text", where=origin.where, remedy="Write it as UTF-8."
        ) from None
    node = Node(override.text, origin) if override.is_literal else parse_value(override.text, origin)
    return layout.nest(path, node)


def _text_at(tree: Node, *path: str) -> str | None:
    node: Node | None = tree
    for key in path:
        node = node.value.get(key) if node is not None and isinstance(node.value, dict) else None
    return node.value if node is not None and isinstance(node.value, str) else None


def _origin_of(tree: Node, path: str) -> Origin:
    node = tree
    for key in path.split("."):
        if not isinstance(node.value, dict) or key not in node.value:
            return DEFAULT
        node = node.value[key]
    return node.origin
