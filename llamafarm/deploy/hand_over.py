"""An exported GGUF file given to Ollama: uploaded once, made into a model, and looked at there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafarm import terminal
from llamafarm.deploy.modelfile import Modelfile
from llamafarm.errors import MachineError
from llamafarm.inference.ollama import Ollama, Progress

_READ_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A model that is in Ollama now."""

    name: str
    address: str
    version: str


def hand_over(
    gguf: Path, modelfile: Modelfile, name: str, *, address: str | None = None, pushes: bool = False
) -> HandedOver:
    """Make a model in Ollama of a GGUF file, look at what arrived, and push it if asked to.

    Raises `MachineError` if the server is not there, is not Ollama, refuses, or shows something else then.
    """
    server = Ollama(address)
    try:
        version = server.check()
        with _shown("hashing", gguf.stat().st_size) as on_progress:
            digest = _digest_of(gguf, on_progress)
        with _shown("uploading", gguf.stat().st_size) as on_progress:
            server.upload(gguf, digest, on_progress)
        for step in server.create(name, {gguf.name: digest}, _settings_of(modelfile)):
            terminal.debug(f"ollama: {step.status}")
        _check_arrived(server, name, modelfile)
        if pushes:
            terminal.say(f"pushing {name}")
            for step in server.push(name):
                terminal.debug(f"ollama: {step.status}")
        return HandedOver(name, server.address, version)
    finally:
        server.close()


def _settings_of(modelfile: Modelfile) -> dict[str, Any]:
    settings: dict[str, Any] = {"parameters": dict(modelfile.parameters)}
    if modelfile.template is not None:
        settings["template"] = modelfile.template
    if modelfile.system is not None:
        settings["system"] = modelfile.system
    return settings


def _check_arrived(server: Ollama, name: str, modelfile: Modelfile) -> None:
    """Raise `MachineError` if what the server shows is not what was sent."""
    found = server.show(name)
    sent = {"template": modelfile.template, "system": modelfile.system}
    # Blanks at the ends are the server's to keep or not.
    wrong = [
        key for key, text in sent.items() if text is not None and str(found.get(key)).strip() != text.strip()
    ]
    if modelfile.parameters:
        shown = str(found.get("parameters", ""))
        wrong += [key for key in modelfile.parameters if key not in shown]
    if wrong:
        raise MachineError(
            f"the model {name} in Ollama has another {', '.join(wrong)} than was sent",
            where=server.address,
            remedy=f"Look at it with `ollama show {name}`; update Ollama, and convert again.",
        )


def _digest_of(path: Path, on_progress: Any) -> str:
    hashed, num_done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            hashed.update(piece)
            num_done += len(piece)
            on_progress(Progress("hashing", num_done, total))
    return f"sha256:{hashed.hexdigest()}"


@contextmanager
def _shown(label: str, num_total: int) -> Iterator[Any]:
    """Show bytes as they go by, in MiB."""
    total = max(num_total // _READ_BYTES, 1)
    with terminal.progress(f"{label} (MiB)", total, seconds_a_line=5.0) as shown:
        num_shown = 0

        def on_progress(progress: Progress) -> None:
            nonlocal num_shown
            num_done = progress.num_done // _READ_BYTES
            if num_done > num_shown:
                shown.advance("", num_done - num_shown)
                num_shown = num_done

        yield on_progress
