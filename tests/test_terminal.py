"""What goes to stdout and what to stderr, in each way of speaking."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from llamafarm import terminal
from llamafarm.errors import DataError, LlamaFarmError, MachineError

Captured = pytest.CaptureFixture[str]

ERROR = DataError(
    "the row is 'no' [bold]good[/bold] :x:", where="data/rows.jsonl:7", remedy="Write “yes” there."
)


@pytest.fixture(autouse=True)
def mode(monkeypatch: pytest.MonkeyPatch) -> terminal.Mode:
    """A way of speaking of the test's own: plain, until it says otherwise."""
    own = terminal.Mode()
    monkeypatch.setattr(terminal, "mode", own)
    return own


def say_everything() -> None:
    terminal.say("said")
    terminal.heading("headed")
    terminal.columns([("a", "column")])
    terminal.warn("warned")
    with terminal.progress("work", 1) as progress:
        progress.advance("advanced")
    terminal.result("result")


def test_results_go_to_stdout_and_messages_to_stderr(capsys: Captured) -> None:
    say_everything()
    out, err = capsys.readouterr()
    assert out == "result\n"
    assert [line for line in err.splitlines() if line] == [
        "said",
        "headed",
        "a  column",
        "warning: warned",
        "work 1/1  advanced",
    ]


def test_quiet_leaves_results_warnings_and_errors(mode: terminal.Mode, capsys: Captured) -> None:
    mode.is_quiet = True
    say_everything()
    terminal.show_error(ERROR)
    out, err = capsys.readouterr()
    assert out == "result\n"
    first, *rest = err.splitlines()
    assert first == "warning: warned"
    assert len(rest) == 3


def test_an_error_is_three_lines_on_stderr(capsys: Captured) -> None:
    terminal.show_error(ERROR)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        ["error:", ERROR.problem],
        ["at:", ERROR.where],
        ["try:", ERROR.remedy],
    ]


@pytest.mark.parametrize("error", [ERROR, MachineError("no memory", where="here", remedy="Buy some.")])
def test_an_error_is_one_json_object_on_stdout(
    mode: terminal.Mode, capsys: Captured, error: LlamaFarmError
) -> None:
    mode.prints_json = True
    terminal.show_error(error)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    assert json.loads(out) == {
        "error": type(error).__name__,
        "problem": error.problem,
        "where": error.where,
        "remedy": error.remedy,
        "exit_code": error.exit_code,
    }


def test_json_is_one_line_that_reads_back(capsys: Captured) -> None:
    record = {"text": "ü “x”\u2028\n", "number": 1.5, "none": None, "list": [1, {"a": True}]}
    terminal.result_json({**record, "path": Path("a") / "b"})
    out, _ = capsys.readouterr()
    assert out.count("\n") == 1
    assert json.loads(out) == {**record, "path": str(Path("a") / "b")}
    assert "ü" in out


def test_pieces_of_a_result_are_joined_as_they_are(capsys: Captured) -> None:
    for piece in ("a", " b\n", "", "c"):
        terminal.result_piece(piece)
    assert capsys.readouterr().out == "a b\nc"


@pytest.mark.parametrize(
    "line",
    ["x" * 500, "word " * 120 + "end", "[bold]not markup[/bold] [red]", "1 'two' /three/four.py:5", ""],
)
def test_a_message_is_printed_as_it_stands_and_never_wrapped(capsys: Captured, line: str) -> None:
    terminal.say(line)
    assert capsys.readouterr().err == line + "\n"


def test_columns_are_aligned_and_end_without_blanks(capsys: Captured) -> None:
    terminal.columns([("a", "long one", ""), ("longer", "b", "c" * 200)])
    terminal.columns([])
    assert capsys.readouterr().err.splitlines() == ["a       long one", f"longer  b         {'c' * 200}"]


@pytest.mark.parametrize(("num_total", "by"), [(1, 1), (7, 1), (100, 1), (1000, 1), (1000, 32), (1005, 100)])
def test_progress_in_a_pipe_is_a_line_now_and_then_and_at_the_end(
    capsys: Captured, num_total: int, by: int
) -> None:
    with terminal.progress("steps", num_total) as progress:
        num_left = num_total
        while num_left:
            num_moved = min(by, num_left)
            progress.advance("loss 1.0", num_moved)
            num_left -= num_moved
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"steps {num_total}/{num_total}  loss 1.0"
    assert min(num_total, 5) <= len(lines) <= 12
    assert len(set(lines)) == len(lines)


def test_progress_on_a_terminal_is_a_bar_with_messages_above(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    fake = Console(file=screen, force_terminal=True, width=100, markup=False)
    monkeypatch.setattr(terminal, "console", lambda: fake)
    with terminal.progress("steps", 10, num_done=4) as progress:
        progress.advance("loss 1.0")
        terminal.say("a message")
        progress.advance("loss 0.5", by=5)
    shown = screen.getvalue()
    assert "10/10" in shown
    assert "loss 0.5" in shown
    assert "a message\n" in shown


def test_progress_passes_on_what_is_raised_within(capsys: Captured) -> None:
    with pytest.raises(KeyError), terminal.progress("steps", 3) as progress:
        progress.advance("one")
        raise KeyError
    assert "steps 1/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("is_a_tty", "environment", "encoding", "expected"),
    [
        (True, {"TERM": "xterm-256color"}, "utf-8", True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, "utf-8", True),
        (True, {"TERM": "dumb"}, "utf-8", False),
        (True, {"TERM": "xterm"}, "iso8859-1", False),
        (False, {"TERM": "xterm"}, "utf-8", False),
        (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, "utf-8", False),
    ],
)
def test_lines_are_drawn_anew_only_on_a_terminal_that_can(
    monkeypatch: pytest.MonkeyPatch,
    is_a_tty: bool,
    environment: dict[str, str],
    encoding: str,
    expected: bool,
) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(file, "isatty", lambda: is_a_tty)
    fake = Console(file=file, _environ=environment)
    monkeypatch.setattr(terminal, "console", lambda: fake)
    assert terminal.has_screen() is expected
