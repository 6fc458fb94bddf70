"""What fits and what is worth it, by arithmetic on plain numbers; no torch here."""

from __future__ import annotations

# Tokens of a pack by device. On a CPU the matrix products are at their fastest from 512 tokens on and
# activations of 1,024 still fit its caches; a GPU wants more to keep busy.
_PACK_TOKENS = {"cpu": 1024, "mps": 2048, "cuda": 8192}


def choose_pack_tokens(device_kind: str) -> int:
    """Return how many tokens a pack may have on a kind of device."""
    return _PACK_TOKENS[device_kind]
