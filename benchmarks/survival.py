"""What a run survives: kills, signals, damage, full disks, too little memory, NaN, other runs in its folder.

    python benchmarks/survival.py [--parts kills,boundaries,...] [--scale 1.0] [--seed 1] [--folder DIR]

A run of 39 steps trains an adapter on a random Llama of two layers, with dropout, accumulated micro-batches,
three epochs, a partial last batch, evaluations, the best one kept and a checkpoint every two steps. It is
disturbed in each way so often, ended by the same command, and compared with the undisturbed run: the bytes of
its adapter, and its metrics but for times. All processes are forked from this one and have one thread; the
disturbances are in `tests/standins/disturbed`. One table on stdout; failures on stderr, and exit code 1.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "standins")]
os.environ["HF_HUB_OFFLINE"] = "1"

if TYPE_CHECKING:
    from disturbed.arena import Arena, Findings

_NUM_TRIES = {
    "kills": 300,
    "boundaries": 0,
    "damage": 500,
    "signals": 100,
    "disk": 50,
    "memory": 60,
    "nan": 40,
    "starts": 100,
}


def main() -> int:
    """Run the parts asked for, and print what came of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(_NUM_TRIES))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the runs are made, on a disk with room")
    asked = parser.parse_args()
    parts = asked.parts.split(",")
    if unknown := set(parts) - set(_NUM_TRIES):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    from disturbed.arena import Arena

    has_failed = False
    with tempfile.TemporaryDirectory(prefix="llamafarm-survival-", dir=asked.folder) as folder:
        arena = Arena(Path(folder), asked.seed)
        _say(_describe(arena, asked.seed, asked.scale))
        _say("\n| part | tried | failed | what was seen | seconds |\n|---|---|---|---|---|")
        for part in parts:
            started = time.monotonic()
            found = _run_part(arena, part, asked.scale)
            _say(_row_of(found, time.monotonic() - started))
            for failure in found.failures:
                _say(f"{part}: {failure}\n", sys.stderr)
            has_failed = has_failed or bool(found.failures)
    return int(has_failed)


def _say(line: str, stream: TextIO = sys.stdout) -> None:
    stream.write(line + "\n")
    stream.flush()


def _run_part(arena: Arena, part: str, scale: float) -> Findings:
    from disturbed.boundaries import die_at_boundaries
    from disturbed.damage import damage_checkpoints
    from disturbed.disk import fill_the_disk
    from disturbed.kills import kill_at_random, signal_at_random
    from disturbed.memory import meet_nonfinite_numbers, run_out_of_memory
    from disturbed.starts import start_together

    if part == "boundaries":
        return die_at_boundaries(arena, scale)
    run: dict[str, Callable[[Arena, int], Findings]] = {
        "kills": kill_at_random,
        "damage": damage_checkpoints,
        "signals": signal_at_random,
        "disk": fill_the_disk,
        "memory": run_out_of_memory,
        "nan": meet_nonfinite_numbers,
        "starts": start_together,
    }
    return run[part](arena, max(1, round(_NUM_TRIES[part] * scale)))


def _row_of(found: Findings, seconds: float) -> str:
    seen = ", ".join(f"{name} {amount:g}" for name, amount in found.figures.items())
    return f"| {found.name} | {found.num_tried} | {len(found.failures)} | {seen} | {seconds:.0f} |"


def _describe(arena: Arena, seed: int, scale: float) -> str:
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "safetensors"))
    return (
        f"seed {seed}, scale {scale:g}, {os.cpu_count()} cores ({platform.machine()}), "
        f"Python {platform.python_version()}, {versions}; the undisturbed run takes {arena.seconds:.2f} s, "
        f"its adapter is {arena.undisturbed.adapter[:16]}"
    )


if __name__ == "__main__":
    sys.exit(main())
