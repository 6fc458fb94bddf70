"""Write a strategy as YAML that loads to the same, in the shortest of the shapes that a file may have.

Texts are quoted wherever this tool's reader (`scalars.py`), or an older one in which `no` is false, could
take them for something else.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llamafarm.strategy.loaded import LoadedStrategy
from llamafarm.strategy.scalars import resolve_scalar
from llamafarm.strategy.schema import EpochRange, WeightedFile, walk_leaves

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*([./-][A-Za-z0-9_]+)*|\.{1,2}(/[A-Za-z0-9_.-]+)+")
_WORDS_OF_1_1 = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def write_strategy(loaded: LoadedStrategy) -> str:
    """Return a flat strategy of all settings that somebody chose, under its own key."""
    lines = [f"{write_value(loaded.key)}:"]
    sections: tuple[str, ...] = ()
    for path, value in walk_leaves(loaded.strategy):
        if loaded.origins[path].kind == "default":
            continue
        *names, key = path.split(".")
        num_shared = 0
        while names[: num_shared + 1] == list(sections[: num_shared + 1]) and num_shared < len(names):
            num_shared += 1
        for depth in range(num_shared, len(names)):
            lines.append("  " * (depth + 1) + f"{names[depth]}:")
        sections = tuple(names)
        lines.append("  " * (len(names) + 1) + f"{key}: {write_value(value)}")
    return "\n".join(lines if len(lines) > 1 else [f"{lines[0]} {{}}"]) + "\n"


def write_value(value: Any) -> str:
    """Return a setting's value as it is written in a strategy."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(write_value, value))}]"
    if isinstance(value, str):
        return _write_text(value)
    if isinstance(value, float):
        shown = repr(value)
        # An older reader takes 2e-05 for a text.
        return shown.replace("e", ".0e") if "e" in shown and "." not in shown else shown
    if isinstance(value, WeightedFile):
        file = write_value(value.file)
        return file if value.weight == 1 else f"{{file: {file}, weight: {write_value(value.weight)}}}"
    return str(value) if isinstance(value, EpochRange) else json.dumps(value)


def _write_text(text: str) -> str:
    is_plain = _PLAIN.fullmatch(text) and isinstance(resolve_scalar(text), str)
    if is_plain and text.lower() not in _WORDS_OF_1_1:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)
