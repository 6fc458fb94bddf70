"""Packs: every row once, nothing over the limit, targets that are the next tokens of the same document."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.data.encoding.pack import MULTIPLE, Pack, build_pack, pack_rows
from llamafarm.data.encoding.rows import EncodedRow


def make_row(length: int, row_number: int, share_supervised: float = 0.6) -> EncodedRow:
    draw = np.random.default_rng(row_number)
    return EncodedRow(
        draw.integers(0, 1000, length).astype(np.int32), draw.random(length) < share_supervised, row_number
    )


def rows_of(pack: Pack) -> tuple[int, ...]:
    """Return the indices of a pack's rows, without the document that fills it up."""
    return pack.row_indices[:-1] if pack.num_fillers else pack.row_indices


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

    assert sorted(index for pack in packs for index in rows_of(pack)) == sorted(indices)
    for pack in packs:
        assert pack.num_row_tokens <= max_pack_tokens or len(rows_of(pack)) == 1
        assert pack.num_tokens == sum(pack.document_lengths)
        assert pack.num_tokens - pack.num_fillers == pack.num_row_tokens
        documents = torch.split(pack.token_ids_T, list(pack.document_lengths))
        places = torch.split(pack.position_ids_T, list(pack.document_lengths))
        expected_targets, expected_positions, start = [], [], 0
        if pack.num_fillers:
            documents, places = documents[:-1], places[:-1]
        for index, document, place in zip(rows_of(pack), documents, places, strict=True):
            row = rows[index]
            assert document.tolist() == row.token_ids_T.tolist()
            assert place.tolist() == list(range(row.num_tokens))
            supervised = [at for at in range(1, row.num_tokens) if row.is_supervised_T[at]]
            expected_targets += [int(row.token_ids_T[at]) for at in supervised]
            expected_positions += [start + at - 1 for at in supervised]
            start += row.num_tokens
        assert pack.targets_S.tolist() == expected_targets
        assert pack.supervised_positions_S.tolist() == expected_positions
        assert pack.num_supervised_tokens == sum(rows[at].num_supervised_tokens for at in rows_of(pack))


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
    packs = pack_rows(rows, range(6), 100)
    assert [pack.num_row_tokens for pack in packs] == [100, 100, 100]
    assert [pack.num_tokens for pack in packs] == [112, 112, 112]


@given(lengths=_lengths, max_pack_rows=st.integers(1, 5))
def test_a_pack_has_at_most_the_rows_it_may(lengths: list[int], max_pack_rows: int) -> None:
    rows = [make_row(length, number) for number, length in enumerate(lengths, start=1)]
    packs = pack_rows(rows, range(len(rows)), 30, max_pack_rows)
    assert all(len(rows_of(pack)) <= max_pack_rows for pack in packs)
    assert sorted(index for pack in packs for index in rows_of(pack)) == list(range(len(rows)))


def test_a_row_longer_than_a_pack_is_whole_and_alone() -> None:
    rows = [make_row(5, 1), make_row(50, 2), make_row(5, 3)]
    packs = pack_rows(rows, [0, 1, 2], 10)
    assert sorted(map(rows_of, packs)) == [(0, 2), (1,)]


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
        for index in rows_of(pack)
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
    assert pack.has_prefix and pack.num_tokens < pack.num_row_tokens == sum(row.num_tokens for row in rows)
    assert sorted(rows_and_tokens_of(pack)) == [(0, 71), (0, 72), (1, 81), (2, 91), (2, 92), (2, 93)]


def test_a_pack_without_targets_has_no_rows_of_them() -> None:
    pack = build_pack([make_row(4, 1, 0.0), make_row(1, 2, 1.0)], [3, 5])
    assert pack.target_rows.tolist() == []
    assert pack.target_rows.dtype == np.int64


@pytest.mark.parametrize("num_prefix", [0, 32])
@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=6), share=st.sampled_from([0.0, 0.6, 1.0]))
def test_a_pack_that_is_filled_up_has_its_rows_as_they_were(
    num_prefix: int, lengths: list[int], share: float
) -> None:
    prefix = np.arange(num_prefix, dtype=np.int32)
    rows = []
    for number, length in enumerate(lengths):
        own = make_row(length, number, share)
        marks = np.concatenate([np.zeros(num_prefix + 1, np.bool_), own.is_supervised_T[1:]])
        rows.append(EncodedRow(np.concatenate([prefix, own.token_ids_T]), marks, number))
    pack = build_pack(rows, range(50, 50 + len(rows)), num_prefix)
    filled = pack.filled_up()

    assert filled.num_tokens % MULTIPLE == 0
    assert filled.num_fillers == filled.num_tokens - pack.num_tokens < MULTIPLE
    assert torch.equal(filled.token_ids_T[: pack.num_tokens], pack.token_ids_T)
    assert torch.equal(filled.position_ids_T[: pack.num_tokens], pack.position_ids_T)
    assert torch.equal(filled.supervised_positions_S, pack.supervised_positions_S)
    assert torch.equal(filled.targets_S, pack.targets_S)
    assert filled.num_row_tokens == pack.num_row_tokens == sum(row.num_tokens for row in rows)
    assert filled.num_supervised_tokens == pack.num_supervised_tokens
    assert filled.target_rows.tolist() == pack.target_rows.tolist()
    assert filled.has_prefix == pack.has_prefix
    num_documents = len(pack.document_lengths)
    assert filled.document_lengths[:num_documents] == pack.document_lengths
    assert filled.row_indices[: len(rows)] == pack.row_indices
    if filled.num_fillers:
        assert filled.document_lengths[num_documents:] == (filled.num_fillers,)
        assert filled.row_indices[len(rows) :] == (-1,)
        # From 0, also after a prefix: positions that every table of them has.
        places = filled.position_ids_T[pack.num_tokens :]
        assert places.tolist() == list(range(filled.num_fillers))
    else:
        assert filled is pack
    assert filled.filled_up() is filled
    assert pack.num_fillers == 0


def test_a_filled_pack_that_moves_stays_filled() -> None:
    (pack,) = pack_rows([make_row(4, 1), make_row(3, 2)], [0, 1], 100)
    moved = pack.to(torch.device("meta"))
    assert (moved.num_tokens, moved.num_fillers, moved.num_row_tokens) == (16, 9, 7)


def test_sizes_are_those_of_the_rows() -> None:
    packs = pack_rows([make_row(30, 1), make_row(3, 2)], [0, 1], 100)
    (size,) = packs.sizes()
    assert size == (33, packs[0].num_supervised_tokens, 30**2 + 3**2)
    assert packs[0].num_tokens == 48
