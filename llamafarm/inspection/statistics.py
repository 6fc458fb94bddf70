"""A data file in figures: lengths in tokens, what is trained on, repeats, and oddities of the text.

One pass, with a few bytes a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llamafarm.data.encoding.block import EncodedBlock
from llamafarm.data.encoding.fitting import Limits
from llamafarm.data.found import FoundRows
from llamafarm.data.selection.oddities import TEXT_ODDITIES
from llamafarm.data.selection.traces import first_of_repeats

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PERCENTILES = (5, 25, 50, 75, 95, 99)
_REPEATS, _UNTRAINED = "repeats an earlier row", "nothing to train on"


@dataclass(frozen=True, slots=True)
class Statistics:
    """The figures of a file. Lengths are in tokens. Axes: R, the rows that are trained on."""

    num_rows: int
    lengths_R: NDArray[np.int32]
    num_supervised_R: NDArray[np.int32]
    oddities: dict[str, FoundRows]

    @property
    def num_tokens(self) -> int:
        """Return the tokens of all rows."""
        return int(self.lengths_R.sum(dtype=np.int64))

    @property
    def supervised_share(self) -> float:
        """Return which part of the tokens is trained on."""
        return int(self.num_supervised_R.sum(dtype=np.int64)) / max(self.num_tokens, 1)

    def percentiles(self) -> dict[str, int]:
        """Return the shortest, the longest, and the usual percentiles between."""
        lengths = self.lengths_R
        values = np.percentile(lengths, _PERCENTILES).astype(int).tolist()
        between = {f"{percent} %": value for percent, value in zip(_PERCENTILES, values, strict=True)}
        return {"shortest": int(lengths.min()), **between, "longest": int(lengths.max())}

    def histogram(self, most_bins: int = 10) -> list[tuple[int, int, int]]:
        """Return bins as (shortest, longest, rows), of equal width but for the last; all rows are in one."""
        lengths = self.lengths_R
        shortest, longest = int(lengths.min()), int(lengths.max())
        width = -(-(longest - shortest + 1) // most_bins)
        starts = range(shortest, longest + 1, width)
        counts, _ = np.histogram(lengths, bins=[*starts, longest + 1])
        return [
            (start, min(start + width - 1, longest), int(count))
            for start, count in zip(starts, counts, strict=True)
        ]


def measure_rows(blocks: Iterable[EncodedBlock], limits: Limits) -> Statistics:
    """Return the figures of a file's blocks; rows above a limit are an oddity. There is at least one row."""
    lengths, supervised, keys, row_numbers = [], [], [], []
    oddities: dict[str, FoundRows] = {}
    for block in blocks:
        traces = block.traces
        lengths.append(block.lengths_R)
        supervised.append(block.num_supervised_R)
        keys.append(traces.keys_N2)
        row_numbers.append(traces.row_numbers_N)
        for excess in limits.excesses(block.lengths_R, block.num_supervised_R):
            is_long_N = _sums(block, excess.is_above_N) > 0
            _add(oddities, f"above {excess.setting}, {excess.limit} tokens", traces.row_numbers_N[is_long_N])
        is_untrained_N = _sums(block, block.num_supervised_R) == 0
        _add(oddities, _UNTRAINED, traces.row_numbers_N[is_untrained_N])
        for bit, name in enumerate(TEXT_ODDITIES):
            _add(oddities, name, traces.row_numbers_N[traces.oddities_N >> bit & 1 > 0])
    first_N = first_of_repeats(np.concatenate(keys))
    numbers = np.concatenate(row_numbers)
    repeats = {_REPEATS: FoundRows()}
    repeats[_REPEATS].add(numbers[first_N < np.arange(len(first_N))])
    return Statistics(len(numbers), np.concatenate(lengths), np.concatenate(supervised), repeats | oddities)


def _add(oddities: dict[str, FoundRows], name: str, row_numbers: NDArray[np.int64]) -> None:
    oddities.setdefault(name, FoundRows()).add(row_numbers)


def _sums(block: EncodedBlock, of_rows_R: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return the sums of something over the rows of each conversation."""
    number = len(block.num_rows_N)
    of_conversation = np.repeat(np.arange(number), block.num_rows_N)
    return np.bincount(of_conversation, of_rows_R, number).astype(np.int64)
