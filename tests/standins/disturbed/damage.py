"""Checkpoints that are not what was written: the one before is taken, or the run is refused; never silent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from disturbed.arena import Arena, Findings, record_of
from disturbed.witness import at_step
from llamafarm.training.checkpoint import MANIFEST_FILE, STATE_FILE, TRAINING_FILE, checkpoints_in
from llamafarm.training.session import Session

_DIED = 99
_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    TRAINING_FILE,
    STATE_FILE,
    MANIFEST_FILE,
)
Damage = Callable[[Path, Random], str]


def die_with_checkpoints(arena: Arena, step: int) -> Path:
    """Return a run that died before `step`, with all checkpoints until then on the disk."""

    def die(session: Session) -> None:
        session._saver.wait()
        os._exit(_DIED)

    run = arena.make()
    assert arena.start(run, disturbance=at_step(step, die)).end().exit_code == _DIED
    return run


def damage_checkpoints(arena: Arena, num_tries: int) -> Findings:
    """Damage the newest checkpoint of a run that died, in every way in turn, and go on with it."""
    found = Findings("damage")
    died = die_with_checkpoints(arena, 33)
    for index in range(num_tries):
        kind, damage = list(_KINDS.items())[index % len(_KINDS)]
        run = arena.copy(died)
        newest = checkpoints_in(run / "checkpoints")[0]
        what = damage(newest, arena.draw)
        end = arena.finish(run)
        found.num_tried += 1
        problem = None
        if end.exit_code in (2, 3):
            found.add("refused")
            problem = "it has a final model" if (run / "final_model").is_dir() else None
        elif end.exit_code:
            problem = str(end)
        else:
            problem = arena.difference(run)
            went_back = record_of(run)["resumed"][0]["after_step"] < 32
            found.add("went back" if went_back else "harmless")
            if went_back and f"warning: {newest}" not in end.said:
                problem = f"it was not warned of: {end}"
        if problem:
            found.failures.append(f"{kind}, {what}: {problem}")
        arena.forget(run)
    arena.forget(died)
    return found


def _truncate(checkpoint: Path, draw: Random) -> str:
    file, part = checkpoint / draw.choice(_FILES), draw.randrange(16)
    os.truncate(file, file.stat().st_size * part // 16)
    return f"{file.name} at {part}/16"


def _flip(checkpoint: Path, draw: Random) -> str:
    file = checkpoint / draw.choice(_FILES)
    content = bytearray(file.read_bytes())
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {place} of {file.name}"


def _zero(checkpoint: Path, draw: Random) -> str:
    file = checkpoint / draw.choice(_FILES)
    content = bytearray(file.read_bytes())
    start = draw.randrange(len(content))
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    file.write_bytes(content)
    return f"{file.name} from {start}"


def _delete(checkpoint: Path, draw: Random) -> str:
    file = checkpoint / draw.choice(_FILES)
    file.unlink()
    return file.name


def _add(checkpoint: Path, draw: Random) -> str:
    name = draw.choice(
        ["optimizer.pt", "rng_state.pth", "adapter_model.bin", "x", ".hidden", "state.json.bak"]
    )
    (checkpoint / name).write_bytes(b"\x80\x04")
    return name


def _empty(checkpoint: Path, draw: Random) -> str:
    for file in draw.sample(_FILES, draw.randint(1, len(_FILES))):
        os.truncate(checkpoint / file, 0)
    return "several emptied"


def _edit_manifest(checkpoint: Path, draw: Random) -> str:
    """Change one entry: a digit of a hash, a size, a name; or the form."""
    path = checkpoint / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    name = draw.choice(sorted(manifest))
    kind = draw.randrange(6)
    if kind == 0:
        manifest[name]["sha256"] = hashlib.sha256(manifest[name]["sha256"].encode()).hexdigest()
    elif kind == 1:
        manifest[name]["bytes"] += draw.choice((-1, 1))
    elif kind == 2:
        manifest["../" + name] = manifest.pop(name)
    elif kind == 3:
        manifest.pop(name)
    elif kind == 4:
        manifest = [manifest]
    else:
        manifest = {}
    path.write_text(json.dumps(manifest))
    return f"kind {kind}, {name}"


def _cut_with_its_manifest(checkpoint: Path, draw: Random) -> str:
    file = checkpoint / draw.choice([name for name in _FILES if name != MANIFEST_FILE])
    os.truncate(file, file.stat().st_size * draw.randrange(16) // 16)
    _rewrite_manifest(checkpoint)
    return file.name


def _drop_with_its_manifest(checkpoint: Path, draw: Random) -> str:
    file = checkpoint / draw.choice([name for name in _FILES if name != MANIFEST_FILE])
    file.unlink()
    _rewrite_manifest(checkpoint)
    return file.name


def _edit_state_with_its_manifest(checkpoint: Path, draw: Random) -> str:
    path = checkpoint / STATE_FILE
    state = json.loads(path.read_text())
    name = draw.choice(sorted(state))
    if draw.random() < 0.5 or not isinstance(state[name], dict) or not state[name]:
        what = f"without {name}"
        state.pop(name)
    else:
        inner = draw.choice(sorted(state[name]))
        what = f"without {name}.{inner}"
        state[name].pop(inner)
    path.write_text(json.dumps(state))
    _rewrite_manifest(checkpoint)
    return what


def _put_another_in_its_place(checkpoint: Path, draw: Random) -> str:
    """Have the checkpoint of another step, whole, under the name of the newest."""
    other = draw.choice(checkpoints_in(checkpoint.parent)[1:])
    shutil.rmtree(checkpoint)
    shutil.copytree(other, checkpoint)
    return other.name


def _cut_metrics(checkpoint: Path, draw: Random) -> str:
    metrics = checkpoint.parent.parent / "metrics.jsonl"
    part = draw.randrange(16)
    os.truncate(metrics, metrics.stat().st_size * part // 16)
    return f"metrics at {part}/16"


def _damage_the_best(checkpoint: Path, draw: Random) -> str:
    best = checkpoints_in(checkpoint.parent)[-1]
    return f"{best.name}: {_flip(best, draw)}"


def _damage_all(checkpoint: Path, draw: Random) -> str:
    for one in checkpoints_in(checkpoint.parent):
        _flip(one, draw)
    return "all"


_KINDS: dict[str, Damage] = {
    "truncated": _truncate,
    "a bit flipped": _flip,
    "zeroed": _zero,
    "deleted": _delete,
    "added": _add,
    "emptied": _empty,
    "manifest edited": _edit_manifest,
    "cut, manifest to match": _cut_with_its_manifest,
    "dropped, manifest to match": _drop_with_its_manifest,
    "state edited, manifest to match": _edit_state_with_its_manifest,
    "another's": _put_another_in_its_place,
    "metrics cut": _cut_metrics,
    "the best damaged": _damage_the_best,
    "all damaged": _damage_all,
}


def _rewrite_manifest(checkpoint: Path) -> None:
    files = [file for file in sorted(checkpoint.iterdir()) if file.name != MANIFEST_FILE]
    entries = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in files
    }
    (checkpoint / MANIFEST_FILE).write_text(json.dumps(entries))
