"""Lists of turns, as OpenAI's files have them (role and content) and as ShareGPT's do (from and value)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llamafarm.data.conversation import Message
from llamafarm.data.reading.bad_row import BadRowError, check_text, shorten, show_keys

# How the tools of the field name who speaks.
_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_call": "function_call",
}  # fmt: skip
_EXTRAS = ("tool_calls", "tool_call_id", "name", "reasoning_content")


def read_turns(turns: Any, key: str) -> tuple[Message, ...]:
    """Return the messages of a list of turns, or of that as JSON text, as a table holds it.

    Raises `BadRowError` for another shape, a role that is not known, and content that is no text.
    """
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            turns = None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRowError(f"{key!r} is not a list of objects", 'Use [{"role": "user", "content": "…"}, …].')
    return tuple(_read_turn(turn) for turn in turns)


def _read_turn(turn: Mapping[str, Any]) -> Message:
    role_key, content_key = ("role", "content") if "role" in turn else ("from", "value")
    if role_key not in turn:
        raise BadRowError(
            f"a turn has the keys {show_keys(turn)}, and none says who speaks",
            'Use {"role": "user", "content": "…"}.',
        )
    named = turn[role_key]
    role = _ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise BadRowError(
            f"a turn of {shorten(str(named), 20)} is none of {', '.join(dict.fromkeys(_ROLES))}",
            "Name the role as one of these.",
        )
    content = _text_of(turn.get(content_key), content_key)
    if role == "function_call":
        return Message("assistant", "", extras={"tool_calls": [_call_of(content)]})
    extras = {key: turn[key] for key in _EXTRAS if turn.get(key) is not None}
    if "tool_calls" in extras:
        extras["tool_calls"] = _read_calls(extras["tool_calls"])
    return Message(role, content, weight=_weight_of(turn), extras=extras or None)


def _text_of(value: Any, key: str) -> str:
    """Return a turn's content: a text, or the texts of its parts together."""
    if value is None:
        return ""
    if isinstance(value, list):
        kinds = {part.get("type") if isinstance(part, dict) else type(part).__name__ for part in value}
        if kinds - {"text"}:
            other = sorted(map(str, kinds - {"text"}))[0]
            raise BadRowError(
                f"a turn holds {shorten(other)}, and only text is trained on", "Leave out such rows."
            )
        value = "".join(str(part.get("text") or "") for part in value)
    return check_text(value, key)


def _weight_of(turn: Mapping[str, Any]) -> float:
    weight = turn.get("weight")
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or weight not in (0, 1):
        raise BadRowError(f"a turn's weight is {shorten(str(weight), 20)}, not 0 or 1", "Write 0 or 1.")
    return float(weight)


def _read_calls(calls: Any) -> list[dict[str, Any]]:
    """Return tool calls with their arguments as objects, which is how chat templates take them."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRowError("'tool_calls' is not a list of objects", "Write them as OpenAI's files do.")
    return [_with_parsed_arguments(call) for call in calls]


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRowError("a tool call names no function", 'Write {"function": {"name": …, "arguments": …}}.')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise BadRowError(
                f"the arguments of a tool call are not JSON: {shorten(arguments)}", "Write a JSON object."
            ) from None
    return {"type": "function", **call, "function": {**function, "arguments": arguments or {}}}


def _call_of(content: str) -> dict[str, Any]:
    """Return the call that a ShareGPT turn of `function_call` holds as JSON text."""
    try:
        call = json.loads(content)
    except ValueError:
        call = None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise BadRowError(
            f"a turn of 'function_call' is no JSON object with a name: {shorten(content)}",
            'Write {"name": "…", "arguments": {…}}.',
        )
    return _with_parsed_arguments({"function": call})
