"""Runs, export folders and GGUF files that somebody else made: none is written through, or waited for."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import ending_within
from hostile_models import become_fifo

from llamafarm.deploy.gguf.read import read_header
from llamafarm.errors import ModelError
from llamafarm.inference.llamacpp import has_llamacpp

Speak = Callable[..., Any]


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """What waits for ever fails."""

    with ending_within(120):
        yield


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be spoilt."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "evaluation.json"])
def test_a_report_of_a_run_waits_for_no_fifo(tmp_path: Path, speak: Speak, name: str) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 1.0}\n')
    become_fifo(name)(tmp_path)
    assert speak(("report", str(tmp_path))).code in (0, 2)


def test_what_is_written_into_a_run_follows_no_link(tmp_path: Path, speak: Speak) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / "final_model").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    outside.write_text("mine")
    links = (
        "report.html",
        "report.html.unfinished",
        "final_model/README.md",
        "final_model/README.md.unfinished",
    )
    for link in links:
        (run / link).symlink_to(outside)
    assert speak(("report", str(run))).code == 0
    assert outside.read_text() == "mine"
    shutil.rmtree(run / "final_model")
    (tmp_path / "elsewhere").mkdir()
    (run / "final_model").symlink_to(tmp_path / "elsewhere")
    assert speak(("report", str(run))).code == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_export_writes_through_no_link(base: Path, tmp_path: Path, speak: Speak) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.write_text("mine")
    arguments = ("convert", str(base), str(out), "--quantization", "f16", "--no-verify", "--overwrite")
    for name in ("Modelfile", "base-f16.verify.json", "base-f16.gguf"):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / name).symlink_to(outside)
        assert speak(arguments).code == 2, name
    shutil.rmtree(out)
    out.mkdir()
    (out / ".base-f16.gguf.unfinished").symlink_to(outside)
    speak(arguments)
    assert outside.read_text() == "mine"


def test_a_runs_lock_empties_nothing_behind_a_link(tmp_path: Path) -> None:
    from llamafarm.errors import OutputError
    from llamafarm.training.locking import LOCK_FILE, RunLock

    (tmp_path / "mine").write_text("mine")
    (tmp_path / LOCK_FILE).symlink_to("mine")
    with pytest.raises(OutputError), RunLock(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62) + b"x",
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"x"
        + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0),
        b"\x80\x04N.",
    ],
)  # fmt: skip
def test_a_gguf_file_that_claims_more_than_it_has_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelError):
        read_header(tmp_path / "x.gguf")


@pytest.mark.skipif(not has_llamacpp(), reason="needs xllamacpp")
def test_a_context_that_is_text_does_not_bring_complete_down(tmp_path: Path, speak: Speak) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.context_length") + struct.pack("<I", 8) + text("many"),
    ]
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys))
    assert speak(("complete", "why?", "--model", str(tmp_path / "x.gguf"))).code == 2


@pytest.mark.skipif(not has_llamacpp(), reason="needs xllamacpp")
def test_the_server_beside_us_answers_nobody_without_its_key(base: Path, tmp_path: Path) -> None:
    import httpx2

    from llamafarm.deploy.convert import ExportWishes, export
    from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer

    export(base, tmp_path / "m.gguf", ExportWishes("gguf", "f16", verifies=False))
    routes = (
        "completion", "completions", "v1/completions", "v1/chat/completions", "v1/messages", "infill",
        "embedding", "tokenize", "detokenize", "apply-template", "props", "slots", "metrics",
        "lora-adapters", "slots/0?action=save",
    )  # fmt: skip
    with LlamaServer(tmp_path / "m.gguf", LlamaOptions(64)) as server:
        address = str(server._client.base_url)
        assert address.startswith("http://127.0.0.1:")
        for key in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer x"}, {"X-Api-Key": "x"}):
            headers = {"Host": "attacker.example", "Origin": "http://attacker.example", **key}
            for route in routes:
                for method in ("GET", "POST"):
                    answer = httpx2.request(
                        method, f"{address}/{route}", headers=headers, content="{}", trust_env=False
                    )
                    assert answer.status_code in (401, 403, 404), (route, method, key)


def test_a_server_that_leads_elsewhere_gets_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token of the Hub goes to Ollama or to who it names, and where it leads is not followed."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from llamafarm.errors import MachineError
    from llamafarm.inference.ollama import Ollama

    heard: list[tuple[str, str]] = []

    class Leading(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.path, str(self.headers)))
            self.send_response(307)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")  # type: ignore[attr-defined]
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    monkeypatch.setenv("HF_TOKEN", "hf_CanaryOfTheHub")
    with HTTPServer(("127.0.0.1", 0), Leading) as leading:
        threading.Thread(target=leading.serve_forever, daemon=True).start()
        server = Ollama(f"http://127.0.0.1:{leading.server_port}")
        with pytest.raises(MachineError):
            server.check()
        server.close()
        leading.shutdown()
    assert [path for path, _ in heard] == ["/api/version"]
    assert "hf_CanaryOfTheHub" not in heard[0][1]
