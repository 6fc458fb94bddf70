"""Near-duplicates: none below the threshold, hardly one missed above it, the same on every platform."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.selection.near_duplicates import _shingles_of, _signature_of, group_near_duplicates
from llamafarm.data.selection.traces import TracesWanted, trace_conversations

WORDS = [f"w{number}" for number in range(400)]


def row(text: str, answer: str = "") -> Conversation:
    return Conversation((Message("user", text), Message("assistant", answer)), 1)


def group(
    rows: Sequence[Conversation], threshold: float, chosen: Sequence[int] | None = None, *, cut_at: int = 0
) -> list[int]:
    """Group rows, of which those before `cut_at` are a part of their own."""
    parts = [list(rows[:cut_at]), list(rows[cut_at:])]
    shingled = [trace_conversations(part, TracesWanted(of_near_duplicates=True)).shingled for part in parts]
    places = range(len(rows)) if chosen is None else chosen
    indices = [
        np.array([place for place in places if place < cut_at], np.int64),
        np.array([place - cut_at for place in places if place >= cut_at], np.int64),
    ]
    return group_near_duplicates(shingled, indices, threshold)


def likeness(one: Conversation, other: Conversation) -> float:
    """The share of three-word runs that both have, counted with plain sets."""

    def runs(conversation: Conversation) -> set[tuple[str, ...]]:
        text = " \x1f ".join(f"{turn.content} {turn.input}" for turn in conversation.messages)
        words = text.casefold().split()
        return {tuple(words[start : start + 3]) for start in range(max(len(words) - 2, 1))}

    return len(runs(one) & runs(other)) / len(runs(one) | runs(other))


def planted(num_pairs: int, threshold: float, seed: int = 0) -> list[tuple[Conversation, Conversation]]:
    """Pairs that are just as alike as the threshold asks, or a little more."""
    draw = random.Random(seed)
    pairs = []
    while len(pairs) < num_pairs:
        words = draw.choices(WORDS, k=draw.randint(40, 120))
        changed = list(words)
        for place in draw.sample(range(len(words)), draw.randint(1, 8)):
            changed[place] = draw.choice(WORDS)
        pair = row(" ".join(words)), row(" ".join(changed))
        if threshold <= likeness(*pair) < threshold + 0.1:
            pairs.append(pair)
    return pairs


@pytest.mark.parametrize("threshold", [0.6, 0.75, 0.85])
def test_pairs_at_the_threshold_are_found(threshold: float) -> None:
    pairs = planted(300, threshold)
    num_found = sum(group(pair, threshold) == [0, 0] for pair in pairs)
    assert num_found >= 297


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), min_size=2, max_size=8),
    threshold=st.sampled_from([0.5, 0.7, 0.9, 1.0]),
)
def test_no_pair_below_the_threshold_is_called_alike(texts: list[list[str]], threshold: float) -> None:
    rows = [row(" ".join(words)) for words in texts]
    for place, first in enumerate(group(rows, threshold)):
        assert first <= place
        assert likeness(rows[first], rows[place]) >= threshold - 1e-9


def test_case_and_white_space_make_no_difference_and_order_does() -> None:
    same = [row("One two  three four\nfive"), row("one TWO three four five"), row("five four three two one")]
    assert group(same, 1.0) == [0, 0, 2]


def test_languages_without_blanks_are_compared_by_characters() -> None:
    text = "これは糖尿病の症状についての説明であり、喉の渇きや疲労などが含まれますので注意してください" * 2
    assert group([row(text), row(text[:-1] + "！"), row(text[::-1])], 0.85) == [0, 0, 2]


@pytest.mark.parametrize("text", ["", "a", "a b", " "])
def test_short_texts_have_a_shingle_too(text: str) -> None:
    assert len(_shingles_of(text)) == 1
    assert group([row(text), row(text), row("c")], 0.85) == [0, 0, 2]


def test_the_hashes_are_the_same_on_every_platform() -> None:
    shingles = _shingles_of("what does asthma affect? asthma affects the airways.")
    assert shingles.tolist()[:2] == [2948341153922522097, 4486226754251884941]
    assert _signature_of(shingles).tolist()[:3] == [652640372, 197402690, 170682983]


def slow_groups(rows: Sequence[Conversation], threshold: float) -> list[int]:
    """Compare each row with all new ones before it, by plain sets."""
    new: list[int] = []
    groups = []
    for place, one in enumerate(rows):
        found = next((other for other in new if likeness(one, rows[other]) >= threshold), None)
        if found is None:
            new.append(place)
        groups.append(place if found is None else found)
    return groups


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), min_size=1, max_size=9),
    cut_at=st.integers(0, 9),
    data=st.data(),
)
def test_parts_and_choices_of_rows_are_grouped_as_one_list_of_them(
    texts: list[list[str]], cut_at: int, data: st.DataObject
) -> None:
    rows = [row(" ".join(words)) for words in texts]
    chosen = data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True).map(sorted))
    expected = slow_groups([rows[place] for place in chosen], 1.0)
    assert group(rows, 1.0, chosen, cut_at=min(cut_at, len(rows))) == expected
