"""Read YAML into a tree whose every value knows where it was written.

ruamel.yaml parses; the tree is built here from its events, because that is where a key's line, a repeated
key, an alias and the depth are still to be seen. `scalars.py` says what a value is; `layout.py` works on the
trees.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from llamafarm.errors import StrategyError
from llamafarm.strategy.scalars import Scalar, resolve_scalar

MAX_BYTES = 200_000
"""Far above any strategy file; the parser takes up to 4 s for a megabyte even of plain text."""
MAX_VALUES = 5_000
"""Keys count too. The parser takes about 0.1 ms for each: any file is read, or refused, within seconds."""
MAX_DEPTH = 30
_LINE_END = re.compile(r"\r\n?|\n")


@dataclass(frozen=True)
class Origin:
    """Where a value comes from: its kind of source, and the place in it."""

    kind: str
    """default, preset, strategy file or command line."""
    where: str
    """Empty for a default; else file:line, or the option."""

    def __str__(self) -> str:
        """Return both in a line, such as `strategy file demos/strategies.yaml:14`."""
        return f"{self.kind} {self.where}".rstrip()


@dataclass(frozen=True)
class Node:
    """A value and its origin; for a value under a key, the place of the key."""

    value: Scalar | dict[str, Node] | list[Node]
    origin: Origin
    other_name: str = ""
    """What the file calls the setting, where that is not its own name."""

    def plain(self) -> Any:
        """Return the value without origins."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def read_document(path: Path, kind: str, shown_path: str) -> Node:
    """Read a YAML file; origins have the given kind and name the file `shown_path`.

    Raises StrategyError, with file and line, for anything but one plain YAML document.
    """
    try:
        if path.is_dir():
            raise _refusal("the strategy file is a folder", shown_path, "Name a YAML file in it.")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _refusal("the strategy file does not exist", shown_path, "Check its name and folder.") from None
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        raise _refusal(f"the strategy file cannot be read: {reason}", shown_path, "Check the file.") from None
    if len(content) > MAX_BYTES:
        problem = f"the strategy file is larger than {MAX_BYTES // 1000} kB"
        raise _refusal(problem, shown_path, "Name a strategy file; is this one data?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        problem = f"the strategy file is not UTF-8 text (byte {content[fault.start]:#04x})"
        raise _refusal(problem, f"{shown_path}:{line}", "Save it as UTF-8.") from None
    return parse_document(text, kind, shown_path)


def parse_document(text: str, kind: str, shown_path: str) -> Node:
    """Parse YAML text as `read_document` does."""
    builder = _Builder(kind, shown_path)
    try:
        events = YAML(typ="safe", pure=True).parse(text)
        root = builder.build(iter(events))
    except StrategyError:
        raise
    except MarkedYAMLError as fault:
        raise _syntax_fault(text, fault, builder, shown_path) from None
    except ReaderError as fault:  # raised before the first event: the whole text is looked through
        line = len(_LINE_END.split(text[: fault.position]))
        problem = f"the strategy file has the character U+{fault.character:04X}, which no text has"
        raise _refusal(problem, f"{shown_path}:{line}", "Remove it.") from None
    except Exception as fault:
        # A parser fed with any bytes at all: ruamel lets ValueError, IndexError and others through.
        reason = next(iter(str(fault).splitlines()), "it cannot be read")
        problem = f"the strategy file is not YAML: {reason}"
        remedy = "Check it for characters that do not belong in a text file."
        raise _refusal(problem, f"{shown_path}:{builder.line}", remedy) from None
    if root is None:
        raise _refusal("the strategy file is empty", shown_path, "Write a strategy into it.")
    return root


def parse_value(text: str, origin: Origin) -> Node:
    """Read the value of a `--set`: a YAML scalar or flow collection, or else the text as it stands."""
    if "\n" not in text:
        try:
            root = parse_document(f"value: {text}", origin.kind, origin.where)
        except StrategyError:
            return Node(text, origin)
        if isinstance(root.value, dict) and list(root.value) == ["value"]:
            node = root.value["value"]
            # An unquoted text is taken whole: YAML would drop what follows a #.
            is_plain_text = isinstance(node.value, str) and text.lstrip()[:1] not in ("'", '"')
            return Node(text.strip(), origin) if is_plain_text else _with_origin(node, origin)
    return Node(text, origin)


def _with_origin(node: Node, origin: Origin) -> Node:
    if isinstance(node.value, dict):
        return Node({key: _with_origin(child, origin) for key, child in node.value.items()}, origin)
    if isinstance(node.value, list):
        return Node([_with_origin(child, origin) for child in node.value], origin)
    return Node(node.value, origin)


class _Builder:
    """Builds the tree from the parser's events and refuses what a strategy has no use for."""

    def __init__(self, kind: str, shown_path: str) -> None:
        self.line = 1
        self.quote_lines = (0, 0)
        """First and last line of the last quoted text that goes over several."""
        self._num_values = 0
        self._keys = [("the file", 0)]
        """Those that lead to what is read now, with their lines."""
        self._kind = kind
        self._shown_path = shown_path
        self._events: Iterator[Event] = iter(())

    def build(self, events: Iterator[Event]) -> Node | None:
        """Return the root, or None for an empty document; read the events to their end."""
        self._events = events
        root: Node | None = None
        num_documents = 0
        while (event := self._next()) is not None:
            if isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent | AliasEvent):
                root = self._node(event, self._origin(), 1)
            elif isinstance(event, DocumentStartEvent):
                num_documents += 1
                if num_documents > 1:
                    raise self._refuse(
                        "the file holds more than one YAML document",
                        "Remove the line `---` between them, or name one strategy file for each.",
                    )
        is_empty = root is None or root.value is None
        return None if is_empty else root

    def _next(self) -> Event | None:
        event = next(self._events, None)
        if event is not None and event.start_mark is not None:
            self.line = event.start_mark.line + 1
            if isinstance(event, ScalarEvent) and event.style in ("'", '"') and event.end_mark is not None:
                last_line = event.end_mark.line + 1
                self.quote_lines = (self.line, last_line) if last_line > self.line else self.quote_lines
        return event

    def _origin(self) -> Origin:
        return Origin(self._kind, f"{self._shown_path}:{self.line}")

    def _refuse(self, problem: str, remedy: str) -> StrategyError:
        return _refusal(problem, f"{self._shown_path}:{self.line}", remedy)

    def _refuse_tag(self, tag: object) -> StrategyError:
        problem = f"{show_key(self._keys[-1][0])} uses the YAML tag {show_key(str(tag))}; strategies may not"
        return self._refuse(problem, "Remove it.")

    def _count(self) -> None:
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            problem = f"the strategy file has more than {MAX_VALUES} keys and values"
            raise self._refuse(problem, "Name a strategy file; is this one data?")

    def _node(self, event: Event | None, origin: Origin, depth: int) -> Node:
        is_alias, anchor = isinstance(event, AliasEvent), getattr(event, "anchor", None)
        if is_alias or anchor:
            key, name = show_key(self._keys[-1][0]), f"{'*' if is_alias else '&'}{show_key(str(anchor))}"
            raise self._refuse(
                f"{key} uses a YAML alias or anchor ({name}), which strategies may not",
                "Write the values out, or let the strategy `extends:` another.",
            )
        if depth > MAX_DEPTH:
            # The first key of the line is the one that a person knows: the others are part of the nesting.
            first = next((key for key, line in self._keys if line == self.line), self._keys[-1][0])
            problem = f"{show_key(first)} is nested more than {MAX_DEPTH} deep"
            raise self._refuse(problem, "Check brackets and indents.")
        self._count()
        if isinstance(event, ScalarEvent):
            return Node(self._scalar(event), origin)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise self._refuse_tag(tag)
        if isinstance(event, MappingStartEvent):
            return Node(self._mapping(depth), origin)
        return Node(self._sequence(depth), origin)

    def _mapping(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := self._next(), MappingEndEvent):
            if not isinstance(event, ScalarEvent) or event.anchor:
                raise self._refuse("a key is not plain text", "Write keys as words.")
            key, origin = self._checked(str(event.value)), self._origin()
            if key in entries:
                first_line = entries[key].origin.where.rpartition(":")[2]
                raise self._refuse(
                    f"the key {show_key(key)} is there twice, first in line {first_line}",
                    "Remove one of the two.",
                )
            self._count()
            self._keys.append((key, self.line))
            entries[key] = self._node(self._next(), origin, depth + 1)
            self._keys.pop()
        return entries

    def _sequence(self, depth: int) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := self._next(), SequenceEndEvent):
            items.append(self._node(event, self._origin(), depth + 1))
        return items

    def _scalar(self, event: ScalarEvent) -> Scalar:
        text = self._checked(str(event.value))
        tag = getattr(event, "tag", None)
        if tag in (None, "!") and event.implicit[0] and event.style is None:
            return resolve_scalar(text)
        if tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise self._refuse_tag(tag)
        return text

    def _checked(self, text: str) -> str:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise self._refuse("the file has half of a surrogate pair", "Write the character itself.")
        return text


def show_key(key: str) -> str:
    """Return a key as it can stand in a one-line message."""
    shown = key if key and key.isprintable() else repr(key)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _syntax_fault(text: str, fault: MarkedYAMLError, builder: _Builder, shown_path: str) -> StrategyError:
    problem, context = str(fault.problem or fault.context), str(fault.context)
    mark = fault.problem_mark or fault.context_mark
    line = 1 if mark is None else mark.line + 1
    lines = _LINE_END.split(text)
    # What is left open is noticed where something else begins, or at the end of the file: say where it opens.
    if fault.context_mark is not None:
        first_line = fault.context_mark.line + 1
        # A list that is written over several lines ends its first in a bracket or comma.
        is_flow = "flow" in context and lines[first_line - 1].rstrip()[-1:] not in ("[", "{", ",")
        if first_line < line and (is_flow or "quoted scalar" in context or "simple key" in context):
            problem, line = f"{problem} (noticed in line {line})", first_line
    if line == builder.quote_lines[1]:
        problem, line = f"the quoted text that opens here ends in line {line}", builder.quote_lines[0]
    written = lines[line - 1] if line <= len(lines) else ""
    if "\t" in written[: len(written) - len(written.lstrip())]:
        problem = "the file is indented with a tab, and YAML takes only spaces"
        return _refusal(problem, f"{shown_path}:{line}", "Replace the tab by spaces.")
    filled = [number for number, row in enumerate(lines[: line - 1], 1) if row.partition("#")[0].strip()]
    remedy = (
        f"Check indents, colons, quotes and brackets there{f' and in line {filled[-1]}' if filled else ''}."
    )
    return _refusal(f"the strategy file is not YAML: {problem}", f"{shown_path}:{line}", remedy)


def _refusal(problem: str, where: str, remedy: str) -> StrategyError:
    # One line each, whatever a path or a parser's message holds.
    return StrategyError(" ".join(problem.split()), where=" ".join(where.split()), remedy=remedy)
