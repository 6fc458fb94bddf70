"""Rows per step that `auto` leaves to the guide's use cases."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.strategy.schema import TrainingArgs
from llamafarm.training.preparation.batch import settle_batch_size

Count = int | Literal["auto"]


def settle(batch: Count, accumulation: Count, num_rows: int, most_rows: int) -> tuple[int, int, list[str]]:
    args = TrainingArgs(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    settled, choices = settle_batch_size(args, num_rows, most_rows, "a device")
    assert isinstance(settled.per_device_train_batch_size, int)
    assert isinstance(settled.gradient_accumulation_steps, int)
    for choice in choices:
        assert choice.value == str(getattr(settled, choice.setting))
        assert str(num_rows) in choice.why
    return (
        settled.per_device_train_batch_size,
        settled.gradient_accumulation_steps,
        [choice.setting for choice in choices],
    )


BATCH, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"


@pytest.mark.parametrize(
    ("batch", "accumulation", "num_rows", "most_rows", "expected"),
    [
        ("auto", "auto", 99, 8, (4, 1, [BATCH, ACCUMULATION])),
        ("auto", "auto", 100, 8, (8, 2, [BATCH, ACCUMULATION])),
        ("auto", "auto", 100, 3, (2, 8, [BATCH, ACCUMULATION])),
        ("auto", "auto", 20_000, 1, (1, 16, [BATCH, ACCUMULATION])),
        ("auto", 8, 500, 8, (2, 8, [BATCH])),
        ("auto", 64, 500, 8, (1, 64, [BATCH])),
        (3, "auto", 500, 8, (3, 5, [ACCUMULATION])),
        (32, "auto", 500, 8, (32, 1, [ACCUMULATION])),
        (5, 7, 500, 8, (5, 7, [])),
    ],
)
def test_steps_have_the_guides_rows(
    batch: Count, accumulation: Count, num_rows: int, most_rows: int, expected: object
) -> None:
    assert settle(batch, accumulation, num_rows, most_rows) == expected


@given(st.integers(1, 10**6), st.integers(1, 64))
def test_the_device_changes_how_the_rows_are_written_and_not_how_many(num_rows: int, most_rows: int) -> None:
    batch, accumulation, _ = settle("auto", "auto", num_rows, most_rows)
    assert batch * accumulation == (4 if num_rows < 100 else 16)
    assert batch <= most_rows
