"""Signals in a run: the first is remembered, the second leaves; afterwards they are as they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from llamafarm import terminal
from llamafarm.training.signals import RunInterrupted, StopAsked, StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_remembered_and_asked_for(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.console.cache_clear()
    with StopSignals() as signals:
        signals.check()
        os.kill(os.getpid(), number)
        assert signals.asked == number
        with pytest.raises(StopAsked):
            signals.check()
    said = capsys.readouterr().err
    assert f"{signal.Signals(number).name}: finishing this step, then saving" in said
    terminal.console.cache_clear()


def test_afterwards_signals_are_whose_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_one_leaves_at_once(number: int, exit_code: int) -> None:
    program = (
        "import os; from llamafarm.training.signals import StopSignals\n"
        "with StopSignals():\n"
        f"    os.kill(os.getpid(), {int(number)}); print('still here', flush=True)\n"
        f"    os.kill(os.getpid(), {int(number)}); print('too late', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == exit_code
    assert ended.stdout == "still here\n"


def test_a_stream_that_is_being_written_to_is_no_reason_to_break(monkeypatch: pytest.MonkeyPatch) -> None:
    def reentered(_: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    monkeypatch.setattr(terminal, "warn", reentered)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.asked == signal.SIGTERM


def test_another_thread_hears_none_and_is_not_in_the_way() -> None:
    asked: list[int | None] = []

    def listen() -> None:
        with StopSignals() as signals:
            signals.check()
            asked.append(signals.asked)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert asked == [None]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_the_one_that_shells_give(number: int, exit_code: int) -> None:
    assert RunInterrupted("ended", where="", remedy="", signal_number=number).exit_code == exit_code


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_one_before_the_run_has_begun_has_the_same_exit_code(number: int, exit_code: int) -> None:
    program = (
        "import os\n"
        "from llamafarm import cli, terminal\n"
        f"def setup(): os.kill(os.getpid(), {int(number)})\n"
        "terminal.warn = lambda _: setup()\n"  # the second comes while the first is answered
        "cli.app.registered_commands[0].callback = cli._guard(setup)\n"
        "cli.main()\n"
    )
    arguments = [sys.executable, "-c", program, "setup"]
    assert subprocess.run(arguments, capture_output=True).returncode == exit_code
