"""The other side of `processes`: reads a recipe and then blocks, and writes what became of each.

Loads no torch, so that it starts in a moment.
"""

from __future__ import annotations

import os
import signal
import sys

from llamafarm.data.encoding.block import BlockEncoder, EncodedBlock
from llamafarm.data.encoding.messages import read_message, rows_of, write_result
from llamafarm.errors import LlamaFarmError


def main() -> None:
    """Encode blocks until the caller has no more, or is gone."""
    # Ctrl-C is for the caller, who ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    blocks, results = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr  # whatever prints does not stand in the way
    try:
        recipe, _ = read_message(blocks)
        encoder = BlockEncoder.from_recipe(recipe)
        while True:
            described, _ = read_message(blocks)
            try:
                result: EncodedBlock | LlamaFarmError = encoder.encode(rows_of(described))
            except LlamaFarmError as error:
                result = error
            write_result(results, result)
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
