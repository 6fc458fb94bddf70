"""Optional tools: found, not found, and Ollama asked over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from llamafarm.hardware.libraries import find_tools, installed_versions, ollama_address


class Ollama(BaseHTTPRequestHandler):
    """Says its version, as Ollama does."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/version" else 404)
        self.end_headers()
        self.wfile.write(b'{"version": "0.30.1"}')

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Ollama)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def version_of(name: str) -> str | None:
    return {tool.name: tool.version for tool in find_tools()}[name]


@pytest.mark.usefixtures("ollama")
def test_a_running_ollama_says_its_version() -> None:
    assert version_of("Ollama") == "0.30.1"


@pytest.mark.usefixtures("ollama")
def test_an_ollama_of_this_machine_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert version_of("Ollama") == "0.30.1"


@pytest.mark.parametrize("host", ["127.0.0.1:9", "file:///etc/passwd", "not an address", "http://[", "a@[b"])
def test_an_ollama_that_does_not_answer_is_not_there(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert version_of("Ollama") is None


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("", "http://127.0.0.1:11434"),
        ("box", "http://box:11434"),
        ("box:80", "http://box:80"),
        (":5000", "http://127.0.0.1:5000"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:99", "http://127.0.0.1:99"),
        ("http://box", "http://box:80"),
        ("https://box/", "https://box:443"),
        ("https://box/ollama/", "https://box:443/ollama"),
        ("box/ollama", "http://box:11434/ollama"),
        ("'box:80'", "http://box:80"),
        ("box:port", "http://box:11434"),
        ("[::1]:99", "http://[::1]:99"),
        ("[::1]", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::]:99", "http://127.0.0.1:99"),
        ("me:word@box:80", "http://me:word@box:80"),
        ("https://me:word@[::1]/x", "https://me:word@[::1]:443/x"),
    ],
)
def test_the_host_is_read_as_ollama_reads_it(
    host: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert ollama_address() == address


def test_versions_are_those_that_decide_a_run() -> None:
    assert {"python", "torch", "transformers", "peft"} <= installed_versions().keys()
    assert all(installed_versions().values())
