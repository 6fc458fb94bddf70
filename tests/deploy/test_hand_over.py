"""Models given to Ollama, and to servers that misbehave. With a real server at OLLAMA_HOST, to that too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llamafarm.data.conversation import Message
from llamafarm.deploy.convert import Exported, ExportWishes, export
from llamafarm.deploy.hand_over import hand_over
from llamafarm.errors import InputError, LlamaFarmError, MachineError
from llamafarm.hardware.libraries import find_tools
from llamafarm.inference.generate import GenerationSettings
from llamafarm.inference.llamacpp import has_llamacpp
from llamafarm.inference.ollama import Ollama, address_of, check_name
from llamafarm.inference.served import OllamaAnswerer

pytestmark = pytest.mark.skipif(not has_llamacpp(), reason="needs xllamacpp")
GREEDY = GenerationSettings(8, 0.0, 1.0, None, 1.0)
# As it was when the tests were started: fixtures change it.
HAS_REAL_SERVER = bool(os.environ.get("OLLAMA_HOST")) and any(
    tool.name == "Ollama" and tool.found for tool in find_tools()
)


@pytest.fixture
def exported(final_model: Path, tmp_path: Path) -> Exported:
    """A file for Ollama, and what goes with it."""
    asked = ExportWishes("ollama", "f16", "tiny", "Be brief.", verifies=False)
    return export(final_model, tmp_path / "out", asked)


def give(exported: Exported, **options: Any) -> Any:
    assert exported.gguf is not None and exported.modelfile is not None and exported.name is not None
    return hand_over(exported.gguf, exported.modelfile, exported.name, **options)


def test_a_model_is_uploaded_once_created_and_looked_at(exported: Exported, ollama: Any) -> None:
    given = give(exported)
    assert (given.name, given.address, given.version) == ("tiny", ollama.address, "0.33.0")
    assert ollama.requests == [
        ("GET", "/api/version"),
        ("HEAD", "/api/blobs/DIGEST"),
        ("POST", "/api/blobs/DIGEST"),
        ("POST", "/api/create"),
        ("POST", "/api/show"),
    ]
    model = ollama.models["tiny:latest"]
    assert model["system"] == "Be brief." and model["parameters"]["top_k"] == 7
    assert model["parameters"]["stop"] == ["<|end|>", "###"] and "{{ range .Messages }}" in model["template"]
    ollama.requests.clear()
    give(exported)
    assert ("POST", "/api/blobs/DIGEST") not in ollama.requests, "what is there is not uploaded again"


def test_it_answers_there_what_it_answers_here(exported: Exported, ollama: Any, final_model: Path) -> None:
    from llamafarm.inference.open import open_final_model

    give(exported)
    messages = [Message("system", "Be brief."), Message("user", "What is it?")]
    here = open_final_model(final_model, "cpu").answerer.stream(messages, GREEDY, lambda _: None)
    pieces: list[str] = []
    answerer = OllamaAnswerer(Ollama(), "tiny", {})
    there = answerer.stream(messages[1:], GREEDY, pieces.append)
    answerer.close()
    assert there.text == here.text and "".join(pieces).strip() == there.text
    assert there.num_tokens > 0


def test_a_model_is_pushed_if_asked(exported: Exported, ollama: Any) -> None:
    with pytest.raises(MachineError, match="not authorized to push"):
        give(exported, pushes=True)
    assert exported.gguf is not None and exported.modelfile is not None
    hand_over(exported.gguf, exported.modelfile, "me/tiny", pushes=True)
    assert ("POST", "/api/push") in ollama.requests


@pytest.mark.parametrize(
    ("fault", "problem", "remedy"),
    [
        ("not Ollama", "is not Ollama", "which program uses that port"),
        ("old", "Ollama 0.3.14 at .* cannot create", "Update Ollama to 0.5.5"),
        ("upload refused", "invalid digest format", "can be given to it again"),
        ("disk full", "no space left", "Make room where Ollama keeps its models"),
        ("create refused", "invalid model name", "Ollama's log"),
        ("create breaks off", "broke|ended at", "try again|Ollama's log"),
        ("create fails midway", "unsupported architecture", "Ollama's log"),
        ("create says nothing of success", "ended at 'using existing layer", "Ollama's log"),
        ("nonsense", "it answered '<html>gateway", "Ollama's log"),
        ("another template", "has another template than was sent", "ollama show tiny"),
    ],
)
def test_a_server_that_fails_is_an_error_that_says_how(
    exported: Exported, ollama: Any, fault: str, problem: str, remedy: str
) -> None:
    import re

    ollama.fault = fault
    with pytest.raises(MachineError, match=problem) as caught:
        give(exported)
    assert re.search(remedy, caught.value.remedy)
    assert exported.gguf is not None and exported.gguf.is_file(), "what was exported stays"


def test_a_slow_server_is_not_waited_for_for_ever(exported: Exported, ollama: Any) -> None:
    server = Ollama(answer_seconds=0.3)
    ollama.fault = "slow"
    with pytest.raises(MachineError, match="did not answer in time"):
        list(server.create("tiny", {"a": "sha256:0"}, {}))
    server.close()


def test_a_server_that_is_not_there_is_said_to_be_started(exported: Exported) -> None:
    with pytest.raises(MachineError, match=r"nothing answers at http://127.0.0.1:9") as caught:
        give(exported, address="http://127.0.0.1:9")
    assert "ollama serve" in caught.value.remedy


@pytest.mark.parametrize("name", ["a", "llama3.2", "me/m", "me/m:v1", "host.com:5000/me/m:tag", "A_b-c.d"])
def test_names_that_ollama_takes(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a\n",
        "-a",
        "a/b/c/d/e",
        "a:b:c",
        "ä",
        "a;rm -rf",
        "../a",
        "a/../b",
        "a" * 300,
        '"a"',
        "$(x)",
    ],
)
def test_names_that_ollama_refuses(name: str) -> None:
    with pytest.raises(InputError):
        check_name(name)


@pytest.mark.parametrize("address", ["ftp://x", "http://", "no address"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is not the address of a server"):
        address_of(address)


@pytest.mark.skipif(not HAS_REAL_SERVER, reason="needs a real Ollama at OLLAMA_HOST")
def test_a_real_server_takes_the_model(exported: Exported, final_model: Path) -> None:
    given = give(exported)
    server = Ollama()
    try:
        assert f"{given.name}:latest" in server.names()
        answer = OllamaAnswerer(server, given.name, {}).stream([Message("user", "x")], GREEDY, lambda _: None)
        assert answer.num_tokens > 0
    except LlamaFarmError as error:
        pytest.fail(str(error))
