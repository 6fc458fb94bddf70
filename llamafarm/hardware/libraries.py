"""What is installed: versions that decide what a run computes, and tools that some strategies need."""

from __future__ import annotations

import json
import os
import platform
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import unquote, urlsplit
from urllib.request import ProxyHandler, build_opener

_TIMEOUT_SECONDS = 1.0
_MOST_BYTES = 4096
# Addresses to listen on, not ones to ask.
_EVERYWHERE = ("0.0.0.0", "[::]")  # noqa: S104


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that is not needed by every strategy. `version` is None where it is not there."""

    name: str
    version: str | None
    purpose: str
    remedy: str

    @property
    def is_there(self) -> bool:
        """Return whether the tool can be used."""
        return self.version is not None


def installed_versions() -> dict[str, str]:
    """Return the versions that decide what a run computes."""
    packages = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def find_tools() -> tuple[Tool, ...]:
    """Look for every optional tool; Ollama is asked over HTTP, with a second's patience."""
    return tuple(Tool(name, find(), purpose, remedy) for name, find, purpose, remedy in _TOOLS)


def ollama_address() -> str:
    """Return where the Ollama server listens: `OLLAMA_HOST` as Ollama itself reads it, or its default."""
    host = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'")
    scheme, found, rest = host.partition("://")
    if not found:
        scheme, rest = "http", host
    default_port = {"http": "80", "https": "443"}.get(scheme, "11434") if found else "11434"
    place, _, path = rest.partition("/")
    user, at, place = place.rpartition("@")
    name, port = _split_port(place)
    if not name or name in _EVERYWHERE:
        name = "127.0.0.1"
    address = f"{scheme}://{user}{at}{name}:{port or default_port}"
    return f"{address}/{path}".rstrip("/") if path else address


def _split_port(place: str) -> tuple[str, str]:
    """Return a host, an IPv6 one in brackets, and its port; empty where it has none."""
    if place.startswith("[") or place.count(":") < 2:
        name, colon, port = place.rpartition(":")
        if colon and not port.endswith("]"):
            return name, port if port.isdecimal() else ""
        return place, ""
    return f"[{place}]", ""


def _find_ollama() -> str | None:
    address = ollama_address()
    if not address.startswith(("http://", "https://")):
        return None
    try:
        # A proxy is for other machines: Ollama's own client never asks one for an address of this machine.
        parts = urlsplit(address)
        is_here = parts.hostname in ("127.0.0.1", "localhost", "::1")
        opener = build_opener(*([ProxyHandler({})] if is_here else []))
        user, at, place = parts.netloc.rpartition("@")
        if at:  # urllib would take it for a part of the host's name
            opener.addheaders = [("Authorization", f"Basic {b64encode(unquote(user).encode()).decode()}")]
        asked = parts._replace(netloc=place).geturl()
        with opener.open(f"{asked}/api/version", timeout=_TIMEOUT_SECONDS) as answer:
            said = json.loads(answer.read(_MOST_BYTES))
    except (OSError, ValueError, HTTPException):  # URLError is an OSError
        return None
    return str(said.get("version", "unknown")) if isinstance(said, dict) else None


def _find_package(name: str) -> Callable[[], str | None]:
    def find() -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return find


_TOOLS: tuple[tuple[str, Callable[[], str | None], str, str], ...] = (
    (
        "bitsandbytes",
        _find_package("bitsandbytes"),
        "method.type: qlora, a base model in 4 bits",
        "Install it: uv sync --extra qlora, or pip install bitsandbytes.",
    ),
    (
        "xllamacpp",
        _find_package("xllamacpp"),
        "the llama.cpp runtime, for GGUF files",
        "Install it: pip install xllamacpp.",
    ),
    (
        "Ollama",
        _find_ollama,
        "export.to_ollama and model_app.type: ollama",
        "Start the Ollama server, or set OLLAMA_HOST to where it listens.",
    ),
)
