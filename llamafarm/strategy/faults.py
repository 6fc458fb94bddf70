"""Turn what is wrong with a strategy into sentences: a value that pydantic refused, a key that is not known.

All faults of a strategy are gathered, so that one look at the file mends them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import ValidationError

from llamafarm.errors import StrategyError
from llamafarm.redaction import HIDDEN, hide_users
from llamafarm.strategy.document import Node, Origin, parse_value, show_key
from llamafarm.strategy.schema import Section
from llamafarm.strategy.spelling import section_at, suggest_for_key

_MAX_FURTHER = 8


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, in the three parts of an error."""

    problem: str
    where: str
    remedy: str | Callable[[], str]
    """A function where it takes a search: only the fault that is told in full needs its remedy."""

    def tell_remedy(self) -> str:
        """Return what to try."""
        return self.remedy if isinstance(self.remedy, str) else self.remedy()


def raise_faults(faults: Sequence[Fault]) -> None:
    """Raise one StrategyError for all faults, the first in full; do nothing when there are none."""
    if not faults:
        return
    first, *rest = sort_faults(faults)
    problem = first.problem
    if rest:
        listed = [f"{fault.problem} ({fault.where})" for fault in rest[:_MAX_FURTHER]]
        if len(rest) > _MAX_FURTHER:
            listed.append(f"and {len(rest) - _MAX_FURTHER} after that")
        noun = "fault" if len(rest) == 1 else "faults"
        problem = f"{problem}; {len(rest)} more {noun}: {'; '.join(listed)}"
    raise StrategyError(problem, where=first.where, remedy=first.tell_remedy())


def sort_faults(faults: Sequence[Fault]) -> list[Fault]:
    """Return faults in the order of the file."""
    return sorted(faults, key=_place)


def _place(fault: Fault) -> tuple[str, int]:
    file, _, line = fault.where.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (fault.where, 0)


def unknown_key(path: tuple[str, ...], origin: Origin, also: tuple[str, ...] = ()) -> Fault:
    """Return the fault of a key that nothing reads."""
    shown = ".".join(show_key(part) for part in path)
    return Fault(f"unknown key {shown}", origin.where, lambda: suggest_for_key(path, also))


def show_value(value: Any) -> str:
    """Return a value as it can stand in a one-line message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    shown = hide_users(repr(value))
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"the text {shown}" if isinstance(value, str) else shown


_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a mapping of settings",
    "string_too_short": "text that is not empty",
}
_LIMITS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_PATTERNS = {
    "base_url": "an address that begins with http:// or https://",
    "model_name": "a name of letters, digits and . _ - / :",
    "project": "a name of up to 100 characters without any of / \\ # ? % :",
}
_REMEDIES = {
    "both_halves": "Set one of them to false, or leave both out.",
    "empty_stop": "Remove the empty text.",
    "methods_apart": "Remove one of them.",
    "needs_evaluation": "Set eval_strategy to epoch or steps, or remove the other.",
    "placeholder": 'Write it as in format: "Question: {input}\\nAnswer: {output}".',
    "epochs": "Write num_train_epochs: 3, the default.",
    "files": "Write train_file: rows.jsonl, or train_file: [a.jsonl, {file: b.jsonl, weight: 2}].",
    "trackers": "Write report_to: [tensorboard], and with it or in its place wandb, mlflow or trackio.",
    "target_modules": "Write target_modules: [q_proj, v_proj], or target_modules: all-linear.",
}
"""For the errors that the sections raise themselves; see `PydanticCustomError` there."""


def describe_errors(error: ValidationError, tree: Node) -> list[Fault]:
    """Return a fault for each of pydantic's errors, with the origin of the value in the merged tree."""
    faults = []
    for detail in error.errors(include_url=False):
        path = detail["loc"]
        origin, other_name = _find_value(tree, path)
        if detail["type"] == "extra_forbidden":
            faults.append(unknown_key(tuple(map(str, path)), origin))
            continue
        shown = _show_path(path) + (f" (written as {other_name})" if other_name else "")
        faults.append(_describe_value(detail, path, shown, origin))
    return faults


def _describe_value(
    detail: Mapping[str, Any], path: tuple[str | int, ...], shown: str, origin: Origin
) -> Fault:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    got = f" (got {show_value(value)})"
    names = tuple(part for part in path if isinstance(part, str))
    if kind == "literal_error":
        return _describe_choice(names, shown, value, origin)
    if kind in _REMEDIES:
        message = detail["msg"] + (got if kind in ("epochs", "files", "target_modules", "trackers") else "")
        return Fault(f"{shown} {message}", origin.where, _REMEDIES[kind])
    if kind in _LIMITS:
        words, key = _LIMITS[kind]
        wanted = f"{words} {context[key]:g}" if isinstance(context[key], float) else f"{words} {context[key]}"
    elif kind == "string_pattern_mismatch":
        wanted = _PATTERNS[names[-1]]
        if names[-1] == "base_url":  # with or without a scheme, or with one misspelt
            got = f" (got {show_value(re.sub('.*@', f'{HIDDEN}@', value, flags=re.DOTALL))})"
    else:
        wanted = _TYPES.get(kind, f"valid: {detail['msg']}")
    remedy = _suggest_value(names, wanted)
    if isinstance(value, str) and wanted in ("a number", "a whole number", "true or false"):
        unquoted = parse_value(value, origin).value
        if unquoted is not None and not isinstance(unquoted, str):
            remedy = f"Remove the quotes: {names[-1]}: {value.strip()}"
    return Fault(f"{shown} must be {wanted}{got}", origin.where, remedy)


def _describe_choice(names: tuple[str, ...], shown: str, value: Any, origin: Origin) -> Fault:
    choices = _choices_of(names)
    near = get_close_matches(value.lower(), choices, 1) if isinstance(value, str) else []
    remedy = f"Write {names[-1]}: {near[0]}." if near else _suggest_value(names, "one of these")
    listed = f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return Fault(f"{shown} must be {listed} (got {show_value(value)})", origin.where, remedy)


def _field_of(names: tuple[str, ...]) -> Any:
    section = section_at(names[:-1])
    return None if section is None else section.model_fields.get(names[-1])


def _choices_of(names: tuple[str, ...]) -> list[str]:
    """Return the words of a field's Literal, wherever in its annotation that stands."""
    field = _field_of(names)
    pending, words = [field.annotation if field else None], []
    while pending:
        annotation = pending.pop()
        for argument in get_args(annotation):
            if isinstance(argument, str):
                words.append(argument)
            else:
                pending.append(argument)
    return words


def _suggest_value(names: tuple[str, ...], wanted: str) -> str:
    field = _field_of(names)
    default = None if field is None else field.default
    if default is None or isinstance(default, Section | tuple):
        return f"Leave {names[-1]} out, or give it {wanted if wanted[:2] == 'a ' else 'a value that fits'}."
    return f"Write {names[-1]}: {_write_scalar(default)}, the default, or another value that fits."


def _write_scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return '""' if value == "" else str(value)


def _show_path(path: tuple[str | int, ...]) -> str:
    shown = ""
    for part in path:
        shown += f"[{part}]" if isinstance(part, int) else f".{show_key(part)}" if shown else show_key(part)
    return shown


def _find_value(tree: Node, path: tuple[str | int, ...]) -> tuple[Origin, str]:
    """Return the origin of the value at a path, or of the nearest thing above it, and its other name."""
    node, other_name = tree, ""
    for part in path:
        value = node.value
        children: Mapping[Any, Node] = {}
        if isinstance(value, dict | list):
            children = value if isinstance(value, dict) else dict(enumerate(value))
        if part not in children:
            break
        node = children[part]
        other_name = node.other_name or other_name
    return node.origin, other_name
