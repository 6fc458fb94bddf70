"""A stand-in for Ollama's server, as its documentation describes the API, with llama.cpp behind it.

Blobs by digest, create, show, tags, push and chat. `fault` makes it misbehave as servers do: see `FAULTS`.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer

FAULTS = (
    "not Ollama",
    "old",
    "upload refused",
    "disk full",
    "create refused",
    "create breaks off",
    "create fails midway",
    "create says nothing of success",
    "nonsense",
    "slow",
    "another template",
)


class OllamaServer:
    """The server's state: what was uploaded and created, and the requests it got."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.fault: str | None = None
        self.address = ""

    def blob(self, digest: str) -> Path:
        return self.folder / digest.replace(":", "-")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: OllamaServer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._note()
        if self.state.fault == "not Ollama":
            return self._send(200, b"<html>It works!</html>", "text/html")
        if self.path == "/":
            return self._send(200, b"Ollama is running", "text/plain")
        if self.path == "/api/version":
            return self._json(200, {"version": "0.3.14" if self.state.fault == "old" else "0.33.0"})
        if self.path == "/api/tags":
            return self._json(200, {"models": [{"name": name} for name in self.state.models]})
        return self._json(404, {"error": "not found"})

    def do_HEAD(self) -> None:
        self._note()
        is_there = self.state.blob(self.path.rpartition("/")[2]).is_file()
        self.send_response(200 if is_there else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/blobs/"):
            return self._store(self.path.rpartition("/")[2], body)
        if self.state.fault == "slow":
            time.sleep(1.5)
        content = json.loads(body)
        answers = {
            "/api/create": self._create,
            "/api/show": self._show,
            "/api/push": self._push,
            "/api/chat": self._chat,
        }
        if self.path not in answers:
            return self._json(404, {"error": "not found"})
        return answers[self.path](content)

    def _store(self, digest: str, body: bytes) -> None:
        if self.state.fault == "upload refused":
            return self._json(400, {"error": "invalid digest format"})
        if self.state.fault == "disk full":
            return self._json(500, {"error": "write /blobs: no space left on device"})
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if found != digest:
            return self._json(400, {"error": f"digest mismatch, expected {digest!r}, got {found!r}"})
        self.state.blob(digest).write_bytes(body)
        return self._send(201, b"", "text/plain")

    def _create(self, content: dict[str, Any]) -> None:
        fault = self.state.fault
        if fault == "create refused" or not re.fullmatch(r"[\w./:-]+", content["model"]):
            return self._json(400, {"error": "invalid model name"})
        if "files" not in content or any(name.startswith("/") for name in content["files"]):
            return self._json(400, {"error": "neither 'from' or 'files' was specified"})
        (digest,) = content["files"].values()
        if not self.state.blob(digest).is_file():
            return self._json(400, {"error": f"blob {digest} not found"})
        lines: list[dict[str, Any]] = [
            {"status": "parsing GGUF"},
            {"status": "using existing layer " + digest},
        ]
        if fault == "create fails midway":
            lines.append({"error": "unsupported architecture"})
        elif fault != "create says nothing of success":
            lines += [{"status": "writing manifest"}, {"status": "success"}]
            template = "{{ .Prompt }}" if fault == "another template" else content.get("template", "")
            name = content["model"] if ":" in content["model"] else content["model"] + ":latest"
            self.state.models[name] = {**content, "template": template, "digest": digest}
        if fault == "nonsense":
            return self._send(200, b"<html>gateway</html>\n", "text/html")
        return self._lines(lines, breaks=fault == "create breaks off")

    def _find(self, name: str) -> dict[str, Any] | None:
        return self.state.models.get(name if ":" in name else f"{name}:latest")

    def _show(self, content: dict[str, Any]) -> None:
        model = self._find(content["model"])
        if model is None:
            return self._json(404, {"error": f"model '{content['model']}' not found"})
        parameters = []
        for key, value in model.get("parameters", {}).items():
            for one in value if isinstance(value, list) else [value]:
                parameters.append(f"{key:<30} {json.dumps(one) if isinstance(one, str) else one}")
        found = {"template": model["template"], "parameters": "\n".join(parameters)}
        if "system" in model:
            found["system"] = model["system"]
        return self._json(200, found)

    def _push(self, content: dict[str, Any]) -> None:
        if "/" not in content["model"]:
            return self._lines(
                [{"status": "retrieving manifest"}, {"error": "you are not authorized to push"}]
            )
        return self._lines([{"status": "retrieving manifest"}, {"status": "success"}])

    def _chat(self, content: dict[str, Any]) -> None:
        model = self._find(content["model"])
        if model is None:
            return self._json(404, {"error": f"model '{content['model']}' not found"})
        messages = content["messages"]
        if model.get("system") and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": model["system"]}, *messages]
        options = {**model.get("parameters", {}), **content.get("options", {})}
        asked = {
            "messages": messages,
            "max_tokens": options.get("num_predict", 128),
            "temperature": options.get("temperature", 0.8),
        }
        lines: list[dict[str, Any]] = []
        with LlamaServer(self.state.blob(model["digest"]), LlamaOptions()) as server:
            reason, count = "stop", 0
            for event in server.stream("/v1/chat/completions", asked):
                for choice in event.get("choices", ()):
                    if piece := choice.get("delta", {}).get("content"):
                        count += 1
                        lines.append({"message": {"role": "assistant", "content": piece}, "done": False})
                    reason = choice.get("finish_reason") or reason
        last = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": reason}
        return self._lines([*lines, {**last, "eval_count": count}])

    def _note(self) -> None:
        self.state.requests.append((self.command, re.sub(r"sha256:\w+", "DIGEST", self.path)))

    def _json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _lines(self, lines: list[dict[str, Any]], *, breaks: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines[: 1 if breaks else None]:
            piece = json.dumps(line).encode() + b"\n"
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if breaks:
            self.close_connection = True
            self.connection.shutdown(2)
        else:
            self.wfile.write(b"0\r\n\r\n")


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away, as some tests do on purpose."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@contextmanager
def running(folder: Path) -> Iterator[OllamaServer]:
    """Serve on a port of 127.0.0.1 meanwhile."""
    state = OllamaServer(folder)
    handler = type("Handler", (_Handler,), {"state": state})
    server = _Server(("127.0.0.1", 0), handler)
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
