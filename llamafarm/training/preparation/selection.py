"""The rows of a run: cleaned, set apart for evaluation, and kept within the lengths that are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llamafarm.data.encoding.fitting import Limits, WhenTooLong
from llamafarm.data.encoding.rows import EncodedRows
from llamafarm.data.encoding.table import EncodedTable, fit_rows
from llamafarm.data.selection.cleaning import CleaningRules, clean_rows
from llamafarm.data.selection.corpus import SPLIT_THRESHOLD, split_rows
from llamafarm.data.selection.near_duplicates import group_near_duplicates
from llamafarm.data.selection.traces import first_of_repeats
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.schema import DataPreprocessing, Strategy
from llamafarm.training.preparation.rows import Choice, Tables, is_split
from llamafarm.training.preparation.sources import repeat_by_weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The guide's recommendation where evaluation is asked for and no rows are given for it.
_RECOMMENDED_EVAL_PERCENT = 10.0
# More are never asked at the end of a run.
_MOST_HELD_OUT = 1000

# A file, and which of its conversations.
Part = tuple[EncodedTable, "NDArray[np.int64]"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows of a run, and what is to be remembered of how they were chosen.

    `held_out` has, of each file with evaluation rows, their places among all its rows as they are read,
    before those that are too long are left out; `num_leaked_rows` are the evaluation rows that are, or nearly
    are, training rows.
    """

    train_rows: EncodedRows
    eval_rows: EncodedRows
    held_out: tuple[tuple[Path, tuple[int, ...]], ...]
    num_leaked_rows: int = 0


def settle_rows(
    loaded: LoadedStrategy, tables: Tables, limits: Limits, choices: list[Choice], warnings: list[str]
) -> Selection:
    """Return the training and the evaluation rows; what was chosen and what was left out is said."""
    strategy = loaded.strategy
    for table in tables.all:
        warnings += table.report.warnings()
    kept = _clean(tables.all, strategy.data_preprocessing, warnings)
    training = list(zip(tables.training, kept, strict=False))
    evaluation: list[Part] = []
    num_leaked_rows = 0
    if tables.evaluation is not None:
        if strategy.dataset.eval_split is not None:
            path = str(tables.evaluation.report.path)
            choices.append(Choice("evaluation rows", path, "eval_file, so eval_split is not used"))
        num_leaked_rows = _warn_of_leaks(tables, kept, warnings)
        evaluation = [(tables.evaluation, kept[-1])]
    elif is_split(strategy):
        training, evaluation = _split(training, tables.shown, strategy, choices)
    weights = tables.weights
    if any(weight != 1 for weight in weights):
        seed = strategy.dataset.seed
        training = [
            (table, repeat_by_weight(rows, weight, seed))
            for (table, rows), weight in zip(training, weights, strict=True)
        ]
    how = strategy.dataset.when_too_long
    return Selection(
        _fit(training, limits, how, "training", warnings),
        _fit(evaluation, limits, how, "evaluation", warnings),
        tuple((table.report.path, tuple(rows[:_MOST_HELD_OUT].tolist())) for table, rows in evaluation),
        num_leaked_rows,
    )


def _fit(
    parts: Sequence[Part], limits: Limits, how: WhenTooLong, kind: str, warnings: list[str]
) -> EncodedRows:
    """Return the rows of all parts within the limits; of which file a sentence speaks is said if need be."""
    fitted = [fit_rows(table, rows, limits, how, kind) for table, rows in parts]
    for (table, _), (_, said) in zip(parts, fitted, strict=True):
        warnings += said if len(parts) == 1 else [f"{table.report.path}: {sentence}" for sentence in said]
    return EncodedRows.joined([rows for rows, _ in fitted]) if fitted else EncodedRows.of([])


def _split(
    parts: Sequence[Part], shown: str, strategy: Strategy, choices: list[Choice]
) -> tuple[list[Part], list[Part]]:
    """Return the training and the evaluation rows of each part."""
    dataset = strategy.dataset
    percent = dataset.eval_split * 100 if dataset.eval_split else _RECOMMENDED_EVAL_PERCENT
    why = "dataset.eval_split" if dataset.eval_split else "evaluation is asked for; the guide recommends 10 %"
    of_what = "the training file" if len(parts) == 1 else "the training files"
    choices.append(Choice("evaluation rows", f"{percent:g} % of {of_what}", why))
    kept = [rows for _, rows in parts]
    keys = group_near_duplicates([table.traces.shingled for table, _ in parts], kept, SPLIT_THRESHOLD)
    sides = split_rows(range(len(keys)), keys, percent, dataset.seed, shown, shuffle=dataset.shuffle)
    # Places count through all parts, one after the other.
    firsts = np.cumsum([0, *map(len, kept)])
    of_sides = []
    for side in sides:
        places = np.array(side, np.int64)
        part_of = np.searchsorted(firsts, places, side="right") - 1
        of_sides.append(
            [
                (table, rows[places[part_of == number] - firsts[number]])
                for number, (table, rows) in enumerate(parts)
            ]
        )
    return of_sides[0], of_sides[1]


def _clean(
    tables: Sequence[EncodedTable], preprocessing: DataPreprocessing, warnings: list[str]
) -> list[NDArray[np.int64]]:
    """Return the rows of each file that the strategy does not want left out; what went is said."""
    threshold = preprocessing.near_duplicate_threshold if preprocessing.remove_near_duplicates else None
    rules = CleaningRules(preprocessing.remove_duplicates, threshold, preprocessing.filter_quality)
    kept, left_out = clean_rows([table.traces for table in tables], rules)
    warnings += map(str, left_out)
    return kept


def _warn_of_leaks(tables: Tables, kept: Sequence[NDArray[np.int64]], warnings: list[str]) -> int:
    """Warn of evaluation rows that are, or nearly are, training rows, and return how many."""
    assert tables.evaluation is not None
    num_train = sum(map(len, kept[:-1]))
    traces = [table.traces for table in tables.all]
    keys = [part.keys_N2[rows] for part, rows in zip(traces, kept, strict=True)]
    is_repeat = first_of_repeats(np.concatenate(keys))[num_train:] < num_train
    numbers, path = traces[-1].row_numbers_N[kept[-1]], tables.evaluation.report.path
    if is_repeat.any():
        warnings.append(
            f"{is_repeat.sum()} evaluation rows are training rows, too, so that their loss flatters: "
            f"{_show_numbers(numbers[is_repeat])} of {path}; "
            "data_preprocessing.remove_duplicates: true drops them"
        )
    groups = group_near_duplicates([part.shingled for part in traces], kept, SPLIT_THRESHOLD)
    is_near = (np.array(groups[num_train:], np.int64) < num_train) & ~is_repeat
    if is_near.any():
        warnings.append(
            f"{is_near.sum()} evaluation rows are nearly training rows, so that their loss flatters: "
            f"{_show_numbers(numbers[is_near])} of {path}; "
            "data_preprocessing.remove_near_duplicates: true drops them"
        )
    return int(is_repeat.sum() + is_near.sum())


def _show_numbers(row_numbers: NDArray[np.int64]) -> str:
    more = ", …" if len(row_numbers) > 5 else ""
    return f"rows {', '.join(map(str, row_numbers[:5].tolist()))}{more}"
