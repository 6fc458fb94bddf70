"""One prompt or a file of them: who answers, what is written where, and what Ctrl-C leaves."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llamafarm import terminal
from llamafarm.cli import main
from llamafarm.commands import complete as complete_module
from llamafarm.commands.asking import Asked
from llamafarm.data.conversation import Message
from llamafarm.inference import open as open_module
from llamafarm.inference.generate import INTERRUPTED, Answer, GenerationSettings
from llamafarm.model.adapter import AdapterSettings, adapter_tensors, attach_adapter
from llamafarm.model.bundle import Bundle, write_bundle
from llamafarm.model.load import find_base, load_model, load_tokenizer

Said = tuple[int, str, str]
GENERATION = {
    "max_new_tokens": 9,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": None,
    "repetition_penalty": 1.0,
}


@pytest.fixture(scope="module")
def final_model(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A final model whose adapter changes every answer."""
    base = find_base(str(tiny_base))
    tokenizer = load_tokenizer(base)
    model = load_model(base, dtype=torch.float32, device=torch.device("cpu"))
    adapted, _ = attach_adapter(model, AdapterSettings(4, 8, 0.0, "all-linear"), base_name=base.name, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    folder = tmp_path_factory.mktemp("final-model")
    bundle = Bundle(base.name, "s", "<|end|>", " / ", 99, (), GENERATION)
    write_bundle(folder, bundle, adapted, adapter_tensors(adapted), tokenizer)
    return folder


@pytest.fixture
def speak(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run the verb in this process; return its exit code, stdout and stderr."""
    monkeypatch.setattr(terminal, "mode", terminal.Mode())

    def run(*arguments: object, stdin: str = "") -> Said:
        monkeypatch.setattr(sys, "argv", ["cli.py", "complete", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_base_and_tuned_answer_in_turn_and_the_base_is_loaded_once(
    final_model: Path, speak: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    monkeypatch.setattr(
        open_module, "load_model", lambda *given, **named: loads.append(given) or load_model(*given, **named)
    )
    code, out, err = speak("why?", "--compare", "--json", "--model", final_model)
    both = json.loads(out)
    assert (code, err, len(loads)) == (0, "", 1)
    tuned = json.loads(speak("why?", "--json", "--model", final_model)[1])
    base = json.loads(speak("why?", "--json", "--base", "--model", final_model)[1])
    for which, alone in (("tuned", tuned), ("base", base)):
        assert both[which] == {key: alone[key] for key in ("response", "model", "ended_by", "tokens")}
    assert both["tuned"]["response"] != both["base"]["response"]
    code, out, err = speak("why?", "--compare", "--model", final_model)
    assert out == f"{base['response']}\n{tuned['response']}\n"
    assert err.index(f"base: {base['model']}") < err.index(f"tuned: {tuned['model']}")


FILES = {
    "a.txt": "why one?\n\n  why two?\nwhy three?",
    "prompts.jsonl": '{"prompt": "why one?"}\n{"prompt": "  why two?", "response": "x"}\n'
    '{"prompt": "why three?"}\n',
    "pairs.csv": "question,answer\nwhy one?,because\n  why two?,\nwhy three?,x\n",
    "alpaca.jsonl": '{"instruction": "why one?", "input": "", "output": "x"}\n'
    '{"instruction": "  why two?"}\n{"instruction": "why three?", "output": null}\n',
    "messages.jsonl": '{"messages": [{"role": "user", "content": "why one?"}, {"role": "assistant", '
    '"content": "x"}]}\n{"messages": [{"role": "user", "content": "  why two?"}]}\n'
    '{"messages": [{"role": "user", "content": "why three?"}]}\n',
    "sharegpt.jsonl": '{"conversations": [{"from": "human", "value": "why one?"}]}\n'
    '{"conversations": [{"from": "human", "value": "  why two?"}, {"from": "gpt", "value": "x"}]}\n'
    '{"conversations": [{"from": "human", "value": "why three?"}]}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_every_prompt_of_a_file_is_answered_as_it_is_alone(
    final_model: Path, speak: Any, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_text(FILES[name])
    code, out, err = speak("--file", path, "--model", final_model)
    rows = rows_of(out)
    assert code == 0, err
    assert [row["prompt"].strip() for row in rows] == ["why one?", "why two?", "why three?"]
    alone = json.loads(speak("why two?", "--json", "--model", final_model)[1])
    assert {**rows[1], "prompt": "why two?"} == {
        key: alone[key] for key in ("prompt", "response", "ended_by", "tokens")
    }
    assert "answers 3/3" in err and len({row["response"] for row in rows}) == 3


def test_a_files_answers_go_into_a_file_with_the_bases_beside(
    final_model: Path, speak: Any, tmp_path: Path
) -> None:
    path, written = tmp_path / "a.txt", tmp_path / "out.jsonl"
    path.write_text(FILES["a.txt"])
    code, out, _ = speak("--file", path, "--compare", "-o", written, "--json", "--model", final_model)
    assert code == 0 and json.loads(out)["answered"] == 3
    rows = rows_of(written.read_text())
    base = json.loads(speak("why three?", "--json", "--base", "--model", final_model)[1])["response"]
    assert [list(row) for row in rows] == [["prompt", "response", "base_response", "ended_by", "tokens"]] * 3
    assert rows[2]["base_response"] == base != rows[2]["response"]
    assert speak("--file", path, "-o", written, "--model", final_model)[1] == f"{written}\n"


def test_turns_before_the_last_and_system_messages_are_shown(speak: Any, tmp_path: Path, asked: Any) -> None:
    path = tmp_path / "a.jsonl"
    turns = [("system", "own"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    own = {"messages": [{"role": role, "content": content} for role, content in turns]}
    other = {"instruction": "e", "input": "f", "output": "g"}
    path.write_text(json.dumps(own) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps(other) + "\n")
    assert speak("--file", path, "--system", "given", "--model", "m")[0] == 0
    _, out, _ = speak("--file", tmp_path / "b.jsonl", "--system", "given", "--model", "m")
    assert asked.shown == [turns[:-1], [("system", "given"), ("user", "e")]]
    assert json.loads(out)["prompt"] == "e\n\nf"


def test_a_strategys_columns_are_those_of_its_prompts(
    speak: Any, tmp_path: Path, asked: Any, tiny_base: Path
) -> None:
    (tmp_path / "a.csv").write_text("frage,antwort\nwarum?,darum\n")
    columns = {"instruction": "frage", "output": "antwort"}
    strategy = {"base_model": {"huggingface_id": str(tiny_base)}, "dataset": {"columns": columns}}
    (tmp_path / "s.yaml").write_text(json.dumps({"s": strategy}))
    code, _, err = speak("--file", tmp_path / "a.csv", "--strategy-file", tmp_path / "s.yaml")
    assert (code, asked.shown) == (0, [[("user", "warum?")]]), err


class Model:
    """A stand-in that notes what it is shown, and can be interrupted at an answer."""

    def __init__(self) -> None:
        self.shown: list[list[tuple[str, str]]] = []
        self.asked_with: list[tuple[GenerationSettings, int | None]] = []
        self.interrupted_at = 10**9

    def stream(
        self,
        messages: Sequence[Message],
        settings: GenerationSettings,
        write: Callable[[str], None],
        seed: int | None,
    ) -> Answer:
        self.shown.append([(one.role, one.content) for one in messages])
        self.asked_with.append((settings, seed))
        is_interrupted = len(self.shown) == self.interrupted_at
        text = f"answer {len(self.shown)}"
        write(text)
        return Answer(text, INTERRUPTED if is_interrupted else "end-of-turn", 2)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Model:
    """The stand-in, which `complete` asks whatever it is told."""
    model = Model()
    opened = Asked("m", GenerationSettings(10, 0.7, 0.9, None, 1.0), model.stream)
    monkeypatch.setattr(complete_module, "open_asked", lambda *_, **__: opened)
    return model


def test_options_are_the_answers_settings(speak: Any, asked: Model) -> None:
    speak(
        "why?",
        "-m",
        "3",
        "-t",
        "0.1",
        "--top-p",
        "0.5",
        "--top-k",
        "7",
        "--repetition-penalty",
        "1.5",
        "--seed",
        "4",
    )
    speak("why?")
    assert asked.asked_with == [
        (GenerationSettings(3, 0.1, 0.5, 7, 1.5), 4),
        (GenerationSettings(10, 0.7, 0.9, None, 1.0), None),
    ]


def test_a_prompt_is_read_from_stdin(speak: Any, asked: Model) -> None:
    assert speak("-", stdin="why\nis it?\n")[:2] == (0, "answer 1\n")
    assert asked.shown == [[("user", "why\nis it?\n")]]
    code, _, err = speak("-", stdin=" \n")
    assert code == 2 and "the prompt is empty" in err


def test_an_answer_that_is_interrupted_is_shown_and_the_code_says_so(speak: Any, asked: Model) -> None:
    asked.interrupted_at = 1
    assert speak("why?")[:2] == (130, "answer 1\n")
    asked.shown.clear()
    code, out, _ = speak("why?", "--json")
    assert code == 130 and json.loads(out)["ended_by"] == "interrupted"


def test_what_was_answered_before_an_interrupt_is_written(speak: Any, asked: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\nb\nc\nd\n")
    asked.interrupted_at = 3
    code, out, err = speak("--file", path, "--model", "m")
    assert code == 130 and "2 of 4 prompts are answered" in err
    assert [row["response"] for row in rows_of(out)] == ["answer 1", "answer 2"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "there is no prompt"),
        (("why?", "--file", "a.txt"), "a prompt and a file"),
        (("why?", "--base", "--compare"), "--base asks the base alone"),
        (("why?", "--output", "o.jsonl"), "--output is for the answers of --file"),
        (("--file", "a.txt", "--json"), "JSONL on stdout"),
        (("--file", "a.txt", "--output", "a.txt"), "would replace the prompts"),
        (("--file", "a.txt", "--output", "no/where.jsonl"), "no file can be written there"),
        (("--file", "gone.txt"), "no file 'gone.txt'"),
        (("--file", "empty.txt"), "no prompts"),
        (("--file", "text.jsonl"), "asks nothing"),
        (("--file", "bad.jsonl"), "not JSON"),
        (("--file", "other.jsonl"), "no known form"),
        (("why?", "--compare", "--model", "m.gguf"), "does not have its base"),
        (("why?", "--base", "--model", "m.gguf"), "does not have its base"),
    ],
)
def test_what_cannot_be_is_refused(
    speak: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("why?\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "text.jsonl").write_text('{"text": "words"}\n')
    (tmp_path / "bad.jsonl").write_text("{\n}x\n")
    (tmp_path / "other.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "s.yaml").write_text("s: {}\n")
    given = arguments if "--model" in arguments else (*arguments, "--strategy-file", "s.yaml")
    code, out, err = speak(*given)
    said = err + out
    assert code == 2 and problem in said, said
    assert (tmp_path / "a.txt").read_text() == "why?\n"


def test_a_prompt_that_does_not_fit_is_told_of_before_the_first_is_answered(
    final_model: Path, speak: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("why?\n" + "why " * 400 + "\n")
    code, out, err = speak("--file", path, "--model", final_model)
    assert (code, out) == (2, "") and f"{path}:2" in err and "256" in err


# --- as a process ---


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A strategy file whose base says four thousand tokens before it is cut: many seconds."""
    folder = tmp_path_factory.mktemp("talker")
    shutil.copytree(tiny_base, folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    strategy = {
        "base_model": {"huggingface_id": str(folder / "base")},
        "hardware": {"device": "cpu"},
        "prompt_template": {"format": "Q: {input}\nA: {output}"},
        "generation": {"temperature": 0.0, "max_new_tokens": 4000},
    }
    path = folder / "strategies.yaml"
    path.write_text(json.dumps({"s": strategy}), encoding="utf-8")
    return path


def interrupt(repository: Path, *arguments: object) -> tuple[int, bytes, bytes]:
    """Run the verb as a process, and interrupt it soon after the first byte of an answer."""
    process = subprocess.Popen(
        [sys.executable, "cli.py", "complete", *map(str, arguments)],
        cwd=repository,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        # Whoever started the tests may have had it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    first = process.stdout.read1(1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    return process.returncode, first + rest, err


def test_ctrl_c_leaves_what_has_come_of_an_answer(repository: Path, talker: Path) -> None:
    code, out, err = interrupt(repository, "why?", "--base", "-f", talker)
    assert code == 130, err.decode()
    assert out.endswith(b"\n") and len(out) > 10 and b"Traceback" not in err


@pytest.mark.slow
def test_ctrl_c_leaves_what_has_been_answered_of_a_file(
    repository: Path, talker: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"why {number}?\n" for number in range(4000)))
    code, out, err = interrupt(repository, "--file", path, "--base", "-f", talker, "-m", 8)
    rows = rows_of(out.decode())
    assert code == 130, err.decode()
    assert 128 <= len(rows) < 4000
    assert [row["prompt"] for row in rows[:128]] == [f"why {number}?" for number in range(128)]
    assert f"{len(rows)} of 4000 prompts are answered".encode() in err
