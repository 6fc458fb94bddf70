"""A Hugging Face Hub on this machine: answers what its client asks when it lists and fetches a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "1234567890" * 4


@dataclass
class HubServer:
    """What is on the Hub, by the id of a model and the name of a file, and which files were asked for."""

    address: str = ""
    models: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)


@contextmanager
def serving_hub() -> Iterator[HubServer]:
    """Serve a Hub meanwhile."""
    hub = HubServer()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/")
            if path.startswith("api/models/"):
                owner, name, *question = path.removeprefix("api/models/").split("/")
                files = hub.models.get(f"{owner}/{name}")
                if files is None:
                    self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                else:
                    self.answer(200, json.dumps(_listing(f"{owner}/{name}", files, question)).encode(), {})
                return
            owner, name, _, _, file = path.split("/", 4)
            content = hub.models[f"{owner}/{name}"].get(file)
            if content is None:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            hub.fetched.append(file)
            self.answer(200, content, {"ETag": f'"{_hash(content)}"', "X-Repo-Commit": COMMIT})

        def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Keep the tests' output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _listing(name: str, files: Mapping[str, bytes], question: list[str]) -> Any:
    if question[:1] == ["tree"]:
        return [
            {"type": "file", "path": file, "size": len(content), "oid": _hash(content)}
            for file, content in files.items()
        ]
    siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
    return {"id": name, "sha": COMMIT, "gated": False, "siblings": siblings}


def _hash(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
