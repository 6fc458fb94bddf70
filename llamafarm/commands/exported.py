"""What is said of an export, whichever verb made it, and how it comes into Ollama."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from llamafarm import terminal

if TYPE_CHECKING:
    from llamafarm.deploy.convert import Exported
    from llamafarm.deploy.verify import Verified


def show_exported(exported: Exported) -> dict[str, Any]:
    """Say what was written, and return it for `--json`."""
    for note in exported.notes:
        terminal.warn(note)
    if exported.verified is not None:
        show_verified(exported.verified)
    terminal.say(f"wrote {exported.path}, {exported.num_bytes / 2**20:,.1f} MiB")
    return {
        "verified": None if exported.verified is None else exported.verified.as_record(),
        "path": str(exported.path),
        "format": exported.format,
        "bytes": exported.num_bytes,
        "notes": list(exported.notes),
    }


def show_verified(verified: Verified) -> None:
    """Print what was shown of a file."""
    if verified.why_not_compared is not None:
        terminal.warn(verified.why_not_compared)
        terminal.say(f"{verified.num_conversations} conversations have the same token ids")
        return
    terminal.heading("verified against the trained model")
    terminal.columns(verified.rows())
    if verified.base_divergence is not None:
        terminal.say(f"the base model's divergence is {verified.base_divergence:.5f}")
    if verified.is_lost_in_rounding:
        terminal.warn("rounding changes the model more than training did: the adapter does hardly anything")
    if not verified.num_conversations:
        return
    terminal.say(
        f"{verified.num_conversations} conversations have the same token ids; "
        f"{verified.num_equal_answers} of {verified.num_answers} greedy answers are the same, "
        f"{verified.num_stopped} end by themselves (trained: {verified.num_trained_stopped})"
    )


def give_to_ollama(exported: Exported, *, pushes: bool = False) -> dict[str, Any]:
    """Make the model in Ollama where one is there; else say what does it later."""
    from llamafarm.deploy.hand_over import hand_over
    from llamafarm.inference.ollama import Ollama

    assert exported.gguf is not None and exported.modelfile is not None and exported.name is not None
    by_hand = f"ollama create {exported.name} -f {shlex.quote(str(exported.modelfile_path))}"
    server = Ollama()
    is_there = server.is_there()
    server.close()
    if not is_there and not pushes:
        terminal.warn(f"nothing answers at {server.address}: start Ollama, then run  {by_hand}")
        return {"ollama": None, "next": by_hand}
    given = hand_over(exported.gguf, exported.modelfile, exported.name, pushes=pushes)
    terminal.say(f"{given.name} is in Ollama {given.version} at {given.address}:  ollama run {given.name}")
    return {"ollama": given.name, "next": f"ollama run {given.name}"}
