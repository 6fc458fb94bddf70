"""What is installed: versions that decide what a run computes, and tools that some strategies need."""

from __future__ import annotations

import json
import os
import platform
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version

_DEFAULT_OLLAMA = "http://127.0.0.1:11434"
_TIMEOUT_SECONDS = 1.0


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
    host = os.environ.get("OLLAMA_HOST", "").strip().rstrip("/")
    if not host:
        return _DEFAULT_OLLAMA
    scheme, found, rest = host.partition("://")
    if not found:
        scheme, rest = "http", host
    rest = rest.replace("0.0.0.0", "127.0.0.1", 1)  # noqa: S104 - an address to listen on, not one to ask
    if rest.startswith(":"):
        rest = f"127.0.0.1{rest}"
    if ":" not in rest.rpartition("]")[2]:
        rest += {"http": ":11434", "https": ":443"}.get(scheme, "")
    return f"{scheme}://{rest}"


def _find_ollama() -> str | None:
    address = ollama_address()
    if not address.startswith(("http://", "https://")):
        return None
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            said = json.load(answer)
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
