"""Scripts of a checkout find its Python, with a Python of the system that lacks the libraries."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell script stands for the checkout's Python")


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A checkout with nothing in it but the scripts and what they import first."""
    (tmp_path / "llamafarm").mkdir()
    shutil.copy(repository / "cli.py", tmp_path)
    shutil.copytree(repository / "demos", tmp_path / "demos", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "interpreter.py"):
        shutil.copy(repository / "llamafarm" / name, tmp_path / "llamafarm")
    return tmp_path


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S: without the folders where libraries are installed.
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=60,
    )


SCRIPTS = ["cli.py", "demos/create_data_split.py", "demos/demo3_training.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_an_environment_it_is_said_how_to_make_one(checkout: Path, script: str) -> None:
    said = run(checkout, script, "--help")
    assert (said.returncode, said.stdout) == (3, "")
    lines = said.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "at", "try"]
    assert "make setup" in lines[2]
    assert str(checkout) in lines[1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_environment_of_the_checkout_is_used(checkout: Path, script: str) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "again:" "$@"\nexit 7\n', encoding="utf-8")
    python.chmod(0o755)
    said = run(checkout, script, "--input", "a b")
    assert (said.returncode, said.stderr) == (7, "")
    assert said.stdout == f"again: {script} --input a b\n"


def test_an_environment_without_the_libraries_is_not_started_for_ever(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    assert run(checkout, "cli.py", "doctor").returncode == 3
