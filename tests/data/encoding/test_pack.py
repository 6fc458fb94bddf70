"""Packs: every row once, nothing over the limit, targets that are the next tokens of the same document."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.data.encoding.pack import Pack, build_pack, pack_rows
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


def rows_and_tokens_of(pack: Pack) -> list[tuple[int, int]]:
    return list(zip(pack.target_rows.tolist(), pack.targets_S.tolist(), strict=True))


def supervised_tokens_of(rows: list[EncodedRow], pack: Pack) -> list[tuple[int, int]]:
    """Return each supervised token of a pack's rows after the row's index, read from the rows themselves."""
    return [
        (index, int(token))
        for index in pack.row_indices
        for token, is_supervised in zip(
            rows[index].token_ids_T[1:], rows[index].is_supervised_T[1:], strict=True
        )
        if is_supervised
    ]


@settings(max_examples=80, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.sampled_from([0, 40, 70]), st.integers(1, 40)), min_size=1, max_size=20),
    share_supervised=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    max_pack_tokens=st.integers(1, 400),
    shares_prefixes=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_each_target_is_of_the_row_that_has_it(
    shapes: list[tuple[int, int]],
    share_supervised: float,
    max_pack_tokens: int,
    shares_prefixes: bool,
    order: np.random.Generator,
) -> None:
    rows = []
    for number, (num_shared, num_own) in enumerate(shapes):
        own = make_row(num_own, number, share_supervised)
        beginning = np.arange(2000, 2000 + num_shared, dtype=np.int32)
        rows.append(
            EncodedRow(
                np.concatenate([beginning, own.token_ids_T]),
                np.concatenate([np.zeros(num_shared, np.bool_), own.is_supervised_T]),
                number,
            )
        )
    indices = list(range(len(rows)))
    order.shuffle(indices)  # type: ignore[arg-type]
    packs = pack_rows(rows, indices, max_pack_tokens, shares_prefixes=shares_prefixes)
    num_targets_N = np.zeros(len(rows), np.int64)
    for pack in packs:
        assert rows_and_tokens_of(pack) == supervised_tokens_of(rows, pack)
        num_targets_N += np.bincount(pack.target_rows, minlength=len(rows))
    assert num_targets_N.tolist() == [row.num_supervised_tokens for row in rows]


def test_targets_are_of_their_rows_after_a_shared_prefix() -> None:
    rows = [
        EncodedRow(np.array([*range(64), *own], np.int32), np.arange(64 + len(own)) > 64, number)
        for number, own in enumerate([[70, 71, 72], [80, 81], [90, 91, 92, 93]])
    ]
    (pack,) = pack_rows(rows, [2, 0, 1], 1000, shares_prefixes=True)
    assert pack.has_prefix and pack.num_tokens < sum(row.num_tokens for row in rows)
    assert sorted(rows_and_tokens_of(pack)) == [(0, 71), (0, 72), (1, 81), (2, 91), (2, 92), (2, 93)]


def test_a_pack_without_targets_has_no_rows_of_them() -> None:
    pack = build_pack([make_row(4, 1, 0.0), make_row(1, 2, 1.0)], [3, 5])
    assert pack.target_rows.tolist() == []
    assert pack.target_rows.dtype == np.int64
