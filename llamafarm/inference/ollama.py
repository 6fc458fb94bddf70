"""Ollama's HTTP API: the one place that speaks to it.

Written from its documentation (docs/api.md of ollama/ollama): blobs by digest, then `create`, `show` to see
what arrived, `push`, and `chat` for answers. `OLLAMA_HOST` is read as Ollama's own tools read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx

from llamafarm.errors import InputError, MachineError
from llamafarm.hardware.libraries import ollama_address
from llamafarm.redaction import hide_users

# The first version whose `create` takes files by digest and has no Modelfile.
_OLDEST = (0, 5, 5)
_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 600.0
_UPLOAD_BYTES = 2**20
# [host/][namespace/]model[:tag], in the characters that Ollama allows in each.
_NAME = re.compile(
    r"(?:(?P<host>[A-Za-z0-9_][A-Za-z0-9._:-]{0,349})/)?"
    r"(?:(?P<namespace>[A-Za-z0-9_][A-Za-z0-9_-]{0,79})/)?"
    r"(?P<model>[A-Za-z0-9_][A-Za-z0-9._-]{0,79})"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,79}))?"
)


def check_name(name: str) -> str:
    """Return a model's name if Ollama takes it. Raises `InputError` if it does not."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InputError(
            f"{name!r} is not a name that Ollama takes",
            where="--model-name",
            remedy="Use letters, digits, '.', '_' and '-', as in medical-llama3.2 or me/medical:v2.",
        )
    return name


def address_of(configured: str | None) -> str:
    """Return where Ollama is: what is configured, `OLLAMA_HOST`, or its default.

    Raises `InputError` for what is no address.
    """
    address = configured.rstrip("/") if configured else ollama_address()
    try:
        parts = urlsplit(address)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that are none
        is_one = False
    if not is_one:
        raise InputError(
            f"{hide_users(address)!r} is not the address of a server",
            where="model_app.config.base_url" if configured else "OLLAMA_HOST",
            remedy="Write it as http://127.0.0.1:11434.",
        )
    return address


@dataclass(frozen=True, slots=True)
class Progress:
    """How far something has come: its status in Ollama's words, and bytes where it says them."""

    status: str
    num_done: int = 0
    num_total: int = 0


class Ollama:
    """A server of Ollama. Every method raises `MachineError` if it cannot be reached or does not do it."""

    def __init__(self, address: str | None = None, *, answer_seconds: float = _ANSWER_SECONDS) -> None:
        found = address_of(address)
        # Who is named in it is for the server, and for nobody who reads what we say.
        self.address = _without_user(found)
        timeout = httpx.Timeout(answer_seconds, connect=_CONNECT_SECONDS)
        # A proxy is for other machines.
        is_here = urlsplit(self.address).hostname in ("127.0.0.1", "localhost", "::1")
        self._client = httpx.Client(base_url=found, timeout=timeout, trust_env=not is_here)

    def is_there(self) -> bool:
        """Return whether anything answers at the address."""
        try:
            self._client.get("/")
        except httpx.HTTPError:
            return False
        return True

    def check(self) -> str:
        """Return the server's version. Raises `MachineError` if it is no Ollama, or too old."""
        answer = self._send("GET", "/api/version")
        try:
            version = str(answer.json()["version"])
        except (ValueError, KeyError, TypeError):
            raise MachineError(
                f"what answers at {self.address} is not Ollama",
                where="OLLAMA_HOST",
                remedy="Set OLLAMA_HOST to Ollama's address, and check which program uses that port.",
            ) from None
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        # Builds of its own makers say 0.0.0.
        if (0, 0, 0) < numbers < _OLDEST:
            raise MachineError(
                f"Ollama {version} at {self.address} cannot create models from files",
                where="Ollama",
                remedy=f"Update Ollama to {'.'.join(map(str, _OLDEST))} or newer.",
            )
        return version

    def upload(self, path: Path, digest: str, on_progress: Callable[[Progress], None]) -> None:
        """Bring a file to the server, unless it has it. `digest` is `sha256:` and its hash in hex."""
        found = self._send("HEAD", f"/api/blobs/{digest}", accepted=(200, 404))
        total = path.stat().st_size
        if found.status_code == httpx.codes.OK:
            on_progress(Progress("already there", total, total))
            return

        def pieces() -> Iterator[bytes]:
            num_done = 0
            with path.open("rb") as file:
                while piece := file.read(_UPLOAD_BYTES):
                    yield piece
                    num_done += len(piece)
                    on_progress(Progress("uploading", num_done, total))

        self._send(
            "POST",
            f"/api/blobs/{digest}",
            accepted=(200, 201),
            content=pieces(),
            headers={"Content-Length": str(total), "Content-Type": "application/octet-stream"},
        )

    def create(self, name: str, files: Mapping[str, str], settings: Mapping[str, Any]) -> Iterator[Progress]:
        """Create a model from uploaded files (name to digest), and yield how far it has come.

        `settings` may have template, system, parameters, license.
        """
        yield from self._follow("/api/create", {"model": name, "files": dict(files), **settings})

    def push(self, name: str) -> Iterator[Progress]:
        """Bring a model to the registry that its name says, and yield how far it has come."""
        yield from self._follow("/api/push", {"model": name})

    def show(self, name: str) -> dict[str, Any]:
        """Return what the server knows of a model."""
        found: dict[str, Any] = self._send("POST", "/api/show", json={"model": name}).json()
        return found

    def names(self) -> list[str]:
        """Return the names of the models that the server has."""
        return [str(model["name"]) for model in self._send("GET", "/api/tags").json()["models"]]

    def chat(
        self, name: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Yield the pieces of an answer, the last of which is `done`."""
        yield from self._lines(
            "/api/chat", {"model": name, "messages": list(messages), "options": dict(options)}
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _follow(self, path: str, content: Mapping[str, Any]) -> Iterator[Progress]:
        last = ""
        for line in self._lines(path, content):
            last = str(line.get("status", ""))
            yield Progress(last, int(line.get("completed") or 0), int(line.get("total") or 0))
        if last != "success":
            raise self._refused(path, f"it ended at {last!r} and not with success")

    def _lines(self, path: str, content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects of a streamed answer; an error among them is raised."""
        with (
            self._explained(path),
            self._client.stream("POST", path, json={**content, "stream": True}) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                answer.read()
                raise self._refused(path, _message_of(answer))
            for text in answer.iter_lines():
                if not text.strip():
                    continue
                try:
                    line = json.loads(text)
                except ValueError:
                    raise self._refused(path, f"it answered {text[:80]!r}") from None
                if not isinstance(line, dict):
                    raise self._refused(path, f"it answered {text[:80]!r}")
                if "error" in line:
                    raise self._refused(path, str(line["error"]))
                yield line

    def _send(
        self, method: str, path: str, *, accepted: Sequence[int] = (200,), **options: Any
    ) -> httpx.Response:
        with self._explained(path):
            answer = self._client.request(method, path, **options)
        if answer.status_code not in accepted:
            raise self._refused(path, _message_of(answer))
        return answer

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        """Make an error of the connection one that says what to do."""
        try:
            yield
        except httpx.ConnectError:
            raise MachineError(
                f"nothing answers at {self.address}",
                where="OLLAMA_HOST",
                remedy="Start Ollama (`ollama serve`), or set OLLAMA_HOST to where it runs.",
            ) from None
        except httpx.TimeoutException:
            raise MachineError(
                f"Ollama at {self.address} did not answer in time",
                where=path,
                remedy="Look at what it is doing (`ollama ps`), and try again.",
            ) from None
        except httpx.HTTPError as error:
            raise MachineError(
                f"the connection to Ollama at {self.address} broke: {error}",
                where=path,
                remedy="Look at Ollama's log, and try again: what was uploaded is not uploaded twice.",
            ) from None

    def _refused(self, path: str, reason: str) -> MachineError:
        is_full = any(words in reason.lower() for words in ("no space", "disk full", "insufficient storage"))
        return MachineError(
            f"Ollama at {self.address} refuses: {reason[:300]}",
            where=path,
            remedy="Make room where Ollama keeps its models (OLLAMA_MODELS), and try again."
            if is_full
            else "Look at Ollama's log. What was exported is whole, and can be given to it again.",
        )


def _without_user(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _message_of(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = answer.text.strip()
        return f"HTTP {answer.status_code}{': ' + text[:200] if text else ''}"
