"""Leave out rows that repeat others or teach something bad, as a strategy or `data clean` asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llamafarm.data.reading.files import read_row_texts
from llamafarm.data.reading.records import BadRow, DataReader, ReadOptions
from llamafarm.data.selection.corpus import trace_rows, write_lines
from llamafarm.data.selection.near_duplicates import group_near_duplicates
from llamafarm.data.selection.quality import RULES, first_broken_rules
from llamafarm.data.selection.traces import Traces, TracesWanted, first_of_repeats
from llamafarm.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Of the strategy, whose settings ask for what is left out.
_SECTION = "data_preprocessing"
_REPEATS, _NEARLY = "they repeat earlier rows", "they are nearly the same as earlier rows"


@dataclass(frozen=True, slots=True)
class CleaningRules:
    """Which rows are left out: repeated ones, ones nearly the same as earlier ones, ones of bad quality.

    `near_duplicate_threshold` is the least share of common runs of words; None leaves near ones in.
    """

    drops_repeats: bool = True
    near_duplicate_threshold: float | None = None
    filters_quality: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that were left out, why, and the setting that asks for it."""

    reason: str
    setting: str
    row_numbers: tuple[int, ...]

    def __str__(self) -> str:
        """Say how many, which and why."""
        shown = ", ".join(map(str, self.row_numbers[:5])) + (", …" if len(self.row_numbers) > 5 else "")
        return (
            f"{len(self.row_numbers)} rows are left out, because {self.reason}: rows {shown} ({self.setting})"
        )


def clean_rows(
    parts: Sequence[Traces], rules: CleaningRules
) -> tuple[list[NDArray[np.int64]], list[LeftOut]]:
    """Return which rows of each part stay, and those that do not; an earlier part keeps its rows."""
    kept = [np.arange(len(part)) for part in parts]
    left_out: list[LeftOut] = []
    if rules.drops_repeats:
        first_N = first_of_repeats(np.concatenate([part.keys_N2 for part in parts]))
        kept = _without(
            parts, kept, first_N < np.arange(len(first_N)), _REPEATS, "remove_duplicates", left_out
        )
    if rules.near_duplicate_threshold is not None:
        shingled = [part.shingled for part in parts]
        first_N = np.array(group_near_duplicates(shingled, kept, rules.near_duplicate_threshold))
        kept = _without(
            parts, kept, first_N < np.arange(len(first_N)), _NEARLY, "remove_near_duplicates", left_out
        )
    if rules.filters_quality:
        broken = [first_broken_rules(part.quality_N[rows]) for part, rows in zip(parts, kept, strict=True)]
        for place, (part, rows) in enumerate(zip(parts, kept, strict=True)):
            for number, rule in enumerate(RULES):
                gone = part.row_numbers_N[rows[broken[place] == number]]
                if len(gone):
                    setting = f"{_SECTION}.filter_quality: {rule.name}"
                    left_out.append(LeftOut(rule.meaning, setting, tuple(gone.tolist())))
            kept[place] = rows[broken[place] < 0]
    return kept, left_out


def _without(
    parts: Sequence[Traces],
    kept: Sequence[NDArray[np.int64]],
    is_gone_N: NDArray[np.bool_],
    reason: str,
    setting: str,
    left_out: list[LeftOut],
) -> list[NDArray[np.int64]]:
    """Return the rows of each part that are left; those that are gone are added to `left_out`."""
    gone_of_parts = np.split(is_gone_N, np.cumsum([len(rows) for rows in kept])[:-1])
    numbers = [
        part.row_numbers_N[rows[is_gone]]
        for part, rows, is_gone in zip(parts, kept, gone_of_parts, strict=True)
    ]
    if is_gone_N.any():
        left_out.append(LeftOut(reason, f"{_SECTION}.{setting}", tuple(np.concatenate(numbers).tolist())))
    return [rows[~is_gone] for rows, is_gone in zip(kept, gone_of_parts, strict=True)]


@dataclass(frozen=True, slots=True)
class CleanReport:
    """What `clean_file` wrote and left out."""

    file: Path
    num_rows: int
    num_kept: int
    left_out: tuple[LeftOut, ...]
    num_bad_rows: int
    bad_rows: tuple[BadRow, ...]

    def as_record(self) -> dict[str, object]:
        """Return the report as JSON has it."""
        return asdict(self)


def clean_file(path: Path, output: Path, rules: CleaningRules) -> CleanReport:
    """Write the rows of a file that stay, of a file of lines each as it stood, byte for byte.

    Rows that cannot be read are left out, too. Raises `DataError`, and `InputError` if `output` is the file.
    """
    if path.is_dir():
        raise InputError("a folder is not cleaned as a whole", where=str(path), remedy="Name one file.")
    if output.exists() and output.samefile(path):
        raise InputError(
            "the cleaned rows would replace the file that they come from",
            where=f"--output {output}",
            remedy="Choose another name.",
        )
    reader = DataReader(path, ReadOptions(filter_empty=False, skips_bad_rows=True))
    wanted = TracesWanted(rules.filters_quality, rules.near_duplicate_threshold is not None)
    with trace_rows(reader, wanted) as traces:
        (kept,), left_out = clean_rows([traces], rules)
        numbers = set(traces.row_numbers_N[kept].tolist())
    write_lines(output, (text for row_number, text in read_row_texts(path) if row_number in numbers))
    num_rows = reader.num_rows + reader.num_bad_rows
    return CleanReport(
        output, num_rows, len(kept), tuple(left_out), reader.num_bad_rows, tuple(reader.bad_rows)
    )
