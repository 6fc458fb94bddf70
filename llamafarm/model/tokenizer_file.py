"""A `tokenizer.json` looked at before its loader opens it: what would take it for ever, or all memory.

Its patterns are run by Oniguruma, which gives up after 10 million steps at one place of a text, refuses
counts above 100,000, and expands none of them: these it need not be kept from. It was seen to be lost in
calls of groups, which are compiled anew each time (25 groups that call the next one twice take 2 s, 40 a
day), and memory is asked for in one piece, whose lack ends the process without a word.
"""

from __future__ import annotations

import binascii
import math
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llamafarm.model.files import read_object, refused

# Others than tokenizer.json are for versions of the loader, which takes the one that fits.
_TOKENIZER_FILES = "tokenizer*.json"
# Those in use have some ten steps, with patterns of some hundred signs.
_MOST_STEPS, _MOST_PATTERN = 100, 10_000
_GROUP_CALL = re.compile(r"\\g[<']")
# How many signs become of one: those in use stay below 100, which a map of Unicode's NFKC comes near to.
_MOST_GROWTH = 1000
_MOST_PADDING = 2**20
_BEFORE_THE_MODEL, _AFTER_THE_MODEL = ("normalizer", "pre_tokenizer"), ("post_processor", "decoder")


def check_tokenizer(folder: Path) -> None:
    """Raise `ModelError` for a `tokenizer.json` that no loader should be given: see the module."""
    for path in sorted(folder.glob(_TOKENIZER_FILES)):
        _check(path, read_object(path))


def _check(path: Path, tokenizer: Mapping[str, Any]) -> None:
    for parts in (_BEFORE_THE_MODEL, _AFTER_THE_MODEL):
        steps = [step for part in parts for step in _steps_in(tokenizer.get(part))]
        if len(steps) > _MOST_STEPS:
            raise refused(path, f"a text would go through {len(steps)} steps")
        for pattern in map(_pattern_of, steps):
            if len(pattern) > _MOST_PATTERN:
                raise refused(path, f"a pattern has {len(pattern)} signs")
            if _GROUP_CALL.search(pattern):
                raise refused(path, f"the pattern {pattern[:80]!r} calls groups, which may take for ever")
        if any(map(_is_beyond_its_end, steps)):
            raise refused(path, "a map of characters claims more than it has")
        if (growth := math.prod(map(_growth_in, steps))) > _MOST_GROWTH:
            raise refused(path, f"it would make {growth:.2g} signs of one")
    if (length := _padding_of(tokenizer)) > _MOST_PADDING:
        raise refused(path, f"it would make every text {length} tokens long")


def _steps_in(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a part, those inside of others too."""
    waiting = [part]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if isinstance(one.get("type"), str):
                yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _pattern_of(step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern")
    return str(pattern.get("Regex", "")) if isinstance(pattern, dict) else ""


def _growth_in(step: Mapping[str, Any]) -> int:
    """Return how many signs a step makes of one, at most."""
    if step["type"] == "ByteLevel":
        return 2
    if step["type"] == "Prepend":
        return 1 + len(str(step.get("prepend", "")))
    if step["type"] == "Replace":
        pattern = step.get("pattern")
        # Others match where there is nothing, too, and leave the sign beside it.
        takes_a_sign = isinstance(pattern, dict) and bool(pattern.get("String"))
        return max(1, len(str(step.get("content", ""))) + (not takes_a_sign))
    size, rest = _character_map(step)
    return max(1, *(len(word.decode("utf-8", "replace")) for word in rest[size:].split(b"\0")))


def _is_beyond_its_end(step: Mapping[str, Any]) -> bool:
    size, rest = _character_map(step)
    return size > len(rest)


def _character_map(step: Mapping[str, Any]) -> tuple[int, bytes]:
    """Return how many bytes the index of SentencePiece's map of characters claims, and all that follows.

    That is the index, and the texts that characters become, with a zero behind each.
    """
    try:
        content = b64decode(step.get("precompiled_charsmap") or "")
    except (TypeError, ValueError, binascii.Error):
        return 0, b""
    return int.from_bytes(content[:4], "little"), content[4:]


def _padding_of(tokenizer: Mapping[str, Any]) -> int:
    """Return to how many tokens a text is filled up, or a multiple of how many."""
    padding = tokenizer.get("padding")
    if not isinstance(padding, dict):
        return 0
    strategy = padding.get("strategy")
    lengths = [padding.get("pad_to_multiple_of"), strategy.get("Fixed") if isinstance(strategy, dict) else 0]
    return max(length if isinstance(length, int) else 0 for length in lengths)
