"""Who loads what: floors, and the time that a start takes, which imports decide."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

# What `cli.py --help` may load beside the standard library: typer, and what typer brings along.
CLI_MAY_LOAD = {
    "llamafarm",
    "typer",
    "click",
    "shellingham",
    "annotated_doc",
    "typing_extensions",
    "colorama",
}
HEAVY = {"torch", "transformers", "peft", "tokenizers", "safetensors", "accelerate", "tensorboard"}
# Floors 0 to 2; of packages, every module in them.
LOW_FLOORS = [
    "errors",
    "terminal",
    "strategy",
    "planning",
    "hardware",
    "data.conversation",
    "data.reading.records",
    "data.selection.corpus",
]


def loaded_by(modules: Sequence[str], repository: Path) -> set[str]:
    """Return the top-level packages that importing modules loads in a fresh process."""
    code = (
        "import importlib, json, sys\n"
        "before = set(sys.modules)\n"
        f"for name in {list(modules)!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def modules_of(repository: Path, name: str) -> list[str]:
    """Return a module and, if it is a package, all in it, by their full names."""
    path = repository / "llamafarm" / Path(*name.split("."))
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    assert files
    parts = [file.relative_to(repository).with_suffix("").parts for file in files]
    return [".".join(part for part in names if part != "__init__") for names in parts]


def test_the_command_line_loads_almost_nothing(repository: Path) -> None:
    loaded = loaded_by(["llamafarm.cli"], repository)
    strangers = loaded - CLI_MAY_LOAD - set(sys.stdlib_module_names)
    assert {name for name in strangers if not name.startswith("_")} == set()


def test_help_names_every_verb_without_loading_what_they_do(repository: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['cli.py', '--help']\n"
        "try: runpy.run_path('cli.py', run_name='__main__')\n"
        "finally: print('loaded', 'torch' in sys.modules, 'pydantic' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *text, loaded = done.stdout.splitlines()
    assert loaded == "loaded False False"
    assert all(any(line.split()[:1] == [verb] for line in text) for verb in ("setup", "train", "complete"))


def test_a_slip_in_a_strategy_is_told_without_waiting_for_torch(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("s:\n  methd: {r: 4}\n")
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['cli.py', 'setup', {str(tmp_path / 's.yaml')!r}, '--verify-only']\n"
        "try: runpy.run_path('cli.py', run_name='__main__')\n"
        "finally: print('loaded', 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "loaded False\n"), done.stderr


def test_the_lowest_floors_load_without_torch(repository: Path) -> None:
    modules = [module for name in LOW_FLOORS for module in modules_of(repository, name)]
    assert "llamafarm.strategy.load" in modules
    assert loaded_by(modules, repository) & HEAVY == set()


def test_this_way_of_looking_sees_torch_where_it_is_loaded(repository: Path) -> None:
    assert loaded_by(["llamafarm.kernels.loss"], repository) & HEAVY == {"torch"}


def test_a_file_imports_only_from_floors_below_its_own(repository: Path) -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    if "0 broken" not in done.stdout:
        pytest.fail(f"import-linter checked nothing:\n{done.stdout}")
