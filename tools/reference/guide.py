"""The page of the guide's tables, from the same data that `recommend` and `doctor` go by."""

from __future__ import annotations

from collections.abc import Iterator

from llamafarm.planning import guide
from llamafarm.planning.guide.settings import Value
from llamafarm.strategy.spelling import MOVED
from tools.reference.markdown import table
from tools.reference.strategy import show_value

_HEAD = """# The guide's tables

What `recommend`, `plan` and `doctor` go by. The rows are the guide's own; a test holds each cell equal to it.
"""
_PHASES = {"before": "Before training", "during": "During training", "after": "After training"}


def write_guide() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *_tables(), *_settings(), *_lists()])


def _tables() -> Iterator[str]:
    for one in guide.TABLES:
        yield f"## {one.title}\n"
        yield table(one.columns, (row.cells for row in one.rows)) + "\n"
        if one.columns[-1].endswith("*"):
            yield "\\*for 1,000 examples with LoRA on consumer hardware\n"


def _settings() -> Iterator[str]:
    for group in (*guide.DEVICES, *guide.USE_CASES):
        yield f"## {group.title}\n"
        if group.goal:
            yield f"{group.goal}. `recommend --use-case {group.key}`\n"
        rows = (
            (f"`{MOVED.get(one.path, one.path)}`", f"`{_show(one.value)}`", one.reason)
            for one in group.settings
        )
        yield table(("setting", "value", "why"), rows) + "\n"


def _show(value: Value) -> str:
    return show_value(value).replace("\n", "\\n")


def _lists() -> Iterator[str]:
    yield "## Overfitting indicators\n"
    yield table(("sign", "what it is"), ((one.name, one.sign) for one in guide.OVERFITTING)) + "\n"
    for phase, title in _PHASES.items():
        yield f"## {title}\n"
        yield "\n".join(f"- {one.text}" for one in guide.CHECKLIST if one.phase == phase) + "\n"
    yield "## Environment variables\n"
    rows = ((f"`{one.name}`", one.library, f"`{one.example}`", one.reason) for one in guide.ENVIRONMENT)
    yield table(("variable", "of", "for example", "why"), rows) + "\n"
