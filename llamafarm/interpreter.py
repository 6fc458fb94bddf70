"""Run a script of a checkout with the Python that has the libraries.

The guide types `python demos/…`; in a checkout that `make setup` or `uv sync` prepared, the libraries are in
its `.venv`, which that `python` need not be. Nothing but the standard library is imported here.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

_ROOT = Path(__file__).parent.parent
# Set for the second start, so that a broken environment is told and not started for ever.
_STARTED_AGAIN = "LLAMAFARM_STARTED_AGAIN"


def command_of(module: str) -> list[str]:
    """Return the command that runs one of our modules in a process of its own, with `environment_of_ours`.

    With -P, or files of the working directory that are called as modules are would be run in their place.
    """
    return [sys.executable, "-P", "-m", module]


def environment_of_ours() -> dict[str, str]:
    """Return the environment of such a process, in which this package is found."""
    paths = filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def use_environment_of_checkout() -> None:
    """Start this script again with the checkout's own Python if this one lacks the libraries.

    Exits with code 3 and what to do if the checkout has none either.
    """
    if all(map(find_spec, ("torch", "transformers", "typer"))):
        return
    python = _ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.is_file() and _STARTED_AGAIN not in os.environ:
        os.environ[_STARTED_AGAIN] = "1"
        os.execv(python, [str(python), *sys.argv])  # noqa: S606
    print(  # noqa: T201
        f"error: torch, transformers or typer is not installed for {sys.executable}\n"
        f"at:    {_ROOT}\n"
        "try:   Run `make setup` there once, or start the command with `uv run`.",
        file=sys.stderr,
    )
    raise SystemExit(3)
