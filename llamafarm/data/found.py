"""Rows in which something was found, as a sentence names them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_ROWS_NAMED = 5


@dataclass(slots=True)
class FoundRows:
    """How many rows there are, and the numbers of the first."""

    num_rows: int = 0
    first_rows: list[int] = field(default_factory=list)

    def add(self, row_numbers: NDArray[np.int64]) -> None:
        """Count rows in."""
        self.num_rows += len(row_numbers)
        self.first_rows += row_numbers[: _MOST_ROWS_NAMED - len(self.first_rows)].tolist()

    def __bool__(self) -> bool:
        return self.num_rows > 0

    def __str__(self) -> str:
        """Return the numbers as they are shown."""
        more = ", …" if self.num_rows > len(self.first_rows) else ""
        return ", ".join(map(str, self.first_rows)) + more
