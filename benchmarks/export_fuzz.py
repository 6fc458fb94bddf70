"""Damaged GGUF and safetensors files: ours is an error each time, in little memory and time.

python benchmarks/export_fuzz.py [--files 10000] [--loads 300]

Half of the files are GGUF, half safetensors, each with one thing wrong: cut, a bit flipped, zeros, absurd
numbers, bytes at random, mostly in the header. Ours read all of them; llama.cpp, in its own process, is given
some. What is damaged in the numbers of a weight can be read, and is not an error.
"""

from __future__ import annotations

import argparse
import collections
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llamafarm import terminal  # noqa: E402
from llamafarm.errors import LlamaFarmError  # noqa: E402

_ABSURD = [
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
    bytes(8),
    b"\x00" * 7 + b"\x80",
    b"\xff\xff\xff\xff\x00\x00\x00\x00",
]


def mutate(whole: bytes, num_header_bytes: int, generator: random.Random) -> bytes:
    """Return a file with one thing wrong."""
    changed = bytearray(whole)
    most = num_header_bytes if generator.random() < 0.9 else len(whole) - 8
    # Where numbers stand close together, most often.
    place = generator.randrange(min(most, 400) if generator.random() < 0.5 else most)
    kind = generator.randrange(5)
    if kind == 0:
        return bytes(changed[:place])
    if kind == 1:
        changed[place] ^= 1 << generator.randrange(8)
    elif kind == 2:
        changed[place : place + 8] = generator.choice(_ABSURD)
    elif kind == 3:
        changed[place : place + 4] = generator.randbytes(4)
    else:
        del changed[place : place + generator.randrange(1, 9)]
    return bytes(changed)


def run(
    name: str, whole: bytes, num_header_bytes: int, opens: Callable[[], object], path: Path, num: int
) -> None:
    """Open so many damaged files, and print what came of them."""
    generator = random.Random(0)
    outcomes: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for _ in range(num):
        path.write_bytes(mutate(whole, num_header_bytes, generator))
        started = time.monotonic()
        try:
            opens()
            outcomes["read"] += 1
        except LlamaFarmError:
            outcomes["our error"] += 1
        except Exception as error:
            outcomes[f"FAULT {type(error).__name__}: {str(error)[:60]}"] += 1
        slowest = max(slowest, time.monotonic() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    found = ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))
    terminal.result(
        f"{name}: {found}; slowest {slowest:.2f} s; memory {memory:,.0f} MiB, in a child {child:,.0f} MiB"
    )
    if slowest > 5 or child > 1024 or any(what.startswith("FAULT") for what in outcomes):
        raise SystemExit(1)


def main() -> None:
    """Open damaged files in every way that we open them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--loads", type=int, default=300)
    options = parser.parse_args()
    from llamafarm.deploy.convert import ExportWishes, export
    from llamafarm.deploy.gguf.read import read_header
    from llamafarm.deploy.stored import StoredWeights
    from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer

    base = ROOT / "llamafarm" / "assets" / "cria-5m"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole_weights = (base / "model.safetensors").read_bytes()
        weights = folder / "model.safetensors"

        def read_weights() -> None:
            with StoredWeights(folder) as stored:
                for tensor in stored.entries:
                    stored.read(tensor)

        header_bytes = 8 + int.from_bytes(whole_weights[:8], "little")
        run("safetensors", whole_weights, header_bytes, read_weights, weights, options.files // 2)
        file = folder / "m.gguf"
        export(base, file, ExportWishes("gguf", "q8_0", verifies=False))
        whole = file.read_bytes()

        def load() -> None:
            with LlamaServer(file, LlamaOptions(64)) as server:
                server.continue_greedily([5, 6, 7], 2)

        run("GGUF, its header", whole, 200_000, lambda: read_header(file), file, options.files // 2)
        run("GGUF, in llama.cpp", whole, 200_000, load, file, options.loads)


if __name__ == "__main__":
    main()
