"""The page of keys that are no settings: retired, refused, and other tools' with what they are here."""

from __future__ import annotations

from collections.abc import Iterator

from llamafarm.strategy.foreign import TOOLS
from llamafarm.strategy.retired import REFUSED, RETIRED, Refused
from llamafarm.strategy.spelling import MOVED
from tools.reference.markdown import table


def write_other_keys() -> str:
    """Return the page."""
    return "\n".join([*_places(), *_retired(), *_refused(), *_foreign()])


def _places() -> Iterator[str]:
    yield "# Keys of other places, times and tools\n"
    yield "The settings themselves are in [strategy.md](strategy.md).\n"
    yield "## Second places\n"
    yield "Places where a file may write a setting as well.\n"
    yield table(("written as", "is"), ((f"`{key}`", f"`{place}`") for key, place in MOVED.items())) + "\n"


def _retired() -> Iterator[str]:
    yield "## Keys that change nothing\n"
    yield "They are accepted, and whoever sets one is told why it changes nothing.\n"
    yield table(("key", "why"), ((f"`{key}`", why) for key, why in RETIRED.items())) + "\n"


def _refused() -> Iterator[str]:
    yield "## Keys that are refused\n"
    yield "They would change something if they were obeyed. A value that asks for nothing passes: null,"
    yield "false, an empty one, or one of the last column.\n"
    columns = ("key", "why", "instead", "passes")
    yield table(columns, (_refusal(key, refused) for key, refused in REFUSED.items())) + "\n"


def _refusal(key: str, refused: Refused) -> tuple[str, str, str, str]:
    passes = ", ".join(
        f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in refused.harmless
    )
    return f"`{key}`", refused.why, refused.remedy, passes


def _foreign() -> Iterator[str]:
    yield "## Keys of other tools\n"
    yield "A strategy may not hold them; the error says what they are here.\n"
    for tool, keys in TOOLS.items():
        yield f"### {tool}\n"
        yield table(("key", "here"), ((f"`{key}`", answer) for key, answer in keys.items())) + "\n"
