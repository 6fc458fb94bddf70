"""llama.cpp in a process beside ours: it serves as long as it is asked, and its end is not ours."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from llamafarm.deploy.convert import ExportWishes, export
from llamafarm.errors import MachineError, ModelError
from llamafarm.inference import llamacpp
from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer, has_llamacpp

needs_llamacpp = pytest.mark.skipif(not has_llamacpp(), reason="needs xllamacpp")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """The tiny base as a file."""
    path = tmp_path_factory.mktemp("file") / "m.gguf"
    export(tiny_base, path, ExportWishes("gguf", "f16", verifies=False))
    return path


@needs_llamacpp
def test_it_serves_more_requests_than_a_connection_takes(file: Path) -> None:
    with LlamaServer(file, LlamaOptions(64)) as server:
        first = server.tokenize("hello")
        assert all(server.tokenize("hello") == first for _ in range(300))


@needs_llamacpp
def test_only_who_has_the_key_is_answered(file: Path) -> None:
    import httpx2

    with LlamaServer(file, LlamaOptions(64)) as server:
        address = str(server._client.base_url)
        assert address.startswith("http://127.0.0.1:")
        assert httpx2.post(f"{address}/completion", json={"prompt": "x"}, trust_env=False).status_code == 401


@needs_llamacpp
def test_a_process_that_dies_is_an_error_of_ours(file: Path) -> None:
    with LlamaServer(file, LlamaOptions(64)) as server:
        os.kill(server._process.pid, signal.SIGKILL)
        server._process.wait()
        with pytest.raises(ModelError, match=r"brought llama\.cpp down \(it ended with code -9\)") as caught:
            server.tokenize("hello")
        assert caught.value.where == str(file)


@needs_llamacpp
def test_the_process_ends_with_its_context(file: Path) -> None:
    with LlamaServer(file, LlamaOptions(64)) as server:
        process = server._process
        assert process.poll() is None
        # What a terminal sends to its process group, such as Ctrl-C, is not for it.
        assert os.getpgid(process.pid) != os.getpgid(0)
    assert process.poll() is not None


@needs_llamacpp
def test_what_it_refuses_is_said(file: Path) -> None:
    with (
        LlamaServer(file, LlamaOptions(64)) as server,
        pytest.raises(ModelError, match=r"llama\.cpp refuses /completion"),
    ):
        server.continue_greedily([5] * 500, 2)


def test_without_it_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(llamacpp, "has_llamacpp", lambda: False)
    with pytest.raises(MachineError, match="which is not installed") as caught:
        LlamaServer(tmp_path / "m.gguf")
    assert "pip install xllamacpp" in caught.value.remedy
