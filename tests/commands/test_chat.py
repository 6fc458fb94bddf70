"""A conversation, line by line: what the model is shown, what is said where, and what Ctrl-C ends."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamafarm import terminal
from llamafarm.commands import chat as chat_module
from llamafarm.commands import talk as talk_module
from llamafarm.commands.asking import Asked
from llamafarm.commands.chat import chat
from llamafarm.data.conversation import Message
from llamafarm.data.reading.records import read_data_file
from llamafarm.errors import InputError, MachineError, OutputError, PromptTooLongError
from llamafarm.inference.generate import INTERRUPTED, Answer, GenerationSettings

Captured = pytest.CaptureFixture[str]
SETTINGS = GenerationSettings(10, 0.0, 1.0, None, 1.0)


class Model:
    """A stand-in that answers with a count, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[list[tuple[str, str]]] = []
        self.asked_with: list[tuple[GenerationSettings, int | None]] = []
        self.answers: list[Answer] = []
        self.most_messages = 1000
        self.breaks_off = False
        self.is_closed = False

    def stream(
        self,
        messages: Sequence[Message],
        settings: GenerationSettings,
        write: Callable[[str], None],
        seed: int | None,
    ) -> Answer:
        if len(messages) > self.most_messages:
            raise PromptTooLongError("too long", where="there", remedy="Shorten it.")
        self.shown.append([(one.role, one.content) for one in messages])
        self.asked_with.append((settings, seed))
        given = self.answers.pop(0) if self.answers else None
        answer = given or Answer(f"answer {len(self.shown)}", "end-of-turn", 2)
        write(answer.text)
        if self.breaks_off:
            raise MachineError("broke off", where="there", remedy="Try again.")
        return answer

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def talk(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> Callable[..., tuple[list[str], str]]:
    """Send lines to `chat`, whose model the stand-in is; return lines of stdout, and stderr."""
    monkeypatch.setattr(terminal, "mode", terminal.Mode())

    def send(*lines: str, asked: dict[str, Any] | None = None, **options: Any) -> tuple[list[str], str]:
        opened = Asked("m", SETTINGS, model.stream, model.close, **(asked or {}))
        monkeypatch.setattr(chat_module, "open_asked", lambda *_, **__: opened)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        capsys.readouterr()
        chat(**options)
        said = capsys.readouterr()
        return said.out.splitlines(), said.err

    return send


def test_each_line_of_a_pipe_is_answered_with_what_was_said_before(model: Model, talk: Any) -> None:
    out, err = talk("one", "", "  two ", system="Be brief.", seed=3, temperature=0.5, max_new_tokens=4)
    assert (out, err) == (["answer 1", "answer 2"], "")
    assert model.shown == [
        [("system", "Be brief."), ("user", "one")],
        [("system", "Be brief."), ("user", "one"), ("assistant", "answer 1"), ("user", "two")],
    ]
    assert model.asked_with == [(GenerationSettings(4, 0.5, 1.0, None, 1.0), 3)] * 2
    assert model.is_closed


def test_commands_change_what_the_model_is_shown(model: Model, talk: Any) -> None:
    out, err = talk(
        "one", "/undo", "two", "/system Rhyme.", "three", "/reset", "/system", "four", "/undo x", "/undo"
    )
    assert out == ["answer 1", "answer 2", "answer 3", "answer 4"]
    assert [shown[:-1] for shown in model.shown] == [
        [],
        [],
        [("system", "Rhyme."), ("user", "two"), ("assistant", "answer 2")],
        [],
    ]
    assert (
        "forgotten: one" in err and "everything said is forgotten" in err and "nothing has been said" in err
    )


def test_help_names_every_command(talk: Any) -> None:
    out, err = talk("/help")
    assert out == [] and all(f"\n{name} " in f"\n{err}" for name in talk_module.COMMANDS)


def test_exit_leaves_and_what_is_no_command_is_refused(model: Model, talk: Any) -> None:
    assert talk("/exit", "one") == ([], "")
    assert talk("//exit is a word")[0] == ["answer 1"]
    assert model.shown == [[("user", "/exit is a word")]]
    with pytest.raises(InputError, match="no command /leave"):
        talk("/leave now")


def test_what_is_saved_is_read_as_data(model: Model, talk: Any, tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}')
    _, err = talk("one", "two", f"/save {path}", "/reset", "three\u2028", f"/save {path}", system="Be brief.")
    assert f"2 exchanges added to {path}" in err and f"1 exchange added to {path}" in err
    read = read_data_file(path).conversations
    assert [[(one.role, one.content) for one in row.messages] for row in read[1:]] == [
        [*model.shown[1], ("assistant", "answer 2")],
        [*model.shown[2], ("assistant", "answer 3")],
    ]
    with pytest.raises(InputError, match="needs the name of a file"):
        talk("one", "/save")
    with pytest.raises(InputError, match="nothing has been said"):
        talk(f"/save {path}")
    with pytest.raises(OutputError):
        talk("one", f"/save {tmp_path}")


@pytest.mark.parametrize(("context", "num_shown"), [(40, 4), (30, 2), (14, 0)])
def test_the_oldest_exchanges_give_way_to_the_answer_and_that_is_said(
    model: Model, talk: Any, context: int, num_shown: int
) -> None:
    # Every message counts four tokens, an answer ten or half of the context.
    asked = {"context_tokens": context, "count_tokens": lambda messages: 4 * len(messages)}
    out, err = talk(*"abcdefgh", "/save /dev/null", asked=asked, system="Be brief.")
    last = model.shown[-1]
    assert last[0] == ("system", "Be brief.") and last[-1] == ("user", "h")
    assert len(last) == num_shown + 2 and len(out) == 8
    assert f"{7 - num_shown // 2} exchanges left out, the oldest" in err
    assert "8 exchanges added" in err


def test_an_undone_exchange_makes_room_for_what_was_left_out(model: Model, talk: Any) -> None:
    asked = {"context_tokens": 30, "count_tokens": lambda messages: 4 * len(messages)}
    talk("a", "b", "c", "d", "/undo", "/undo", "/undo", "e", asked=asked)
    assert [content for _, content in model.shown[-2]] == ["b", "answer 2", "c", "answer 3", "d"]
    assert [content for _, content in model.shown[-1]] == ["a", "answer 1", "e"]


def test_a_server_that_takes_less_is_asked_with_less(model: Model, talk: Any) -> None:
    model.most_messages = 3
    out, err = talk("a", "b", "c", "d")
    assert len(out) == 4 and [len(shown) for shown in model.shown] == [1, 3, 3, 3]
    assert err.count("left out") == 2
    model.most_messages = 0
    with pytest.raises(PromptTooLongError):
        talk("a")


def test_a_server_that_forgets_by_itself_is_told_of(model: Model, talk: Any) -> None:
    model.answers = [Answer("x", "end-of-turn", 1, read) for read in (50, 90, 90)]
    _, err = talk("a", "b", "c")
    assert err.count("leaves out what was said first") == 1
    model.answers = [Answer("x", "end-of-turn", 1, read) for read in (50, 50, 90)]
    assert "leaves out" not in talk("a", "/reset", "b", "c")[1]


def test_what_ends_an_answer_early_is_said(model: Model, talk: Any) -> None:
    model.answers = [
        Answer("cut", "max-new-tokens", 10),
        Answer("half", INTERRUPTED, 1),
        Answer("", INTERRUPTED, 0),
    ]
    _, err = talk("a", "b", "c", "d")
    assert "cut at 10 tokens" in err and "what has come is kept" in err and "the question is forgotten" in err
    assert [content for _, content in model.shown[-1]] == ["a", "cut", "b", "half", "d"]
    assert talk("a", is_quiet=True) == (["answer 5"], "")


def test_an_error_ends_a_pipe_and_not_a_conversation(
    model: Model, talk: Any, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    model.breaks_off = True
    with pytest.raises(MachineError):
        talk("a", "b")
    assert capsys.readouterr().out == "answer 1\n"
    lines: Iterator[str | None] = iter(["a", "/nope", "b", None])
    monkeypatch.setattr(terminal, "is_conversing", lambda: True)
    monkeypatch.setattr(terminal, "read_line", lambda mark: next(lines))
    out, err = talk()
    assert out == ["answer 2", "answer 3"]
    assert err.count("error: broke off") == 2 and "no command /nope" in err and "Ctrl-D leaves" in err


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


def start(repository: Path, strategy_file: Path, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "cli.py", "chat", "--base", "--strategy-file", str(strategy_file)],
        cwd=repository,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "dumb"},
        # Whoever started the tests may have had it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **streams,
    )


def test_ctrl_c_ends_an_answer_and_the_conversation_goes_on(
    repository: Path, talker: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "said.jsonl"
    pipe = subprocess.PIPE
    process = start(repository, talker, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin and process.stdout and process.stderr
    outs = []
    for prompt in (b"one\n", b"two\n"):
        process.stdin.write(prompt)
        process.stdin.flush()
        outs.append(process.stdout.read1(1))
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        # It is said on stderr once all of the answer stands on stdout, which may have line breaks of its own.
        while b"interrupted: what has come is kept" not in process.stderr.readline():
            pass
        outs[-1] += process.stdout.read1()
    rest, err = process.communicate(f"/save {saved}\n".encode(), timeout=60)
    assert (process.returncode, rest) == (0, b""), err.decode()
    turns = json.loads(saved.read_text())["messages"]
    assert [turn["content"] for turn in turns[::2]] == ["one", "two"]
    assert [turn["content"] for turn in turns[1::2]] == [out.decode().removesuffix("\n") for out in outs]
    assert all(len(out) > 5 for out in outs)


@pytest.mark.slow
def test_ctrl_c_on_a_terminal(repository: Path, talker: Path) -> None:
    ours, theirs = pty.openpty()
    process = start(repository, talker, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    said = ""

    def wait_for(text: str, seconds: float = 60.0) -> None:
        nonlocal said
        deadline = time.monotonic() + seconds
        while text not in said:
            assert time.monotonic() < deadline, f"{text!r} is not in {said!r}"
            if select.select([ours], [], [], 0.5)[0]:
                said += os.read(ours, 4096).decode(errors="replace").replace("\r", "")
        said = said.partition(text)[2]

    def interrupt_at_the_prompt() -> None:
        wait_for("> ")
        time.sleep(0.5)  # Python's readline misses a signal between the prompt and its waiting for keys
        process.send_signal(signal.SIGINT)

    try:
        wait_for("Ctrl-D leaves")
        interrupt_at_the_prompt()
        wait_for("Ctrl-C once more leaves")
        wait_for("> ")
        os.write(ours, b"one\n")
        wait_for("one\n")
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        wait_for("interrupted: what has come is kept")
        interrupt_at_the_prompt()
        wait_for("Ctrl-C once more leaves")
        interrupt_at_the_prompt()
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_base_and_tuned_answer_in_turn_each_after_its_own_words(model: Model, talk: Any) -> None:
    base = Model()
    base.answers = [Answer(f"base {number}", "end-of-turn", 2) for number in (1, 2)]

    @contextmanager
    def beside() -> Iterator[Asked]:
        yield Asked("b", SETTINGS, base.stream)

    out, err = talk("one", "two", "/undo", "/reset", asked={"base": beside}, compares=True)
    assert out == ["base 1", "answer 1", "base 2", "answer 2"]
    assert base.shown[1] == [("user", "one"), ("assistant", "base 1"), ("user", "two")]
    assert model.shown[1] == [("user", "one"), ("assistant", "answer 1"), ("user", "two")]
    assert err.count("forgotten: two") == 1
    assert [line for line in err.splitlines() if line in ("base", "tuned")] == ["base", "tuned"] * 2


def test_the_base_alone_is_not_compared(talk: Any) -> None:
    with pytest.raises(InputError, match="--compare both"):
        talk("one", uses_base=True, compares=True)
