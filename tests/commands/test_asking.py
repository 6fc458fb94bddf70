"""What answers a prompt: the strategy's choice where it is there, else transformers, and that is said."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llamafarm.commands import asking
from llamafarm.commands.asking import Asked, open_asked
from llamafarm.data.conversation import Message
from llamafarm.deploy.convert import ExportWishes, export
from llamafarm.deploy.hand_over import hand_over
from llamafarm.errors import LlamaFarmError, ModelError, PromptTooLongError, StrategyError
from llamafarm.inference import llamacpp
from llamafarm.inference import open as open_module
from llamafarm.inference.generate import INTERRUPTED, Answer, GenerationSettings
from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer, has_llamacpp
from llamafarm.inference.open import open_final_model
from llamafarm.model.load import find_base
from llamafarm.strategy.load import load_strategy
from llamafarm.training.run import run_training

pytestmark = pytest.mark.skipif(not has_llamacpp(), reason="needs xllamacpp")
GREEDY = GenerationSettings(12, 0.0, 1.0, None, 1.0)
QUESTION = [Message("user", "why is it?")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A strategy file whose run is trained and exported."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [{"instruction": f"why is {n}?", "output": f"It is {n}."} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    strategy = {
        "base_model": {"huggingface_id": str(tiny_base)},
        "hardware": {"device": "cpu", "optimization": {"mixed_precision": "no"}},
        "method": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        "training_args": {"output_dir": str(folder / "run"), "num_train_epochs": 2, "learning_rate": 0.02},
        "dataset": {"train_file": str(folder / "rows.jsonl")},
        "prompt_template": {"format": "Q: {input}\nA: {output}"},
    }
    path = folder / "strategies.yaml"
    path.write_text(json.dumps({"s": strategy}), encoding="utf-8")
    result = run_training(load_strategy("s", file=path))
    export(result.final_model, folder / "run" / "export", ExportWishes("ollama", "f32", "s", verifies=False))
    return path


def ask(asked: Asked, settings: GenerationSettings = GREEDY, seed: int | None = None) -> tuple[Answer, str]:
    pieces: list[str] = []
    try:
        answer = asked.stream(QUESTION, settings, pieces.append, seed)
    finally:
        asked.close()
    assert "".join(pieces).strip() == answer.text
    return answer, asked.name


def open_as(trained: Path, *settings: str) -> Asked:
    return open_asked(None, "s", trained, list(settings), uses_base=False)


def test_llama_cpp_and_transformers_answer_the_same(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, _ = ask(open_as(trained))
    there, name = ask(open_as(trained, "model_app.type=llamacpp"))
    assert name.endswith("s-f32.gguf") and "answered by llama.cpp" in capsys.readouterr().err
    assert (there.text, there.ended_by) == (here.text, here.ended_by)
    by_file, _ = ask(open_asked(Path(name), None, None, None, uses_base=False))
    assert by_file.text == here.text
    named = open_as(trained, "model_app.type=llamacpp", f"model_app.config.default_model={name}")
    assert ask(named)[0].text == here.text


def test_ollama_answers_where_it_has_the_model(
    trained: Path, ollama: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    here, _ = ask(open_as(trained))
    asked = open_as(trained, "model_app.type=ollama")
    assert "Ollama has no model s: transformers answers" in capsys.readouterr().err
    assert ask(asked)[0].text == here.text
    done = export(
        trained.parent / "run" / "final_model",
        trained.parent / "given",
        ExportWishes("ollama", "f32", "given", verifies=False, overwrites=True),
    )
    hand_over(done.gguf, done.modelfile, "given")  # type: ignore[arg-type]
    there, name = ask(open_as(trained, "model_app.type=ollama", "model_app.config.default_model=given"))
    assert (name, there.text) == ("given", here.text)
    assert "answered by Ollama" in capsys.readouterr().err


def test_an_ollama_elsewhere_and_none_at_all(
    trained: Path, ollama: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(open_as(trained, "model_app.type=ollama", "model_app.config.base_url=http://127.0.0.1:9"))
    assert "nothing answers at http://127.0.0.1:9: transformers answers" in capsys.readouterr().err
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    ask(open_as(trained, "model_app.type=ollama", f"model_app.config.base_url={ollama.address}"))
    assert "Ollama has no model s" in capsys.readouterr().err


def test_what_is_not_there_is_answered_for_by_transformers(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llamacpp, "has_llamacpp", lambda: False)
    ask(open_as(trained, "model_app.type=llamacpp"))
    assert "llama.cpp is not installed: transformers answers" in capsys.readouterr().err


def test_layers_and_threads_are_llama_cpps(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LlamaOptions] = []

    class Noting(LlamaServer):
        def __init__(self, model: Path, options: LlamaOptions) -> None:
            seen.append(options)
            super().__init__(model, options)

    monkeypatch.setattr(llamacpp, "LlamaServer", Noting)
    settings = ("model_app.config.gpu_layers=0", "model_app.config.num_thread=1")
    ask(open_as(trained, "model_app.type=llamacpp", *settings))
    ask(open_as(trained, "model_app.type=llamacpp"))
    assert [(one.gpu_layers, one.num_threads) for one in seen] == [(0, 1), (None, None)]


@pytest.fixture
def is_left() -> threading.Event:
    """Set once the server sees that nobody reads its answer any more."""
    return threading.Event()


class _OpenAI(BaseHTTPRequestHandler):
    """A server of OpenAI's protocol that answers with what it was asked."""

    asked: list[dict[str, Any]]
    is_left: threading.Event

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(content)
        if content["model"] == "endless":
            return self._say_without_end()
        if content["model"] == "small" and len(content["messages"]) > 1:
            body = b'{"error": {"code": "context_length_exceeded", "message": "maximum context length is 9"}}'
            self.send_response(400)
        elif content["model"] == "gone":
            body = b'{"error": {"message": "no such model"}}'
            self.send_response(404)
        else:
            events = [
                {"choices": [{"delta": {"content": " You said "}}]},
                {"choices": [{"delta": {"content": content["messages"][-1]["content"]}}]},
                {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"completion_tokens": 5}},
            ]
            body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
            body += b"data: [DONE]\n\n"
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _say_without_end(self) -> None:
        self.send_response(200)
        self.end_headers()
        event = b'data: {"choices": [{"delta": {"content": "more "}}]}\n\n'
        try:
            while True:
                self.wfile.write(event)
                time.sleep(0.01)
        except OSError:
            self.is_left.set()


@pytest.fixture
def openai(is_left: threading.Event) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of such a server, and what it was asked."""
    asked: list[dict[str, Any]] = []
    state = {"asked": asked, "is_left": is_left}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_OpenAI,), state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    server.shutdown()
    server.server_close()


def test_any_server_of_openais_protocol_answers(
    trained: Path, openai: tuple[str, list[dict[str, Any]]]
) -> None:
    address, asked = openai
    url = f"model_app.config.base_url={address}"
    app = ("model_app.type=openai", url, "model_app.config.default_model=m")
    answer, _ = ask(open_as(trained, *app), seed=7)
    assert answer == Answer("You said why is it?", "end-of-turn", 5)
    assert (asked[0]["max_tokens"], asked[0]["temperature"], asked[0]["seed"]) == (12, 0.0, 7)
    with pytest.raises(ModelError, match=r"refuses \(HTTP 404\).*no such model"):
        ask(open_as(trained, *app[:2], "model_app.config.default_model=gone"))
    with pytest.raises(StrategyError, match="needs the server's address"):
        open_as(trained, "model_app.type=openai")
    with pytest.raises(LlamaFarmError, match="cannot be asked"):
        ask(open_as(trained, app[0], "model_app.config.base_url=http://127.0.0.1:9", app[2]))


def test_a_server_that_says_nothing_is_waited_for_as_long_as_asked(trained: Path, ollama: Any) -> None:
    ollama.models["s:latest"] = {"template": "", "digest": "sha256:0"}
    ollama.fault = "slow"
    app = ("model_app.type=ollama", "model_app.config.timeout=0.4")
    with pytest.raises(LlamaFarmError, match="did not answer in time"):
        ask(open_as(trained, *app))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no file"):
        open_asked(tmp_path / "m.gguf", None, None, None, uses_base=False)


@pytest.mark.parametrize("uses_base", [True, False])
def test_the_base_is_always_asked_of_transformers(trained: Path, uses_base: bool) -> None:
    asked = open_asked(None, "s", trained, ["model_app.type=llamacpp"], uses_base=uses_base)
    assert (asked.base_name is not None) == uses_base
    asked.close()


def interrupted(asked: Asked, num_pieces: int = 2) -> tuple[Answer, str]:
    """Ask, and press Ctrl-C after some pieces of the answer."""
    pieces: list[str] = []

    def write(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == num_pieces:
            # As a terminal does it, while the next piece is waited for.
            threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()

    answer = asked.stream(QUESTION, replace(GREEDY, max_new_tokens=5000), write, None)
    return answer, "".join(pieces)


def test_ctrl_c_makes_a_server_stop(
    trained: Path, openai: tuple[str, list[dict[str, Any]]], is_left: threading.Event
) -> None:
    url = f"model_app.config.base_url={openai[0]}"
    asked = open_as(trained, "model_app.type=openai", url, "model_app.config.default_model=endless")
    for _ in range(2):  # the connection that was closed is not asked again
        answer, said = interrupted(asked)
        assert answer.ended_by == INTERRUPTED and answer.text == said.strip()
        assert answer.num_tokens >= 2
        assert is_left.wait(10)
        is_left.clear()
    asked.close()


def test_ctrl_c_ends_an_answer_of_llama_cpp_and_not_the_server(trained: Path) -> None:
    asked = open_as(trained, "model_app.type=llamacpp")
    expected = asked.stream(QUESTION, GREEDY, lambda piece: None, None)

    def press(piece: str) -> None:
        signal.raise_signal(signal.SIGINT)

    answer = asked.stream(QUESTION, GREEDY, press, None)
    assert answer.ended_by == INTERRUPTED and expected.text.startswith(answer.text)
    assert asked.stream(QUESTION, GREEDY, lambda piece: None, None) == expected
    asked.close()


def test_what_a_server_says_of_its_context_is_understood(
    trained: Path, openai: tuple[str, list[dict[str, Any]]]
) -> None:
    url = f"model_app.config.base_url={openai[0]}"
    asked = open_as(trained, "model_app.type=openai", url, "model_app.config.default_model=small")
    asked.stream(QUESTION, GREEDY, lambda piece: None, None)
    with pytest.raises(PromptTooLongError, match="maximum context length is 9"):
        asked.stream([*QUESTION, *QUESTION], GREEDY, lambda piece: None, None)
    asked.close()


def test_both_engines_count_a_prompts_tokens_alike(trained: Path) -> None:
    here, there = open_as(trained), open_as(trained, "model_app.type=llamacpp")
    assert here.count_tokens is not None and there.count_tokens is not None
    assert here.count_tokens(QUESTION) == there.count_tokens(QUESTION) > 3
    assert here.context_tokens == there.context_tokens == 256
    there.close()


def test_what_is_compared_is_asked_of_transformers(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected, _ = ask(open_asked(None, "s", trained, None, uses_base=True))
    asked = open_asked(None, "s", trained, ["model_app.type=llamacpp"], uses_base=False, is_compared=True)
    assert "transformers answers, as --compare needs the base" in capsys.readouterr().err
    assert asked.base is not None
    with asked.base() as base:
        assert base.name == asked.base_name
        beside, _ = ask(base)
    tuned, _ = ask(asked)
    assert beside == expected and beside.text != tuned.text


def test_a_base_that_has_to_be_loaded_is_loaded_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_final_model(trained.parent / "run" / "final_model", "cpu")
    # As where all weights were trained: the base is not had by taking an adapter off.
    apart = replace(opened, separate_base=find_base(opened.base_name))
    monkeypatch.setattr(asking, "open_model", lambda *_, **__: apart)
    loads: list[object] = []
    load = open_module.load_model
    monkeypatch.setattr(
        open_module, "load_model", lambda *given, **named: loads.append(given) or load(*given, **named)
    )
    asked = open_asked(trained, None, None, None, uses_base=False, is_compared=True)
    assert asked.base is not None
    answers = []
    for _ in range(2):
        with asked.base() as base:
            answers.append(ask(base)[0])
    assert answers[0] == answers[1] != ask(asked)[0]
    assert len(loads) == 1
