"""Every advisory that docs/reliability.md names has its tests, and they are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SECTION = re.compile(r"^## Advisories$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\| (?!advisory|-)(?P<advisory>.+?) \| .+ \| (?P<tests>[^|]+) \|$", re.MULTILINE)


def rows() -> dict[str, list[str]]:
    """Return the tests of each advisory."""
    found = _SECTION.search((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))
    assert found is not None
    return {
        row["advisory"]: re.findall(r"`([^`]+\.py::\w+)`", row["tests"]) for row in _ROW.finditer(found[1])
    }


@cache
def names_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("advisory", rows())
def test_an_advisory_has_tests_that_are_there(advisory: str) -> None:
    named = rows()[advisory]
    assert named
    for place in named:
        file, _, name = place.partition("::")
        assert name.startswith("test_") and name in names_in(ROOT / "tests" / file), place


def test_all_advisories_of_the_field_are_there() -> None:
    listed = " ".join(rows())
    assert len(re.findall(r"CVE-\d{4}-\d+|GHSA-\S+", listed)) >= 30
