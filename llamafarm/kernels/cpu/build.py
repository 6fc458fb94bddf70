"""Compile `source/` for this processor, once: the library is kept in the user's cache.

Its name there says everything that it follows from: the sources, the compiler, its options, the processor.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

from llamafarm import terminal
from llamafarm.caches import cache_folder

_SOURCE = Path(__file__).parent / "source"
# GCC first: its OpenMP is torch's, whose threads are shared; Clang would bring another beside it.
_COMPILERS = ("g++", "c++")
# No -ffast-math: what is not a number has to stay so.
_OPTIONS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-shared",
    "-fPIC",
)
_MOST_SECONDS = 300
# What a compiler needs to know; nothing else of the environment is its business.
_VARIABLES = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "CPATH", "LIBRARY_PATH")


class BuildError(Exception):
    """There is no library, and why."""


def built_library(*, anew: bool = False) -> Path:
    """Return the compiled library, which is compiled if it is not there yet, or if it is wanted `anew`.

    Raises `BuildError` where that cannot be done.
    """
    if sys.platform != "linux":
        raise BuildError("kernels for a processor are compiled on Linux only")
    compiler = _find_compiler()
    folder = _own_folder(cache_folder("kernels"))
    library = folder / f"{_key_of(compiler)}.so"
    if anew or not library.is_file():
        terminal.say(f"compiling kernels for this processor with {compiler[0]}, once: some seconds")
        _compile(compiler, library)
    return library


def _find_compiler() -> list[str]:
    """Return the command of the compiler: that of `CXX`, or the first that is there."""
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(f"CXX is no command: {error}") from error
    if chosen:
        return chosen
    for name in _COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise BuildError(f"there is no C++ compiler ({', '.join(_COMPILERS)})")


def _own_folder(folder: Path) -> Path:
    """Return a folder that nobody else can write to, since what lies there is run: this one, or a new one."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            tempfile.TemporaryFile(dir=folder).close()
            return folder
    except OSError:
        pass  # a home that is read-only or full: then for this process alone
    return _temporary_folder()


def _temporary_folder() -> Path:
    global _temporary
    if _temporary is None:
        _temporary = tempfile.TemporaryDirectory(prefix="llamafarm-kernels-")
    return Path(_temporary.name)


_temporary: tempfile.TemporaryDirectory[str] | None = None


def _key_of(compiler: list[str]) -> str:
    parts = [*compiler, _run([*compiler, "--version"]), *_OPTIONS, _processor()]
    parts += [path.name + path.read_text(encoding="utf-8") for path in sorted(_SOURCE.iterdir())]
    return sha256("\0".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """Return what tells processors apart for which the compiler would choose other instructions."""
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            found.setdefault(name.strip(), value.strip())
    return f"{platform.machine()} {found}"


def _compile(compiler: list[str], library: Path) -> None:
    """Compile under another name and rename, so that two processes at once do not meet."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".unfinished-") as folder:
        unfinished = Path(folder) / library.name
        sources = [str(path) for path in sorted(_SOURCE.glob("*.cpp"))]
        _run([*compiler, *_OPTIONS, *sources, "-o", str(unfinished)])
        os.replace(unfinished, library)


def _run(command: list[str]) -> str:
    """Return what a command prints. Raises `BuildError` with the first line of its errors."""
    environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    try:
        done = subprocess.run(  # noqa: S603 - the user's own compiler
            command,
            capture_output=True,
            check=False,
            env={**environment, "LC_ALL": "C"},
            errors="replace",
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_MOST_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise BuildError(f"{command[0]} ended with {done.returncode}: {said[:200]}")
    return done.stdout
