"""The gate before step 1: what in the rows would make training fail in silence.

Each finding has a name, by which `dataset.allow` accepts it. What is found blocks, or is only warned of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llamafarm.data.encoding.encode import EncodedRow
from llamafarm.errors import DataError
from llamafarm.strategy.sections.data import FindingName
from llamafarm.training.loop import LoopPlan

_MOST_ROWS_NAMED = 5
_FEWEST_TOKENS_OF_A_STEP = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with the rows: its name, what it is, what to try, and whether it blocks."""

    name: FindingName
    problem: str
    remedy: str
    is_blocking: bool


@dataclass(frozen=True, slots=True)
class GateFacts:
    """What the gate looks at.

    `end_of_turn_ids` end an answer; `untrained_ids` are tokens that the base was never trained on, with their
    texts, and that this method will not train either.
    """

    train_rows: Sequence[EncodedRow]
    plan: LoopPlan
    end_of_turn_ids: frozenset[int]
    untrained_tokens: dict[int, str]


def find_faults(facts: GateFacts) -> Iterator[Finding]:
    """Yield what is wrong with the rows."""
    if unsupervised := [row for row in facts.train_rows if not row.num_supervised_tokens]:
        yield Finding(
            "no_supervised_tokens",
            f"{_of(unsupervised, facts)} have no token that is trained on",
            "Leave such rows out, or give one of their answers a weight of 1.",
            is_blocking=True,
        )
    if endless := [row for row in facts.train_rows if not _ends(row, facts.end_of_turn_ids)]:
        yield Finding(
            "answer_without_end",
            f"{_of(endless, facts)} have an answer without its end token, so that the model learns to go on",
            "Give the strategy a prompt_template.format; its answers end with the end-of-text token.",
            is_blocking=True,
        )
    yield from _find_untrained_tokens(facts)
    yield from _find_few_tokens(facts)


def check_gate(facts: GateFacts, allowed: Sequence[FindingName], where: str) -> list[str]:
    """Return what is only warned of, as sentences. Raises `DataError` for what blocks and is not allowed."""
    warnings = []
    for finding in find_faults(facts):
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


def _find_untrained_tokens(facts: GateFacts) -> Iterator[Finding]:
    if not facts.untrained_tokens:
        return
    ids = np.asarray(sorted(facts.untrained_tokens))
    rows_with = dict.fromkeys(facts.untrained_tokens, 0)
    for row in facts.train_rows:
        for token_id in ids[np.isin(ids, row.token_ids_T)]:
            rows_with[int(token_id)] += 1
    used = {facts.untrained_tokens[token_id]: count for token_id, count in rows_with.items() if count}
    if used:
        ends = any(rows_with[token_id] for token_id in facts.end_of_turn_ids & facts.untrained_tokens.keys())
        shown = ", ".join(f"{text} in {count} rows" for text, count in used.items())
        yield Finding(
            "untrained_control_tokens",
            f"the base model was never trained on {shown}, and an adapter does not train what a token is",
            "Use the instruction-tuned model, or give the strategy a prompt_template.format.",
            is_blocking=ends,
        )


def _find_few_tokens(facts: GateFacts) -> Iterator[Finding]:
    per_step = sum(row.num_supervised_tokens for row in facts.train_rows) / facts.plan.steps_per_epoch
    if per_step < _FEWEST_TOKENS_OF_A_STEP:
        yield Finding(
            "few_supervised_tokens",
            f"a step has {per_step:.2g} tokens to train on in the mean: its gradient is mostly chance",
            "Take more rows in a step: a larger batch or more accumulation.",
            is_blocking=False,
        )


def _ends(row: EncodedRow, end_of_turn_ids: frozenset[int]) -> bool:
    """Return whether every run of trained tokens ends with an end of turn, but for what is blank after it."""
    is_trained_T = row.is_supervised_T
    last_of_runs = np.flatnonzero(is_trained_T & ~np.append(is_trained_T[1:], False))
    if is_trained_T.all():  # the whole row, in which a line break may follow the end
        return bool(np.isin(row.token_ids_T[-3:], list(end_of_turn_ids)).any())
    return bool(np.isin(row.token_ids_T[last_of_runs], list(end_of_turn_ids)).all())


def _of(rows: Sequence[EncodedRow], facts: GateFacts) -> str:
    numbers = ", ".join(str(row.row_number) for row in rows[:_MOST_ROWS_NAMED])
    more = ", …" if len(rows) > _MOST_ROWS_NAMED else ""
    return f"{len(rows)} of {len(facts.train_rows)} training rows ({numbers}{more})"
