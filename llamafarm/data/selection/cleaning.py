"""Leave out rows that repeat others or teach something bad, as a strategy or `data clean` asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llamafarm.data.conversation import Conversation
from llamafarm.data.reading.files import read_row_texts
from llamafarm.data.reading.records import BadRow, ReadOptions, read_data_file
from llamafarm.data.selection.corpus import conversation_key, drop_repeats, write_lines
from llamafarm.data.selection.near_duplicates import NearDuplicates
from llamafarm.data.selection.quality import filter_quality
from llamafarm.errors import InputError

# Of the strategy, whose settings ask for what is left out.
_SECTION = "data_preprocessing"


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
    parts: Sequence[Sequence[Conversation]], rules: CleaningRules
) -> tuple[list[list[Conversation]], list[LeftOut]]:
    """Return the rows of each part that stay, and those that do not; an earlier part keeps its rows."""
    kept = [list(part) for part in parts]
    left_out: list[LeftOut] = []
    if rules.drops_repeats:
        kept = _without_repeats(kept)
        left_out += _difference(
            parts, kept, "they repeat earlier rows", "data_preprocessing.remove_duplicates"
        )
    if rules.near_duplicate_threshold is not None:
        before = kept
        seen = NearDuplicates(rules.near_duplicate_threshold)
        kept = [[row for row in part if seen.add_if_new(row)] for part in before]
        left_out += _difference(
            before,
            kept,
            "they are nearly the same as earlier rows",
            f"{_SECTION}.remove_near_duplicates",
        )
    if rules.filters_quality:
        for place, part in enumerate(kept):
            kept[place], removed = filter_quality(part)
            left_out += [
                LeftOut(
                    found.rule.meaning,
                    f"data_preprocessing.filter_quality: {found.rule.name}",
                    found.row_numbers,
                )
                for found in removed
            ]
    return kept, left_out


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
    data = read_data_file(path, ReadOptions(filter_empty=False, skips_bad_rows=True))
    (kept,), left_out = clean_rows([data.conversations], rules)
    numbers = {row.row_number for row in kept}
    write_lines(output, [text for row_number, text in read_row_texts(path) if row_number in numbers])
    num_rows = len(data.conversations) + data.num_bad_rows
    return CleanReport(output, num_rows, len(kept), tuple(left_out), data.num_bad_rows, data.bad_rows)


def _without_repeats(parts: Sequence[Sequence[Conversation]]) -> list[list[Conversation]]:
    kept = [drop_repeats(part) for part in parts]
    earlier = {conversation_key(row) for row in kept[0]}
    return [kept[0], *([row for row in part if conversation_key(row) not in earlier] for part in kept[1:])]


def _difference(
    before: Sequence[Sequence[Conversation]],
    after: Sequence[Sequence[Conversation]],
    reason: str,
    setting: str,
) -> list[LeftOut]:
    stayed = {id(row) for part in after for row in part}
    gone = tuple(row.row_number for part in before for row in part if id(row) not in stayed)
    return [LeftOut(reason, setting, gone)] if gone else []
