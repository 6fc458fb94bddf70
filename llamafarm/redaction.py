"""Secrets taken out of what is printed or kept: those of the environment, and users in addresses.

`terminal` asks here for every line, `strict_json` for every text of a record.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

HIDDEN = "…"
# Variables whose names end so hold secrets: HF_TOKEN, WANDB_API_KEY, MLFLOW_TRACKING_PASSWORD.
_SECRET_NAMES = ("TOKEN", "API_KEY", "ACCESS_KEY", "SECRET", "SECRET_KEY", "PASSWORD", "PASSWD")
# A word of a few letters stands in any text.
_SHORTEST_SECRET = 6
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
# Addresses may be written without their scheme, as OLLAMA_HOST and the proxies are.
_USER_OF_VARIABLE = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://)?(?P<user>[^/?#\s]+)@[^@\s]+")


def hide_secrets(text: str, secrets: Sequence[str] | None = None) -> str:
    """Return a text without `secrets`; those that this process's environment holds, unless given."""
    for secret in secrets_of_environment() if secrets is None else secrets:
        text = text.replace(secret, HIDDEN)
    return text


def hide_users(text: str) -> str:
    """Return a text without names and passwords in its addresses."""
    return _USER.sub(f"{HIDDEN}@", text)


def without_users(value: Any) -> Any:
    """Return a record, such as a strategy's settings, without names and passwords in its addresses.

    Texts are looked at wherever they stand in mappings and lists. A text that is cut to be shown is cut
    after this: half an address has no `@` by which it could be told.
    """
    if isinstance(value, Mapping):
        return {key: without_users(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(without_users, value))
    return hide_users(value) if isinstance(value, str) else value


def secrets_of_environment() -> list[str]:
    """Return the values of variables that hold secrets, and who is named in those that hold addresses."""
    found = {secret for name, value in os.environ.items() for secret in _secrets_in(name.upper(), value)}
    # The longest first: one may be a part of another.
    return sorted((one for one in found if len(one) >= _SHORTEST_SECRET), key=lambda one: (-len(one), one))


def _secrets_in(name: str, value: str) -> Iterator[str]:
    if name.endswith(_SECRET_NAMES):
        yield value.strip()
    if "@" in value and (matched := _USER_OF_VARIABLE.fullmatch(value.strip())):
        user, colon, password = matched["user"].partition(":")
        for part in (matched["user"], password if colon else user):
            yield part
            yield unquote(part)
