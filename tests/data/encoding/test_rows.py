"""Many rows over arrays: the same rows as one by one, in memory and mapped from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.data.encoding import rows as rows_module
from llamafarm.data.encoding.rows import EncodedRow, EncodedRows, ids_of, mark_ids, marked_dtype


def make_row(length: int, number: int, largest_id: int = 30_000) -> EncodedRow:
    draw = np.random.default_rng(number)
    return EncodedRow(
        draw.integers(0, largest_id, length).astype(np.int32), draw.random(length) < 0.5, number
    )


def assert_same(found: EncodedRow, expected: EncodedRow) -> None:
    assert found.token_ids_T.tolist() == expected.token_ids_T.tolist()
    assert found.is_supervised_T.tolist() == expected.is_supervised_T.tolist()
    assert found.token_ids_T.dtype == np.int32
    assert found.row_number == expected.row_number


@pytest.mark.parametrize("num_ids", [1, 2**15, 2**15 + 1, 200_000])
def test_an_id_with_its_mark_is_one_number(num_ids: int) -> None:
    ids = np.array([0, 1, num_ids - 1, 0, num_ids - 1], np.int32)
    marks = np.array([True, False, True, False, False])
    marked = mark_ids(ids, marks).astype(marked_dtype(num_ids))
    assert marked.itemsize == (2 if num_ids <= 2**15 else 4)
    assert ids_of(marked).tolist() == ids.tolist()
    assert (marked >= 0).tolist() == marks.tolist()


_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(lengths=_lengths, at_once=st.integers(1, 40), data=st.data(), is_mapped=st.booleans())
def test_rows_chosen_and_joined_are_the_rows_one_by_one(
    lengths: list[int],
    at_once: int,
    data: st.DataObject,
    is_mapped: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    some = [make_row(length, number) for number, length in enumerate(lengths, start=1)]
    cut = data.draw(st.integers(0, len(some)))
    chosen = data.draw(st.lists(st.sampled_from(range(len(some))), max_size=20))
    parts = [EncodedRows.of(some[:cut]), EncodedRows.of(some[cut:])]
    if is_mapped:
        parts = [mapped(part, tmp_path_factory.mktemp("rows") / "ids") for part in parts]
    rows = EncodedRows.joined(parts).select(np.array(chosen, np.int64))
    expected = [some[place] for place in chosen]
    assert len(rows) == len(expected)
    for found, row in zip(rows, expected, strict=True):
        assert_same(found, row)
    assert rows.lengths_N.tolist() == [row.num_tokens for row in expected]
    assert rows.num_supervised_N.tolist() == [row.num_supervised_tokens for row in expected]
    assert rows.num_tokens == sum(row.num_tokens for row in expected)
    assert rows.num_supervised_tokens == sum(row.num_supervised_tokens for row in expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_TOKENS_AT_ONCE", at_once)
        windows = list(rows.windows())
    seen = {}
    for window in windows:
        for place, start, end in zip(window.indices_N, window.starts_N, window.ends_N, strict=True):
            seen[int(place)] = window.marked_ids_T[start:end]
    assert sorted(seen) == list(range(len(rows)))
    for place, marked in seen.items():
        assert ids_of(marked).tolist() == expected[place].token_ids_T.tolist()


def mapped(rows: EncodedRows, path: Path) -> EncodedRows:
    (source,) = rows.sources
    if not len(source):
        return rows
    path.write_bytes(source.tobytes())
    there = np.memmap(path, source.dtype, "r")
    return EncodedRows.lying_in(there, rows.lengths_N, rows.num_supervised_N, rows.row_numbers_N)


def test_a_slice_is_a_choice_of_rows() -> None:
    rows = EncodedRows.of([make_row(3, number) for number in range(1, 6)])
    assert rows[1:4:2].row_numbers_N.tolist() == [2, 4]
    assert rows[-1].row_number == 5
