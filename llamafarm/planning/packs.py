"""How many tokens a pack may have: what each kind of device is fast with, and the smaller ones below it."""

from __future__ import annotations

from collections.abc import Iterator

# Tokens of a pack by device. On a CPU a pack of any size reads all weights from memory twice, and starts
# thousands of small operations: 1,024 tokens take a tenth longer. A GPU wants more to keep busy.
_PACK_TOKENS = {"cpu": 2048, "mps": 2048, "cuda": 8192}
_FEWEST_PACK_TOKENS = 64


def choose_pack_tokens(device_kind: str) -> int:
    """Return how many tokens a pack has on a kind of device where memory is plenty."""
    return _PACK_TOKENS[device_kind]


def pack_tokens_from(largest: int, longest_row_tokens: int) -> Iterator[int]:
    """Yield sizes to try, largest first and halved: to the longest row, which fills a pack of its own."""
    fewest = max(min(longest_row_tokens, largest), _FEWEST_PACK_TOKENS)
    size = largest
    while size > fewest:
        yield size
        size //= 2
    yield fewest
