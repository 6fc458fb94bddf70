"""Find a strategy, resolve it with its parents and the command line, and say where each setting came from.

`document.py` reads the file, `layout.py` flattens and merges, `schema.py` validates, `faults.py` explains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from llamafarm.errors import StrategyError
from llamafarm.strategy import layout
from llamafarm.strategy.document import Node, Origin, parse_value, read_document, show_key
from llamafarm.strategy.faults import Fault, describe_errors, raise_faults, show_value
from llamafarm.strategy.loaded import LoadedStrategy, resolve_path
from llamafarm.strategy.schema import Strategy, walk_leaves

__all__ = [
    "LoadedStrategy",
    "Origin",
    "Override",
    "StrategySummary",
    "list_strategies",
    "load_strategy",
    "resolve_path",
]

SEARCHED_FILES = (Path("strategies.yaml"), Path("demos/strategies.yaml"))
PRESETS_FOLDER = Path(__file__).parent / "presets"
DEFAULT = Origin("default", "")
MAX_ANCESTORS = 30
"""Strategies that one may extend, each the next."""
_MAX_LISTED = 30


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


class _Entry(NamedTuple):
    """A strategy as it stands in a file, not yet resolved."""

    key: str
    node: Node
    file: Path
    is_preset: bool


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
    entry = _find_entry(key, file)
    faults: list[Fault] = []
    tree = _merge_parents(entry, faults)
    own_train_file = _text_at(tree, "dataset", "train_file")
    for override in overrides:
        layer = _read_override(Override(*override))
        tree = layout.merge(tree, layout.flatten(layer, faults))
    tree = layout.settle_accumulation(tree)
    try:
        strategy = Strategy.model_validate(tree.plain())
    except ValidationError as error:
        raise_faults(faults + describe_errors(error, tree))
        raise AssertionError("a refused strategy without a fault") from error
    raise_faults(faults)
    return LoadedStrategy(
        key=entry.key,
        strategy=strategy,
        file=None if entry.is_preset else entry.file,
        origins={path: _origin_of(tree, path) for path, _ in walk_leaves(strategy)},
        own_train_file=own_train_file,
    )


def list_strategies(file: Path | None = None) -> list[StrategySummary]:
    """Return the strategies of a file, or of all the places that are searched, the first of a key only."""
    found: dict[str, StrategySummary] = {}
    for entries in _searched(file):
        for key, entry in entries.items():
            name, description = _text_at(entry.node, "name"), _text_at(entry.node, "description")
            summary = StrategySummary(key, name or "", description or "", entry.node.origin.where)
            found.setdefault(key, summary)
    return list(found.values())


def _searched(file: Path | None) -> Iterator[dict[str, _Entry]]:
    """Yield the strategies of each place in the order of search; a file is read only when it is reached."""
    if file is not None:
        yield _read_entries(file, is_preset=False)
        return
    for path in SEARCHED_FILES:
        if path.is_file():
            yield _read_entries(path, is_preset=False)
    yield _read_presets()


def _read_presets() -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for path in sorted(PRESETS_FOLDER.glob("*.yaml")):
        entries |= _read_entries(path, is_preset=True)
    return entries


def _read_entries(path: Path, *, is_preset: bool) -> dict[str, _Entry]:
    if is_preset:
        root = read_document(path, "preset", f"presets/{path.name}")
    else:
        root = read_document(path, "strategy file", str(path))
    strategies = layout.split_strategies(root)
    return {key: _Entry(key, node, path, is_preset) for key, node in strategies.items()}


def _find_entry(key: str | None, file: Path | None) -> _Entry:
    names: list[str] = []
    for entries in _searched(file):
        if key in entries:
            return entries[key]
        if key is None and len(entries) == 1:
            return next(iter(entries.values()))
        names += [name for name in entries if name not in names]
        if key is None:
            break
    place = str(file) if file is not None else f"{', '.join(map(str, SEARCHED_FILES))} and the presets"
    available = _list_names(names)
    if key is None:
        raise StrategyError(
            f"no strategy was named, and there is not exactly one: {available}",
            where=place,
            remedy="Name one with --strategy.",
        )
    near = get_close_matches(key, names, 1)
    remedy = f"Did you mean {near[0]}? " if near else ""
    raise StrategyError(
        f"there is no strategy {show_key(key)}", where=place, remedy=f"{remedy}There are: {available}."
    )


def _list_names(names: Sequence[str]) -> str:
    listed = ", ".join(map(show_key, names[:_MAX_LISTED])) or "none"
    return listed if len(names) <= _MAX_LISTED else f"{listed} and {len(names) - _MAX_LISTED} more"


def _merge_parents(entry: _Entry, faults: list[Fault]) -> Node:
    """Return the flat tree of a strategy over that of the one it extends, and so on up."""
    chain = [entry]

    @cache
    def read_places(file: Path, is_preset: bool) -> tuple[dict[str, _Entry], dict[str, _Entry]]:
        return _read_entries(file, is_preset=is_preset), _read_presets()

    while (parent := _parent_of(chain[-1], read_places)) is not None:
        if any((parent.file, parent.key) == (child.file, child.key) for child in chain):
            names = " -> ".join(show_key(child.key) for child in (*chain, parent))
            raise StrategyError(
                f"strategies extend each other in a circle: {names}",
                where=_extends(chain[-1]).origin.where,
                remedy="Remove one `extends:` of the circle.",
            )
        chain.append(parent)
        if len(chain) > MAX_ANCESTORS + 1:
            raise StrategyError(
                f"{show_key(entry.key)} extends strategies over more than {MAX_ANCESTORS} steps",
                where=_extends(entry).origin.where,
                remedy="Let it extend a strategy nearer to the end of that chain.",
            )
    tree = layout.flatten(chain[-1].node, faults)
    for child in reversed(chain[:-1]):
        tree = layout.merge(tree, layout.flatten(child.node, faults))
    return tree


def _extends(entry: _Entry) -> Node:
    value = entry.node.value
    return value.get("extends", Node(None, entry.node.origin)) if isinstance(value, dict) else entry.node


def _parent_of(
    entry: _Entry, read_places: Callable[[Path, bool], Sequence[dict[str, _Entry]]]
) -> _Entry | None:
    """Return the strategy that `extends:` names: one of the same file, else a preset."""
    named = _extends(entry)
    if named.value is None:
        return None
    if not isinstance(named.value, str):
        raise StrategyError(
            f"extends must be the name of a strategy (got {show_value(named.value)})",
            where=named.origin.where,
            remedy="Write one name.",
        )
    names: list[str] = []
    for entries in read_places(entry.file, entry.is_preset):
        if named.value in entries:
            return entries[named.value]
        names += entries
    near = get_close_matches(named.value, names, 1)
    raise StrategyError(
        f"extends names the strategy {show_key(named.value)}, which is not there",
        where=named.origin.where,
        remedy=f"Did you mean {near[0]}?" if near else f"There are: {_list_names(names)}.",
    )


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
