"""The gate before step 1: what in the rows would make training fail in silence.

Each finding has a name, by which `dataset.allow` accepts it. What is found blocks, or is only warned of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafarm.data.encoding.rows import EncodedRows, TokenWindow, ids_of
from llamafarm.data.encoding.template import ChatTemplate
from llamafarm.data.found import FoundRows
from llamafarm.errors import DataError
from llamafarm.model.hub import local_folder
from llamafarm.model.load import Base, control_token_texts
from llamafarm.model.untrained import find_untrained_tokens
from llamafarm.strategy.sections.data import FindingName

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEWEST_TOKENS_OF_A_STEP = 4
# A line break may follow the end of a text that is trained on whole, as one or two tokens.
_MOST_BLANK_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with the rows: its name, what it is, what to try, and whether it blocks."""

    name: FindingName
    problem: str
    remedy: str
    is_blocking: bool


@dataclass(slots=True)
class GateFigures:
    """What the gate looks at, counted over rows as they come.

    `end_of_turn_ids` end an answer; `untrained_tokens` are tokens that the base was never trained on, with
    their texts, and that this method will not train either.
    """

    end_of_turn_ids: frozenset[int]
    untrained_tokens: Mapping[int, str]
    num_rows: int = 0
    num_supervised_tokens: int = 0
    unsupervised: FoundRows = field(default_factory=FoundRows)
    endless: FoundRows = field(default_factory=FoundRows)
    num_rows_with: Counter[int] = field(default_factory=Counter)

    def add(self, rows: EncodedRows) -> None:
        """Count rows in."""
        self.num_rows += len(rows)
        self.num_supervised_tokens += rows.num_supervised_tokens
        self.unsupervised.add(rows.row_numbers_N[rows.num_supervised_N == 0])
        is_endless_N = np.zeros(len(rows), bool)
        for window in rows.windows():
            is_endless_N[window.indices_N] = _are_endless(window, self.end_of_turn_ids)
            self._count_untrained(window)
        self.endless.add(rows.row_numbers_N[is_endless_N])

    def _count_untrained(self, window: TokenWindow) -> None:
        if not self.untrained_tokens:
            return
        is_untrained_T = np.isin(ids_of(window.marked_ids_T), list(self.untrained_tokens))
        places = np.flatnonzero(is_untrained_T)
        ids = ids_of(window.marked_ids_T[places])
        for token_id in np.unique(ids).tolist():
            self.num_rows_with[token_id] += int((_count_between(places[ids == token_id], window) > 0).sum())


def gate_figures(base: Base, tokenizer: Any, template: ChatTemplate, method_type: str) -> GateFigures:
    """Return what counts rows for a base model, and looks for tokens that it never saw if it lies here."""
    untrained: dict[int, str] = {}
    folder = local_folder(base.source, base.cache_dir)
    if method_type != "full_finetune" and folder is not None:
        texts = control_token_texts(tokenizer)
        ids = tokenizer.convert_tokens_to_ids(texts)
        untrained = find_untrained_tokens(folder, dict(zip(ids, texts, strict=True)))
    ends = [template.end_of_turn, tokenizer.eos_token or template.end_of_turn]
    return GateFigures(frozenset(tokenizer.convert_tokens_to_ids(ends)), untrained)


def _are_endless(window: TokenWindow, end_of_turn_ids: frozenset[int]) -> NDArray[np.bool_]:
    """Return of each row whether a run of trained tokens ends with none that ends a turn.

    In a row that is trained on whole, something blank may follow the last of these.
    """
    marked_T = window.marked_ids_T
    is_trained_T = marked_T >= 0
    # Where a trained token is followed by one that is not, and at the end of a row.
    is_last_T = is_trained_T.copy()
    is_last_T[:-1] &= ~is_trained_T[1:]
    last_of_rows = window.ends_N - 1
    is_last_T[last_of_rows] = is_trained_T[last_of_rows]
    lasts = np.flatnonzero(is_last_T)
    ends = list(end_of_turn_ids)
    endless = lasts[~np.isin(marked_T[lasts], ends)]
    is_endless_N = _count_between(endless, window) > 0
    for row in np.flatnonzero(is_endless_N):
        start, end = window.starts_N[row], window.ends_N[row]
        if is_trained_T[start:end].all():
            is_endless_N[row] = not np.isin(
                marked_T[max(start, end - _MOST_BLANK_TOKENS - 1) : end], ends
            ).any()
    return is_endless_N


def _count_between(places: NDArray[np.int64], window: TokenWindow) -> NDArray[np.int64]:
    """Return how many of the places, which rise, lie in each row."""
    return np.searchsorted(places, window.ends_N) - np.searchsorted(places, window.starts_N)


def find_faults(figures: GateFigures, steps_per_epoch: int) -> Iterator[Finding]:
    """Yield what is wrong with the rows."""
    if figures.unsupervised:
        yield Finding(
            "no_supervised_tokens",
            f"{_of(figures.unsupervised, figures)} have no token that is trained on",
            "Leave such rows out, or give one of their answers a weight of 1.",
            is_blocking=True,
        )
    if figures.endless:
        yield Finding(
            "answer_without_end",
            f"{_of(figures.endless, figures)} have an answer without its end token, so that the model learns "
            "to go on",
            "Give the strategy a prompt_template.format; its answers end with the end-of-text token.",
            is_blocking=True,
        )
    yield from _find_untrained_tokens(figures)
    yield from _find_few_tokens(figures, steps_per_epoch)


def check_gate(
    figures: GateFigures, steps_per_epoch: int, allowed: Sequence[FindingName], where: str
) -> list[str]:
    """Return what is only warned of, as sentences. Raises `DataError` for what blocks and is not allowed."""
    warnings = []
    for finding in find_faults(figures, steps_per_epoch):
        if finding.name in allowed:
            continue
        if finding.is_blocking:
            raise DataError(
                finding.problem,
                where=where,
                remedy=f"{finding.remedy} dataset.allow: [{finding.name}] trains on them all the same.",
            )
        warnings.append(f"{finding.problem} (dataset.allow: [{finding.name}] accepts it). {finding.remedy}")
    return warnings


def _find_untrained_tokens(figures: GateFigures) -> Iterator[Finding]:
    used = figures.num_rows_with
    if used:
        shown = ", ".join(
            f"{text} in {used[token_id]} rows"
            for token_id, text in sorted(figures.untrained_tokens.items())
            if token_id in used
        )
        yield Finding(
            "untrained_control_tokens",
            f"the base model was never trained on {shown}, and an adapter does not train what a token is",
            "Use the instruction-tuned model, or give the strategy a prompt_template.format.",
            is_blocking=not figures.end_of_turn_ids.isdisjoint(used),
        )


def _find_few_tokens(figures: GateFigures, steps_per_epoch: int) -> Iterator[Finding]:
    per_step = figures.num_supervised_tokens / steps_per_epoch
    if per_step < _FEWEST_TOKENS_OF_A_STEP:
        yield Finding(
            "few_supervised_tokens",
            f"a step has {per_step:.2g} tokens to train on in the mean: its gradient is mostly chance",
            "Take more rows in a step: a larger batch or more accumulation.",
            is_blocking=False,
        )


def _of(found: FoundRows, figures: GateFigures) -> str:
    return f"{found.num_rows} of {figures.num_rows} training rows ({found})"
