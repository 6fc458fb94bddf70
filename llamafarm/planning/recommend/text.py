"""Write recommended settings as a strategy file in which each value is followed by its rule."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from llamafarm.errors import OutputError
from llamafarm.planning.guide.numbers import show_parameters
from llamafarm.planning.guide.settings import Value
from llamafarm.planning.recommend.doubts import doubts
from llamafarm.planning.recommend.facts import Facts, Recommendation, choose_use_case

STRATEGY_KEY = "recommended"
_OF_FINE_TUNER = ("hardware", "base_model", "method", "training_args")
_PLAIN = re.compile(r"[A-Za-z_][\w-]*(?:[./][\w-]+)*|\d{1,6}-\d{1,6}", re.ASCII)
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}

Tree = dict[str, "Tree | Recommendation"]


def write_strategy(
    facts: Facts,
    recommendations: Sequence[Recommendation],
    sources: Mapping[str, str],
    *,
    file: Path | None = None,
) -> str:
    """Return a strategy file with the recommended settings.

    Its head has the command that runs it, what it goes by (`sources`) and what speaks against it.
    """
    sections: Tree = {}
    for one in recommendations:
        *above, last = one.path.split(".")
        node = sections
        for part in above:
            below = node.setdefault(part, {})
            assert isinstance(below, dict)
            node = below
        node[last] = one
    in_fine_tuner = {part: sections.pop(part) for part in _OF_FINE_TUNER if part in sections}
    lines = [_comment(line) for line in _heading(facts, sources, file)]
    lines += [f"{STRATEGY_KEY}:", f"  name: {_quote(_name(facts))}", ""]
    lines += ["  components:", "    fine_tuner:", "      type: pytorch", "      config:"]
    lines += _sections(in_fine_tuner, "        ")
    lines += ["", *_sections(sections, "  ")]
    return "\n".join(lines).rstrip() + "\n"


def save_strategy(path: Path, text: str, *, may_overwrite: bool) -> None:
    """Write a strategy file. Raises `OutputError` if it is there and may not be replaced, or cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if may_overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OutputError(
            f"{path.name!r} is there already",
            where=str(path),
            remedy="Choose another name, or add --overwrite.",
        ) from None
    except (OSError, ValueError) as error:
        raise OutputError(
            f"the strategy cannot be written: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            remedy="Choose another file.",
        ) from error


def _heading(facts: Facts, sources: Mapping[str, str], file: Path | None) -> list[str]:
    case = choose_use_case(facts)
    how = "as asked" if facts.use_case is not None else "by the number of examples"
    lines = ["Recommended by the guide's tables; behind each value stands the rule that it comes from.", ""]
    where = shlex.quote(str(file or "strategies.yaml"))
    lines += [f"  uv run python cli.py train --strategy {STRATEGY_KEY} --strategy-file {where}", ""]
    lines += [f"{what}: {source}" for what, source in sources.items()]
    lines += [f"use case: {case.title}, {how}"]
    return [*lines, *(f"note: {doubt}" for doubt in doubts(facts))]


def _name(facts: Facts) -> str:
    model = facts.model or f"a model of {show_parameters(facts.num_parameters)}"
    return f"{choose_use_case(facts).title} of {model}"


def _sections(sections: Tree, indent: str) -> list[str]:
    lines: list[str] = []
    for number, (name, below) in enumerate(sections.items()):
        lines += [""] if number else []
        lines += _lines({name: below}, indent)
    return lines


def _lines(tree: Tree, indent: str) -> list[str]:
    lines = []
    for name, below in tree.items():
        if isinstance(below, Recommendation):
            lines.append(f"{indent}{name}: {_write(below.value)}  {_comment(below.rule)}")
        else:
            lines += [f"{indent}{name}:", *_lines(below, indent + "  ")]
    return lines


def _comment(text: str) -> str:
    shown = "".join(character if character.isprintable() else " " for character in text)
    return f"# {shown}".rstrip()


def _write(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_write, value))}]"
    is_plain = _PLAIN.fullmatch(value) and value.casefold() not in _WORDS
    return value if is_plain else _quote(value)


def _quote(text: str) -> str:
    """Return a text in double quotes, which YAML reads as JSON does but for characters beyond 16 bits."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(
        character if character.isprintable() else f"\\U{ord(character):08x}" for character in quoted
    )
