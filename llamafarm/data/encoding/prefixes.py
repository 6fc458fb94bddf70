"""What many rows begin with, a system prompt or a long instruction: found by token ids, computed once a pack.

Only what is not trained on can be shared, but for its last token, which predicts another one in each row: so
a shared prefix ends before the first token that predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamafarm.data.encoding.rows import EncodedRow

# Prefixes are whole multiples of this: what is shorter saves nothing, and kernels meet few lengths.
_UNIT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Rows that begin with the same `num_tokens` tokens; 0 for those that share nothing."""

    num_tokens: int
    row_indices: list[int]


def find_shared_prefixes(rows: Sequence[EncodedRow], indices: Sequence[int]) -> list[SharedPrefix]:
    """Return the rows that `indices` name by what they begin with, each of them once.

    Among rows that begin alike, the length is chosen that spares the most tokens.
    """
    alone: list[int] = []
    alike: dict[bytes, list[tuple[int, EncodedRow]]] = {}
    for index in indices:
        row = rows[index]
        if _shareable_tokens(row) < _UNIT_TOKENS:
            alone.append(index)
        else:
            alike.setdefault(row.token_ids_T[:_UNIT_TOKENS].tobytes(), []).append((index, row))
    shared = []
    for members in alike.values():
        first = members[0][1]
        commons = [_common_tokens(first, row) for _, row in members]
        # The most rows share the shortest length, the fewest the longest.
        rising = sorted(commons, reverse=True)
        spared, num_tokens = max((place * length, length) for place, length in enumerate(rising))
        if not spared:
            alone += [index for index, _ in members]
            continue
        kept = [common >= num_tokens for common in commons]
        shared.append(
            SharedPrefix(
                num_tokens, [index for (index, _), is_kept in zip(members, kept, strict=True) if is_kept]
            )
        )
        alone += [index for (index, _), is_kept in zip(members, kept, strict=True) if not is_kept]
    return ([SharedPrefix(0, alone)] if alone else []) + shared


def _shareable_tokens(row: EncodedRow) -> int:
    """Return how many first tokens neither are trained on nor predict one that is."""
    marks_T = row.is_supervised_T[1:]
    return int(marks_T.argmax()) if marks_T.any() else row.num_tokens - 1


def _common_tokens(one: EncodedRow, other: EncodedRow) -> int:
    """Return how many tokens two rows begin with together, in whole units, of those that can be shared."""
    most = min(_shareable_tokens(one), _shareable_tokens(other))
    differs_T = one.token_ids_T[:most] != other.token_ids_T[:most]
    length = int(differs_T.argmax()) if differs_T.any() else most
    return length // _UNIT_TOKENS * _UNIT_TOKENS
