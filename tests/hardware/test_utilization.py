"""How busy a GPU is, as a program called nvidia-smi says it, whatever that program does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamafarm.hardware.utilization import UtilizationMeter, uuid_of

Put = Callable[[str], None]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Return a function that puts a shell script in nvidia-smi's place; without it there is none."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(script: str) -> None:
        path = folder / "nvidia-smi"
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    return write


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """No thread of the meter's is left, and no child of this process."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=2)
        assert not thread.is_alive()


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Return whether there is such a process, as a zombie too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_samples_are_parts_of_one_with_their_mean_and_the_latest(put: Put) -> None:
    put("echo 90; echo 50; echo 40; exec sleep 30")
    with UtilizationMeter("GPU-1") as meter:
        wait_for(lambda: meter.num_samples == 3)
        assert meter.latest == 0.4
        assert meter.mean == pytest.approx(0.6)
    assert meter.mean == pytest.approx(0.6)


def test_the_program_is_asked_for_the_one_gpu_in_a_loop(put: Put, tmp_path: Path) -> None:
    put(f'printf "%s\\n" "$@" > {tmp_path}/asked; echo 1; exec sleep 30')
    with UtilizationMeter("GPU-abc") as meter:
        wait_for(lambda: meter.num_samples == 1)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0] == "--id=GPU-abc"
    assert {"--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop=5"} < set(asked)


def test_the_program_has_ended_and_is_no_zombie_afterwards(put: Put, tmp_path: Path) -> None:
    put(f"echo $$ > {tmp_path}/pid; echo 10; exec sleep 30")
    with UtilizationMeter("GPU-1") as meter:
        wait_for(lambda: meter.num_samples == 1)
        pid = int((tmp_path / "pid").read_text())
        assert is_running(pid)
    assert not is_running(pid)


def test_it_ends_with_an_error_in_the_run_as_well(put: Put, tmp_path: Path) -> None:
    put(f"echo $$ > {tmp_path}/pid; echo 10; exec sleep 30")
    with pytest.raises(KeyError), UtilizationMeter("GPU-1") as meter:
        wait_for(lambda: meter.num_samples == 1)
        raise KeyError
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_a_program_that_will_not_end_is_made_to(put: Put, tmp_path: Path) -> None:
    put(f"trap '' TERM; echo $$ > {tmp_path}/pid; echo 10; while :; do sleep 0.1; done")
    started = time.monotonic()
    with UtilizationMeter("GPU-1") as meter:
        wait_for(lambda: meter.num_samples == 1)
    assert not is_running(int((tmp_path / "pid").read_text()))
    assert time.monotonic() - started < 6


def test_what_is_no_number_is_passed_over(put: Put) -> None:
    put("echo '[N/A]'; echo; echo 30; echo 'ERROR: it is lost'; exec sleep 30")
    with UtilizationMeter("GPU-1") as meter:
        wait_for(lambda: meter.num_samples == 1)
        assert (meter.latest, meter.mean) == (0.3, 0.3)


@pytest.mark.parametrize("word", ["nan", "inf", "-5", "250"])
def test_a_number_that_is_no_percentage_is_passed_over(put: Put, word: str) -> None:
    put(f"echo {word}; echo 30; exec sleep 30")
    with UtilizationMeter("GPU-1") as meter:
        wait_for(lambda: meter.latest == 0.3)
        assert (meter.num_samples, meter.mean) == (1, 0.3)


def test_bytes_that_are_no_text_do_not_end_the_reading(put: Put) -> None:
    put("printf '\\377\\376\\n'; echo 30; exec sleep 30")
    with UtilizationMeter("GPU-1") as meter:
        wait_for(lambda: meter.num_samples == 1)


@pytest.mark.parametrize("script", ["exit 9", "echo 20; exit 0"], ids=["at once", "after a sample"])
def test_a_program_that_dies_ends_no_run(put: Put, script: str) -> None:
    put(script)
    with UtilizationMeter("GPU-1") as meter:
        time.sleep(0.2)
    assert meter.num_samples == script.count("echo")


def test_a_program_that_prints_nothing_leaves_it_unknown(put: Put) -> None:
    put("exec sleep 30")
    with UtilizationMeter("GPU-1") as meter:
        time.sleep(0.1)
        assert (meter.latest, meter.mean, meter.num_samples) == (None, None, 0)


def test_without_the_program_or_an_nvidia_gpu_it_is_unknown(put: Put, tmp_path: Path) -> None:
    with UtilizationMeter("GPU-1") as meter:
        assert (meter.latest, meter.mean) == (None, None)
    put(f"echo > {tmp_path}/started; echo 50")
    with UtilizationMeter(None) as meter:
        time.sleep(0.1)
    assert meter.num_samples == 0 and not (tmp_path / "started").exists()


def test_a_program_that_cannot_be_started_is_none(put: Put, tmp_path: Path) -> None:
    put("")
    (tmp_path / "bin" / "nvidia-smi").write_bytes(b"\x7fELF no program")
    with UtilizationMeter("GPU-1") as meter:
        assert meter.mean is None


def test_a_device_that_is_no_nvidia_gpu_has_no_name() -> None:
    assert uuid_of("cpu") is None and uuid_of("mps") is None
