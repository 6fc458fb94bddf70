"""What is known of a model before it is loaded, from folders and from a hub that answers on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from llamafarm.errors import LlamaFarmError, MachineError, ModelError
from llamafarm.model.hub import find_source

SAFE = {"rfilename": "model.safetensors", "size": 1000}
OTHERS = [
    {"rfilename": "config.json", "size": 20},
    {"rfilename": "pytorch_model.bin", "size": 5000},
    {"rfilename": "onnx/model.safetensors", "size": 700},
    {"rfilename": "README.md", "size": 3},
]
MODELS: dict[str, dict[str, Any]] = {
    "o/open": {"gated": False, "siblings": [SAFE, *OTHERS], "cardData": {"license": "apache-2.0"}},
    "o/pickled": {"gated": False, "siblings": OTHERS},
    "o/gated": {"gated": "manual", "siblings": [SAFE], "cardData": {"license": "llama3.2"}},
    "o/granted": {"gated": "auto", "siblings": [SAFE]},
}


class Hub(BaseHTTPRequestHandler):
    """Answers the two questions that are asked, as the Hub does."""

    def do_GET(self) -> None:
        name, _, question = self.path.partition("?")[0].removeprefix("/api/models/").partition("/auth")
        if name == "o/broken":
            self.answer(503, {})
        elif name not in MODELS:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif question and name == "o/gated":
            self.answer(403, {"X-Error-Code": "GatedRepo"})
        else:
            self.answer(200, {}, {"id": name, **MODELS[name]})

    def answer(self, status: int, headers: dict[str, str], body: Any = None) -> None:
        content = json.dumps(body or {}).encode()
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield
    server.shutdown()
    server.server_close()


def refusal(source: str, tmp_path: Path) -> LlamaFarmError:
    with pytest.raises(LlamaFarmError) as caught:
        find_source(source, str(tmp_path / "cache"))
    error = caught.value
    assert error.where == "base_model.huggingface_id"
    assert all(part and "\n" not in part for part in (error.problem, error.remedy))
    return error


def test_a_folder_is_local_and_counts_what_is_loaded(tmp_path: Path) -> None:
    for name, num_bytes in {"model.safetensors": 100, "config.json": 10, "pytorch_model.bin": 999}.items():
        (tmp_path / name).write_bytes(b"x" * num_bytes)
    found = find_source(str(tmp_path))
    assert (found.is_local, found.num_bytes, found.place) == (True, 110, str(tmp_path))


def test_a_cached_model_is_local_and_the_hub_is_not_asked(tmp_path: Path) -> None:
    commit = "0" * 40
    snapshot = tmp_path / "models--o--cached" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--o--cached" / "refs").mkdir()
    (tmp_path / "models--o--cached" / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    found = find_source("o/cached", str(tmp_path))
    assert (found.is_local, found.num_bytes, found.place) == (True, 2, "the local cache")


@pytest.mark.usefixtures("hub")
def test_the_hub_tells_size_licence_and_gate(tmp_path: Path) -> None:
    found = find_source("o/open", str(tmp_path))
    assert (found.is_local, found.num_bytes, found.licence, found.is_gated) == (
        False, 1020, "apache-2.0", False,
    )  # fmt: skip
    assert find_source("o/granted", str(tmp_path)).is_gated


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("source", "words", "kind"),
    [
        ("o/gated", "behind a licence", ModelError),
        ("o/nothing", "there is no model 'o/nothing'", ModelError),
        ("o/pickled", "pickled ones are never read", ModelError),
        ("o/broken", "HTTP 503", MachineError),
    ],
)
def test_what_the_hub_refuses_is_said(
    source: str, words: str, kind: type[LlamaFarmError], tmp_path: Path
) -> None:
    error = refusal(source, tmp_path)
    assert type(error) is kind
    assert words in error.problem


def test_a_gate_names_where_to_go(hub: None, tmp_path: Path) -> None:
    remedy = refusal("o/gated", tmp_path).remedy
    assert "https://huggingface.co/o/gated" in remedy
    assert "HF_TOKEN" in remedy


def test_no_network_is_the_machines_lack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert isinstance(refusal("o/open", tmp_path), MachineError)
