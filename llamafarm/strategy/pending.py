"""The settings that this version reads and does not act on yet.

A key that is accepted and ignored in silence is the worst thing that a tool of this kind can do, so each of
these is warned of whenever somebody sets it. A setting leaves this table when code acts on it; `retired.py`
has the keys that never will.
"""

from __future__ import annotations

from collections.abc import Mapping

from llamafarm.strategy.document import Origin

_PENDING: dict[str, str] = {
    "model_app": "answers come from transformers",
}


def pending_settings(origins: Mapping[str, Origin]) -> list[tuple[str, str]]:
    """Return the settings that were chosen and change nothing yet, each with the reason."""
    return [
        (path, reason)
        for path, origin in origins.items()
        if origin.kind != "default"
        for prefix, reason in _PENDING.items()
        if path == prefix or path.startswith(prefix + ".")
    ]
