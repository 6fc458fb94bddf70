"""The error tree: drawn as it is, each error with its exit code and three parts."""

from __future__ import annotations

import re

import pytest

from llamafarm import errors
from llamafarm.errors import LlamaFarmError

_NODE = re.compile(r"^(?P<indent>[│├└─ ]*)(?P<name>\w+Error)\b(?:\s+exit (?P<code>\d+))?")


def drawn_tree() -> dict[str, tuple[str | None, int]]:
    """Return each class in the module's drawing with its parent's name and its exit code."""
    tree: dict[str, tuple[str | None, int]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if node := _NODE.match(line):
            depth = len(node["indent"]) // 4
            del path[depth:]
            parent = path[-1] if path else None
            inherited = tree[parent][1] if parent else 1
            tree[node["name"]] = (parent, int(node["code"] or inherited))
            path.append(node["name"])
    return tree


def all_errors() -> dict[str, type[LlamaFarmError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, LlamaFarmError)
    }


def test_the_drawing_shows_every_error_and_no_other() -> None:
    assert drawn_tree().keys() == all_errors().keys()
    assert len(all_errors()) > 5


@pytest.mark.parametrize("name", all_errors())
def test_an_error_stands_where_it_is_drawn(name: str) -> None:
    parent, exit_code = drawn_tree()[name]
    error = all_errors()[name]
    assert error.exit_code == exit_code
    assert error.__base__ is (all_errors()[parent] if parent else Exception)


def test_exit_codes_tell_the_user_from_the_machine() -> None:
    assert {
        name: error.exit_code for name, error in all_errors().items() if error.__base__ is LlamaFarmError
    } == {
        "InputError": 2,
        "MachineError": 3,
    }


@pytest.mark.parametrize("name", all_errors())
def test_an_error_has_three_parts_and_prints_them_on_three_lines(name: str) -> None:
    error = all_errors()[name]("what", where="there", remedy="this")
    assert str(error).splitlines() == ["what", "there", "this"]
    assert error.as_record() == {
        "error": name,
        "problem": "what",
        "where": "there",
        "remedy": "this",
        "exit_code": drawn_tree()[name][1],
    }
