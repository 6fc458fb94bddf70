"""What rows begin with: found, laid out once, and nothing of a row lost by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.data.encoding.pack import pack_rows
from llamafarm.data.encoding.prefixes import find_shared_prefixes
from llamafarm.data.encoding.rows import EncodedRow


def row(tokens: list[int], num_prompt: int) -> EncodedRow:
    """A row that is trained on after its prompt."""
    return EncodedRow(np.array(tokens, np.int32), np.arange(len(tokens)) >= num_prompt, 1)


SYSTEM = list(range(100, 180))


def with_system(number: int, *, num_shared: int = 80, num_prompt: int = 90) -> EncodedRow:
    return row(SYSTEM[:num_shared] + [1000 + number] * (20 + number + 80 - num_shared), num_prompt)


def test_rows_that_begin_alike_share_whole_units_of_what_is_not_trained_on() -> None:
    rows = [with_system(0), with_system(1), row([7] * 50, 40), with_system(2)]
    alone, shared = find_shared_prefixes(rows, range(4))
    assert (alone.num_tokens, alone.row_indices) == (0, [2])
    assert (shared.num_tokens, shared.row_indices) == (64, [0, 1, 3])


def test_what_predicts_a_trained_token_is_in_each_row() -> None:
    for num_prompt, expected in ((64, 32), (65, 64), (66, 64)):
        rows = [with_system(number, num_prompt=num_prompt) for number in range(2)]
        (shared,) = find_shared_prefixes(rows, range(2))
        assert shared.num_tokens == expected, num_prompt
    (alone,) = find_shared_prefixes([with_system(n, num_prompt=32) for n in range(2)], range(2))
    assert alone.num_tokens == 0


def test_the_length_that_spares_the_most_is_shared() -> None:
    many_short = [with_system(0, num_shared=32), *(with_system(number) for number in range(1, 5))]
    alone, shared = find_shared_prefixes(many_short[::-1], range(5))
    assert shared.num_tokens == 64 and len(shared.row_indices) == 4 and alone.row_indices == [4]
    (shared,) = find_shared_prefixes([with_system(n, num_shared=40) for n in range(6)], range(6))
    assert shared.num_tokens == 32


def test_a_pack_has_a_shared_prefix_once() -> None:
    rows = [with_system(0), with_system(1)]
    (pack,) = packs = pack_rows(rows, range(2), 1000, shares_prefixes=True)
    assert pack.has_prefix and pack.document_lengths == (64, 37, 36, 7)
    assert pack.row_indices == (1, 0, -1)
    places = [*range(64), *range(64, 101), *range(64, 100), *range(7)]
    assert pack.position_ids_T.tolist() == places
    assert pack.num_row_tokens == 201 and pack.num_tokens == 144
    of_rows = 64**2 + (101**2 - 64**2) + (100**2 - 64**2)
    assert packs.sizes() == [(137, pack.num_supervised_tokens, of_rows)]
    assert pack.sum_of_squares == of_rows + 71**2 - 64**2
    assert not pack_rows(rows, range(2), 1000)[0].has_prefix


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.sampled_from([0, 31, 40, 70]), st.integers(0, 90), st.integers(1, 60)), max_size=9
    ),
    max_pack_tokens=st.sampled_from([1, 90, 200, 1000]),
)
def test_every_row_comes_once_with_all_that_is_trained_on(
    shapes: list[tuple[int, int, int]], max_pack_tokens: int
) -> None:
    rows = [
        row(SYSTEM[:shared] + [500 + number] * rest, prompt)
        for number, (shared, prompt, rest) in enumerate(shapes)
    ]
    plain = pack_rows(rows, range(len(rows)), max_pack_tokens)
    packs = pack_rows(rows, range(len(rows)), max_pack_tokens, shares_prefixes=True)
    row_indices = [index for pack in packs for index in pack.row_indices if index != -1]
    assert sorted(row_indices) == list(range(len(rows)))
    for pack, (num_tokens, num_supervised_tokens, sum_of_squares) in zip(packs, packs.sizes(), strict=True):
        assert pack.num_tokens == num_tokens + pack.num_fillers
        prefix = pack.document_lengths[0] if pack.has_prefix else 0
        of_filler = (prefix + pack.num_fillers) ** 2 - prefix**2
        assert pack.sum_of_squares == sum_of_squares + of_filler
        assert pack.num_supervised_tokens == num_supervised_tokens
        assert num_tokens <= max_pack_tokens or sum(index != -1 for index in pack.row_indices) == 1
        for position, target in zip(pack.supervised_positions_S, pack.targets_S, strict=True):
            assert pack.token_ids_T[position + 1] == target
    for name in ("num_row_tokens", "num_supervised_tokens"):
        assert sum(getattr(pack, name) for pack in packs) == sum(getattr(pack, name) for pack in plain)
    assert sum(size[0] for size in packs.sizes()) <= sum(size[0] for size in plain.sizes())


@pytest.mark.parametrize("shares_prefixes", [False, True])
def test_no_rows_give_no_packs(shares_prefixes: bool) -> None:
    assert len(pack_rows([], [], 100, shares_prefixes=shares_prefixes)) == 0
