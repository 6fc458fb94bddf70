"""The command line as its users meet it: as a process of its own, or, where only messages matter, in ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Spoken:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def environment(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of a process: offline, with the package from this checkout, and quick to start."""
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    # Without compiled modules of torch and transformers, each start takes ten seconds more.
    cache = {"PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("pycache"))}
    is_cached = "PYTHONDONTWRITEBYTECODE" not in os.environ
    fixed = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(repository), "COLUMNS": "80"}
    return kept | fixed | ({} if is_cached else cache)


@pytest.fixture(scope="session")
def checkout(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the guide's commands name, so that they run word for word and write nothing here."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(repository / "cli.py", folder)
    shutil.copytree(repository / "demos", folder / "demos", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="session")
def run_python(checkout: Path, environment: Mapping[str, str]) -> Callable[..., Spoken]:
    """Run a script of the checkout in a process of its own, in the checkout or in another folder."""

    def run(
        script: str,
        *arguments: str,
        folder: Path = checkout,
        timeout: float = 300,
        variables: Mapping[str, str] | None = None,
    ) -> Spoken:
        done = subprocess.run(
            [sys.executable, str(checkout / script), *arguments],
            cwd=folder,
            env={**environment, **(variables or {})},
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
        return Spoken(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def speak(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Spoken]:
    """Run the command line in this process, through its own entry point."""
    from llamafarm import terminal
    from llamafarm.cli import main

    monkeypatch.setattr(terminal, "mode", terminal.Mode())

    def run(arguments: Sequence[str]) -> Spoken:
        monkeypatch.setattr(sys, "argv", ["cli.py", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return Spoken(int(left.value.code or 0), said.out, said.err)

    return run


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Return a function to every file of a folder with its content."""
    return files_in
