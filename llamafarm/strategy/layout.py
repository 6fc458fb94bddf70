"""Take a strategy file apart into strategies, and lay one tree of settings over another.

`flatten.py` brings each strategy to a tree of sections; `load.py` lays parents below and overrides above.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from llamafarm.errors import StrategyError
from llamafarm.strategy.document import Node, show_key
from llamafarm.strategy.faults import show_value
from llamafarm.strategy.foreign import TOOLS
from llamafarm.strategy.schema import Strategy
from llamafarm.strategy.spelling import recognise_tool, section_at

_STRATEGY_KEY = re.compile(r"[^\W_][\w.-]{0,99}")
VERSIONS = ("1", "1.0", "2", "2.0")
_MAX_TRANSLATIONS = 12


def split_strategies(root: Node) -> dict[str, Node]:
    """Return the strategies of a file by key: at its top level, or under `strategies:` as mapping or list.

    Raises StrategyError for a file of another shape.
    """
    if not isinstance(root.value, dict):
        raise StrategyError(
            f"a strategy file must be a mapping of strategies (it is {show_value(root.value)})",
            where=root.origin.where,
            remedy="Write a name, a colon, and below it, indented, the strategy.",
        )
    strategies = dict(root.value)
    if "version" in strategies and not isinstance(strategies["version"].value, dict):
        _check_version(strategies.pop("version"))
    if "strategies" in strategies:
        listed = strategies.pop("strategies")
        for key, node in strategies.items():
            raise StrategyError(
                f"unknown key {show_key(key)} beside strategies",
                where=node.origin.where,
                remedy="Move it under `strategies:`, or remove it.",
            )
        strategies = _named(listed)
    else:
        _refuse_foreign(strategies)
    for key, node in strategies.items():
        _check_strategy(key, node)
    if strategies and all(key == "components" or key in Strategy.model_fields for key in strategies):
        raise StrategyError(
            f"the file has the section {next(iter(strategies))} where a strategy's name should be",
            where=next(iter(strategies.values())).origin.where,
            remedy="Write a name and a colon above, and indent the rest under it.",
        )
    return strategies


def _check_version(node: Node) -> None:
    if str(node.value) not in VERSIONS:
        raise StrategyError(
            f"the version of the strategy language is not known (it is {show_value(node.value)})",
            where=node.origin.where,
            remedy=f"Remove the line, or write one that is known: {', '.join(VERSIONS)}.",
        )


def _check_strategy(key: str, node: Node) -> None:
    if not _STRATEGY_KEY.fullmatch(key):  # it names the run's folder too
        raise StrategyError(
            f"{show_key(key)} cannot be the name of a strategy",
            where=node.origin.where,
            remedy="Use letters, digits and _ - . in it, and begin with a letter or a digit.",
        )
    if not isinstance(node.value, dict):
        is_section = section_at((key,)) is not None or key in Strategy.model_fields
        remedy = "Indent the settings of a strategy under its name."
        raise StrategyError(
            f"the strategy {show_key(key)} must be a mapping (it is {show_value(node.value)})",
            where=node.origin.where,
            remedy=f"Put this file's content under a strategy's name. {remedy}" if is_section else remedy,
        )


def _refuse_foreign(entries: dict[str, Node]) -> None:
    """Raise the error of another tool's configuration: flat keys of that tool, and values beside them."""
    strangers = [key for key in entries if key not in Strategy.model_fields]
    tool = recognise_tool(strangers)
    if not tool or all(isinstance(entries[key].value, dict) for key in strangers):
        return
    known = [key for key in entries if key in TOOLS[tool]]
    listed = [f"{key}: {TOOLS[tool][key].rstrip(',')}" for key in known[:_MAX_TRANSLATIONS]]
    raise StrategyError(
        f"this is a configuration of {tool} ({len(known)} of its {len(entries)} keys are known), "
        "not a strategy file",
        where=entries[known[0]].origin.where,
        remedy=f"Write a strategy's name, and its sections below it. Here, {'; '.join(listed)}.",
    )


def _named(listed: Node) -> dict[str, Node]:
    if isinstance(listed.value, dict):
        return listed.value
    if not isinstance(listed.value, list):
        raise StrategyError(
            f"strategies must be a mapping or a list (it is {show_value(listed.value)})",
            where=listed.origin.where,
            remedy="Write a strategy's name, a colon, and below it, indented, the strategy.",
        )
    strategies: dict[str, Node] = {}
    for item in listed.value:
        name = item.value.get("name") if isinstance(item.value, dict) else None
        if name is None or not isinstance(name.value, str) or not name.value:
            misspelt = _key_like_name(item.value) if isinstance(item.value, dict) else None
            beside = "" if misspelt is None else f", but the key {show_key(misspelt)}"
            raise StrategyError(
                f"a strategy in the list has no name{beside}",
                where=item.origin.where,
                remedy="Add `name: …` to it.",
            )
        if name.value in strategies:
            first_line = strategies[name.value].origin.where.rpartition(":")[2]
            raise StrategyError(
                f"the strategy {show_key(name.value)} is there twice, first in line {first_line}",
                where=name.origin.where,
                remedy="Rename or remove one of the two.",
            )
        strategies[name.value] = item
    return strategies


def _key_like_name(keys: Iterable[str]) -> str | None:
    by_lower_case = {key.casefold(): key for key in keys}
    return next((by_lower_case[key] for key in get_close_matches("name", by_lower_case, n=1)), None)


def nest(path: tuple[str, ...], node: Node) -> Node:
    """Return a tree with a single value at a path, as an override is."""
    for key in reversed(path):
        node = Node({key: node}, node.origin)
    return node


def merge(below: Node, above: Node) -> Node:
    """Return one tree over another: mappings key by key, everything else replaced."""
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, above.origin)


def settle_accumulation(tree: Node) -> Node:
    """Let `hardware.optimization.gradient_accumulation_steps` hold where `training_args` has none.

    So `training_args.gradient_accumulation_steps` is always the number in use.
    """
    node: Node | None = tree
    for name in ("hardware", "optimization", "gradient_accumulation_steps"):
        node = node.value.get(name) if node is not None and isinstance(node.value, dict) else None
    if node is None or node.value is None:
        return tree
    return merge(nest(("training_args", "gradient_accumulation_steps"), node), tree)
