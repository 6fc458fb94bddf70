"""Bring the shapes that a strategy may have to one: a tree of sections, each setting in its one place.

A section may stand under `components.fine_tuner.config`, as the guide prints it, or at the strategy's top
level; some settings have a second place (`spelling.MOVED`), some keys are no settings any more
(`retired.py`). Everything here keeps origins. Wrong keys and values are left for validation to find; only
what the flat tree could not show is a fault here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llamafarm.strategy.document import Node, Origin, show_key
from llamafarm.strategy.faults import Fault, show_value, unknown_key
from llamafarm.strategy.retired import Refused, Retired, answer_for, is_harmless, is_heading
from llamafarm.strategy.schema import Strategy
from llamafarm.strategy.spelling import MOVED, is_moved_heading, section_at

TOP_LEVEL_ONLY = ("name", "description", "model_app")
FINE_TUNER = ("components", "fine_tuner")
CONFIG = (*FINE_TUNER, "config")

_FORMAT = ("prompt_template", "format")
_ELLIPSES = ("...", "…")
_NOT_WRITTEN_YET = "an ellipsis is a template that is not written yet, so that the model's own is used"
_AUTO_METHOD = ("type", "r", "alpha", "dropout")
_TUNERS = {
    "llamafactory": "Write type: pytorch; the keys of config mean the same.",
    "custom": "Write type: pytorch; code of your own is not run.",
}


@dataclass
class Findings:
    """What was noticed on the way to a strategy."""

    faults: list[Fault] = field(default_factory=list)
    retired: dict[str, Retired] = field(default_factory=dict)
    """By path; a strategy's own over its parent's."""


def flatten(strategy: Node, findings: Findings) -> Node:
    """Return a strategy's tree of sections; add what is wrong with its shape, or retired, to findings."""
    flattener = _Flattener(strategy.origin, findings)
    flattener.read_strategy(strategy)
    return flattener.tree


class _Flattener:
    """Puts each setting of one layer (a strategy, or an override) in its place."""

    def __init__(self, origin: Origin, findings: Findings) -> None:
        self.tree = Node({}, origin)
        self._findings = findings

    def read_strategy(self, strategy: Node) -> None:
        for key, node in self._entries(strategy, "the strategy").items():
            if key == "components":
                self._read_components(node)
            elif key != "extends":
                self._place((key,), (key,), node)

    def _read_components(self, components: Node) -> None:
        for key, node in self._entries(components, "components").items():
            path = ("components", key)
            if key == "model_app":
                self._place((key,), (key,), node)
            elif key == "fine_tuner":
                self._read_fine_tuner(node)
            elif _is_known(path):
                self._place(path, path, node)
            else:
                self._add(unknown_key(path, node.origin, ("fine_tuner", "model_app")))

    def _read_fine_tuner(self, fine_tuner: Node) -> None:
        for key, node in self._entries(fine_tuner, ".".join(FINE_TUNER)).items():
            if key == "config":
                self._read_config(node)
            elif key != "type":
                self._add(unknown_key((*FINE_TUNER, key), node.origin, ("type", "config")))
            elif node.value != "pytorch":
                problem = f"components.fine_tuner.type must be pytorch (got {show_value(node.value)})"
                self._add(
                    Fault(problem, node.origin.where, _TUNERS.get(str(node.value), "Write type: pytorch."))
                )

    def _read_config(self, config: Node) -> None:
        for key, node in self._entries(config, ".".join(CONFIG)).items():
            if key not in TOP_LEVEL_ONLY and (key in Strategy.model_fields or _is_known((key,))):
                self._place((key,), (key,), node)
            else:
                self._add(unknown_key((*CONFIG, key), node.origin))

    def _add(self, fault: Fault) -> None:
        self._findings.faults.append(fault)

    def _entries(self, node: Node, shown: str) -> dict[str, Node]:
        if node.value is None:  # a heading with nothing below it yet, as in the guide's outline
            return {}
        if isinstance(node.value, dict):
            return node.value
        problem = f"{shown} must be a mapping of settings (got {show_value(node.value)})"
        self._add(Fault(problem, node.origin.where, "Indent its settings below it, or remove it."))
        return {}

    def _place(self, written: tuple[str, ...], path: tuple[str, ...], node: Node) -> None:
        """Put what stands at `written`, which is `path` unless it has another place; both lead there."""
        shown, usual = ".".join(written), ".".join(path)
        if (answer := answer_for(shown) or answer_for(usual)) is not None:
            self._answer(shown, answer, node)
            return
        path = tuple((MOVED.get(shown) or MOVED.get(usual) or usual).split("."))
        is_section = section_at(path) is not None
        if not is_section and not _is_heading(shown):
            self._put(path, node, written)
            return
        if is_section:
            self._reach(path, node.origin)
        for key, child in self._entries(_expand(path, node), shown).items():
            self._place((*written, key), (*path, key), child)

    def _answer(self, shown: str, answer: str | Refused, node: Node) -> None:
        if isinstance(answer, str) or is_harmless(answer, node):
            why = answer if isinstance(answer, str) else answer.why
            self._findings.retired[shown] = Retired(shown, why, node.origin)
            return
        problem = f"{shown} has no place here: {answer.why} (got {show_value(node.plain())})"
        self._add(Fault(problem, node.origin.where, answer.remedy))

    def _put(self, path: tuple[str, ...], node: Node, written: tuple[str, ...]) -> None:
        if section_at(path[:-1]) is None:
            self._add(unknown_key(written, node.origin))
            return
        if path == _FORMAT and node.value in _ELLIPSES:
            self._answer(".".join(written), _NOT_WRITTEN_YET, node)
            node = Node(None, node.origin)
        parent = self._reach(path[:-1], node.origin)
        if path[-1] in parent:
            first = parent[path[-1]].origin.where
            shown, other = ".".join(map(show_key, path)), ".".join(map(show_key, written))
            problem = f"{shown} is there twice, first at {first}"
            if other != shown:
                problem += f" ({other} is another name for it)"
            self._add(Fault(problem, node.origin.where, "Remove one of the two."))
            return
        parent[path[-1]] = node if written[-1] == path[-1] else replace(node, other_name=".".join(written))

    def _reach(self, path: tuple[str, ...], origin: Origin) -> dict[str, Node]:
        """Return the mapping at a path, made where it is not there yet."""
        node = self.tree
        for key in path:
            assert isinstance(node.value, dict)  # only sections are on the way, and they are mappings
            node = node.value.setdefault(key, Node({}, origin))
        assert isinstance(node.value, dict)
        return node.value


def _is_heading(shown: str) -> bool:
    return is_heading(shown) or is_moved_heading(shown)


def _is_known(path: tuple[str, ...]) -> bool:
    shown = ".".join(path)
    return shown in MOVED or _is_heading(shown) or answer_for(shown) is not None


def _expand(path: tuple[str, ...], node: Node) -> Node:
    """Return a section that is written as a single word as the mapping that it is short for."""
    if not isinstance(node.value, str):
        return node
    if path == ("base_model",):
        return Node({"huggingface_id": node}, node.origin)
    if path == ("method",):
        keys = _AUTO_METHOD if node.value == "auto" else ("type",)
        return Node(dict.fromkeys(keys, node), node.origin)
    return node
