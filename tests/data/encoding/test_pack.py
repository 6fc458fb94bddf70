"""Packs: every row once, nothing over the limit, targets that are the next tokens of the same document."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.data.encoding.pack import build_pack, pack_rows
from llamafarm.data.encoding.rows import EncodedRow


def make_row(length: int, row_number: int, share_supervised: float = 0.6) -> EncodedRow:
    draw = np.random.default_rng(row_number)
    return EncodedRow(
        draw.integers(0, 1000, length).astype(np.int32), draw.random(length) < share_supervised, row_number
    )


_lengths = st.lists(st.integers(1, 30), min_size=1, max_size=25)


@settings(max_examples=80, deadline=None)
@given(lengths=_lengths, max_pack_tokens=st.integers(1, 60), order=st.randoms(use_true_random=False))
def test_every_row_is_in_one_pack_with_its_own_targets(
    lengths: list[int], max_pack_tokens: int, order: np.random.Generator
) -> None:
    rows = [make_row(length, number) for number, length in enumerate(lengths, start=1)]
    indices = list(range(len(rows)))
    order.shuffle(indices)  # type: ignore[arg-type]
    packs = pack_rows(rows, indices, max_pack_tokens)

    assert sorted(index for pack in packs for index in pack.row_indices) == sorted(indices)
    for pack in packs:
        assert pack.num_tokens <= max_pack_tokens or len(pack.row_indices) == 1
        assert pack.num_tokens == sum(pack.document_lengths)
        documents = torch.split(pack.token_ids_T, list(pack.document_lengths))
        places = torch.split(pack.position_ids_T, list(pack.document_lengths))
        expected_targets, expected_positions, start = [], [], 0
        for index, document, place in zip(pack.row_indices, documents, places, strict=True):
            row = rows[index]
            assert document.tolist() == row.token_ids_T.tolist()
            assert place.tolist() == list(range(row.num_tokens))
            supervised = [at for at in range(1, row.num_tokens) if row.is_supervised_T[at]]
            expected_targets += [int(row.token_ids_T[at]) for at in supervised]
            expected_positions += [start + at - 1 for at in supervised]
            start += row.num_tokens
        assert pack.targets_S.tolist() == expected_targets
        assert pack.supervised_positions_S.tolist() == expected_positions
        assert pack.num_supervised_tokens == sum(rows[at].num_supervised_tokens for at in pack.row_indices)


@settings(max_examples=40, deadline=None)
@given(lengths=_lengths, max_pack_tokens=st.integers(1, 60))
def test_packs_follow_from_the_lengths_alone(lengths: list[int], max_pack_tokens: int) -> None:
    groups = []
    for first_number in (1, 500):
        rows = [make_row(length, first_number + place) for place, length in enumerate(lengths)]
        packs = pack_rows(rows, range(len(rows)), max_pack_tokens)
        groups.append([pack.row_indices for pack in packs])
    assert groups[0] == groups[1]


def test_packing_wastes_little() -> None:
    rows = [make_row(length, number) for number, length in enumerate([60, 40, 50, 30, 20, 100], start=1)]
    assert [pack.num_tokens for pack in pack_rows(rows, range(6), 100)] == [100, 100, 100]


@given(lengths=_lengths, max_pack_rows=st.integers(1, 5))
def test_a_pack_has_at_most_the_rows_it_may(lengths: list[int], max_pack_rows: int) -> None:
    rows = [make_row(length, number) for number, length in enumerate(lengths, start=1)]
    packs = pack_rows(rows, range(len(rows)), 30, max_pack_rows)
    assert all(len(pack.row_indices) <= max_pack_rows for pack in packs)
    assert sorted(index for pack in packs for index in pack.row_indices) == list(range(len(rows)))


def test_a_row_longer_than_a_pack_is_whole_and_alone() -> None:
    rows = [make_row(5, 1), make_row(50, 2), make_row(5, 3)]
    packs = pack_rows(rows, [0, 1, 2], 10)
    assert sorted(pack.row_indices for pack in packs) == [(0, 2), (1,)]


def test_the_example_of_the_modules_docstring() -> None:
    a = EncodedRow(np.array([10, 11, 12, 13], np.int32), np.array([False, False, True, True]), 1)
    b = EncodedRow(np.array([20, 21, 22], np.int32), np.array([True, False, True]), 2)
    pack = build_pack([a, b], [7, 9])
    assert pack.token_ids_T.tolist() == [10, 11, 12, 13, 20, 21, 22]
    assert pack.position_ids_T.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert pack.supervised_positions_S.tolist() == [1, 2, 5]
    assert pack.targets_S.tolist() == [12, 13, 22]
    assert (pack.document_lengths, pack.row_indices) == ((4, 3), (7, 9))
    assert b.is_supervised_T.tolist() == [True, False, True], "the row itself stays as it was"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_pack_moves_whole(device: str) -> None:
    pack = build_pack([make_row(4, 1), make_row(3, 2)], [0, 1])
    moved = pack.to(torch.device(device))
    tensors = moved.token_ids_T, moved.position_ids_T, moved.supervised_positions_S, moved.targets_S
    assert {tensor.device.type for tensor in tensors} == {device}
    assert (moved.document_lengths, moved.row_indices) == (pack.document_lengths, pack.row_indices)
