"""Find the strategies that there are: in files, in the presets of the package, and those that one extends.

`document.py` reads a file and `layout.py` takes it apart; `load.py` makes one of what is found here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import NamedTuple

from llamafarm.errors import StrategyError
from llamafarm.strategy.document import Node, read_document, show_key
from llamafarm.strategy.faults import show_value
from llamafarm.strategy.layout import split_strategies

SEARCHED_FILES = (Path("strategies.yaml"), Path("demos/strategies.yaml"))
PRESETS_FOLDER = Path(__file__).parent / "presets"
MAX_ANCESTORS = 30
"""Strategies that one may extend, each the next."""
_MAX_LISTED = 30


class Entry(NamedTuple):
    """A strategy as it stands in a file, not yet resolved."""

    key: str
    node: Node
    file: Path
    is_preset: bool
    siblings: Mapping[str, Entry]
    """All strategies of its file, itself among them."""


def searched_places(file: Path | None) -> Iterator[dict[str, Entry]]:
    """Yield the strategies of each place in the order of search; a file is read only when it is reached."""
    if file is not None:
        yield _read_entries(file, is_preset=False)
        return
    for path in SEARCHED_FILES:
        if path.is_file():
            yield _read_entries(path, is_preset=False)
    yield _read_presets()


def _read_presets() -> dict[str, Entry]:
    return _read_folder(PRESETS_FOLDER)


@cache
def _read_folder(folder: Path) -> dict[str, Entry]:  # the package's own files do not change under us
    entries: dict[str, Entry] = {}
    for path in sorted(folder.glob("*.yaml")):
        entries |= _read_entries(path, is_preset=True)
    return entries


def _read_entries(path: Path, *, is_preset: bool) -> dict[str, Entry]:
    if is_preset:
        root = read_document(path, "preset", f"presets/{path.name}")
    else:
        root = read_document(path, "strategy file", str(path))
    entries: dict[str, Entry] = {}
    for key, node in split_strategies(root).items():
        entries[key] = Entry(key, node, path, is_preset, entries)
    return entries


def find_entry(key: str | None, file: Path | None) -> Entry:
    """Return the first strategy of that key; without one, the only strategy of the first place."""
    names: list[str] = []
    for entries in searched_places(file):
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


def chain_of(entry: Entry) -> list[Entry]:
    """Return a strategy, the one that it extends, and so on up. Raises StrategyError for a broken chain."""
    chain = [entry]
    while (parent := _parent_of(chain[-1])) is not None:
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
    return chain


def _extends(entry: Entry) -> Node:
    value = entry.node.value
    return value.get("extends", Node(None, entry.node.origin)) if isinstance(value, dict) else entry.node


def _parent_of(entry: Entry) -> Entry | None:
    """Return the strategy that `extends:` names: another one of the same file, else a preset.

    So a strategy may extend the preset of its own name; where there is none, it extends itself.
    """
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
    presets = _read_presets()
    is_own_name = named.value == entry.key and not entry.is_preset
    for entries in (presets, entry.siblings) if is_own_name else (entry.siblings, presets):
        if named.value in entries:
            return entries[named.value]
        names += entries
    near = get_close_matches(named.value, names, 1)
    raise StrategyError(
        f"extends names the strategy {show_key(named.value)}, which is not there",
        where=named.origin.where,
        remedy=f"Did you mean {near[0]}?" if near else f"There are: {_list_names(names)}.",
    )
