"""Bring the shapes that a strategy file may have to one: a tree of sections, each setting in its one place.

A section may stand under `components.fine_tuner.config`, as the guide prints it, or at the strategy's top
level; some settings have a second place (`spelling.MOVED`). Everything here keeps origins. Wrong keys and
values are left for validation to find; only what the flat tree could not show is a fault here.
"""

from __future__ import annotations

import re

from llamafarm.errors import StrategyError
from llamafarm.strategy.document import Node, Origin, show_key
from llamafarm.strategy.faults import Fault, show_value, unknown_key
from llamafarm.strategy.schema import Strategy
from llamafarm.strategy.spelling import MOVED, section_at

_TOP_LEVEL_ONLY = ("name", "description", "model_app")
_FINE_TUNER = ("components", "fine_tuner")
_STRATEGY_KEY = re.compile(r"[^\W_][\w.-]{0,99}")


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
    strategies = root.value
    if "strategies" in root.value:
        for key, node in root.value.items():
            if key not in ("strategies", "version"):
                raise StrategyError(
                    f"unknown key {show_key(key)} beside strategies",
                    where=node.origin.where,
                    remedy="Move it under `strategies:`, or remove it.",
                )
        strategies = _named(root.value["strategies"])
    for key, node in strategies.items():
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
    if strategies and all(key == "components" or key in Strategy.model_fields for key in strategies):
        raise StrategyError(
            f"the file has the section {next(iter(strategies))} where a strategy's name should be",
            where=next(iter(strategies.values())).origin.where,
            remedy="Write a name and a colon above, and indent the rest under it.",
        )
    return strategies


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
            raise StrategyError(
                "a strategy in the list has no name", where=item.origin.where, remedy="Add `name: …` to it."
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


def flatten(strategy: Node, faults: list[Fault]) -> Node:
    """Return a strategy's tree of sections; append what is wrong with its shape to `faults`."""
    flattener = _Flattener(strategy.origin, faults)
    flattener.read_strategy(strategy)
    return flattener.tree


class _Flattener:
    """Puts each setting of one layer (a strategy, or an override) in its place."""

    def __init__(self, origin: Origin, faults: list[Fault]) -> None:
        self.tree = Node({}, origin)
        self._faults = faults
        self._sections: dict[tuple[str, ...], Origin] = {}

    def read_strategy(self, strategy: Node) -> None:
        for key, node in self._entries(strategy, "the strategy").items():
            if key == "components":
                self._read_components(node)
            elif key != "extends":
                self._place((key,), node)

    def _read_components(self, components: Node) -> None:
        for key, node in self._entries(components, "components").items():
            if key == "model_app":
                self._place((key,), node)
            elif key == "fine_tuner":
                self._read_fine_tuner(node)
            else:
                fault = unknown_key(("components", key), node.origin, ("fine_tuner", "model_app"))
                self._faults.append(fault)

    def _read_fine_tuner(self, fine_tuner: Node) -> None:
        for key, node in self._entries(fine_tuner, "components.fine_tuner").items():
            if key == "config":
                self._read_config(node)
            elif key != "type":
                self._faults.append(unknown_key((*_FINE_TUNER, key), node.origin, ("type", "config")))
            elif node.value != "pytorch":
                self._faults.append(
                    Fault(
                        f"components.fine_tuner.type must be pytorch (got {show_value(node.value)})",
                        node.origin.where,
                        "Write type: pytorch.",
                    )
                )

    def _read_config(self, config: Node) -> None:
        for key, node in self._entries(config, "components.fine_tuner.config").items():
            if key in Strategy.model_fields and key not in _TOP_LEVEL_ONLY:
                self._place((key,), node)
            else:
                self._faults.append(unknown_key((*_FINE_TUNER, "config", key), node.origin))

    def _entries(self, node: Node, shown: str) -> dict[str, Node]:
        if node.value is None:  # a heading with nothing below it yet, as in the guide's outline
            return {}
        if isinstance(node.value, dict):
            return node.value
        problem = f"{shown} must be a mapping of settings (got {show_value(node.value)})"
        self._faults.append(Fault(problem, node.origin.where, "Indent its settings below it, or remove it."))
        return {}

    def _place(self, path: tuple[str, ...], node: Node) -> None:
        written = ".".join(path)
        path = tuple(MOVED.get(written, written).split(".")) if written in MOVED else path
        if section_at(path) is None:
            self._put(path, node, written)
            return
        if path == ("base_model",) and isinstance(node.value, str):
            node = Node({"huggingface_id": node}, node.origin)
        entries = self._entries(node, written)
        if not entries:
            return
        if (first := self._sections.get(path)) is not None:
            problem = f"the section {'.'.join(path)} is there twice, first at {first.where}"
            self._faults.append(Fault(problem, node.origin.where, "Move all its settings to one of the two."))
            return
        self._sections[path] = node.origin
        self._reach(path, node.origin)
        for key, child in entries.items():
            self._place((*path, key), child)

    def _put(self, path: tuple[str, ...], node: Node, written: str) -> None:
        parent = self._reach(path[:-1], node.origin)
        if path[-1] in parent:
            first = parent[path[-1]].origin.where
            shown = ".".join(map(show_key, path))
            problem = f"{shown} is there twice, first at {first}"
            if written != shown:
                problem += f" ({written} is another name for it)"
            self._faults.append(Fault(problem, node.origin.where, "Remove one of the two."))
            return
        parent[path[-1]] = node

    def _reach(self, path: tuple[str, ...], origin: Origin) -> dict[str, Node]:
        """Return the mapping at a path, made where it is not there yet."""
        node = self.tree
        for key in path:
            assert isinstance(node.value, dict)  # only sections are on the way, and they are mappings
            node = node.value.setdefault(key, Node({}, origin))
        assert isinstance(node.value, dict)
        return node.value
