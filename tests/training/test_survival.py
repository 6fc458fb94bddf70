"""A small part of `benchmarks/survival.py`: kills, signals, damage, a full disk, memory, NaN, other runs."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from disturbed.arena import Arena, Findings

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    from disturbed.arena import Arena

    num_threads = torch.get_num_threads()
    try:
        yield Arena(tmp_path_factory.mktemp("survival"), seed=20)
    finally:
        torch.set_num_threads(num_threads)
        gc.unfreeze()


def assert_nothing_failed(found: Findings) -> None:
    assert found.num_tried
    assert not found.failures, "\n\n".join(found.failures)


def test_runs_that_are_killed_at_random_moments_end_with_the_same_bytes(arena: Arena) -> None:
    from disturbed.kills import kill_at_random

    assert_nothing_failed(kill_at_random(arena, 6))


def test_runs_that_a_signal_ends_are_saved_and_go_on_to_the_same_bytes(arena: Arena) -> None:
    from disturbed.kills import signal_at_random

    assert_nothing_failed(signal_at_random(arena, 4))


def test_death_at_a_boundary_of_a_save_costs_nothing(arena: Arena) -> None:
    from disturbed.boundaries import die_at_boundaries

    assert_nothing_failed(die_at_boundaries(arena, 0.01))


def test_a_damaged_checkpoint_is_passed_over_or_refused_whatever_the_damage(arena: Arena) -> None:
    from disturbed.damage import damage_checkpoints

    found = damage_checkpoints(arena, 14)
    assert_nothing_failed(found)
    assert found.figures["went back"] and found.figures["refused"]


def test_a_full_disk_leaves_what_was_saved(arena: Arena) -> None:
    from disturbed.disk import fill_the_disk

    found = fill_the_disk(arena, 4)
    assert_nothing_failed(found)
    assert found.figures["errors with what to try"]


def test_too_little_memory_changes_no_rows_and_hardly_a_loss(arena: Arena) -> None:
    from disturbed.memory import run_out_of_memory

    assert_nothing_failed(run_out_of_memory(arena, 4))


def test_numbers_that_are_not_finite_move_no_weight(arena: Arena) -> None:
    from disturbed.memory import meet_nonfinite_numbers

    assert_nothing_failed(meet_nonfinite_numbers(arena, 4))


def test_of_many_starts_into_a_folder_one_trains(arena: Arena) -> None:
    from disturbed.starts import start_together

    assert_nothing_failed(start_together(arena, 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "num_tries"),
    [
        ("kills", 20),
        ("signals", 16),
        ("damage", 42),
        ("disk", 12),
        ("memory", 16),
        ("nan", 12),
        ("starts", 20),
    ],
)
def test_more_of_each(arena: Arena, part: str, num_tries: int) -> None:
    from disturbed import damage, disk, kills, memory, starts

    parts: dict[str, Callable[[Arena, int], Findings]] = {
        "kills": kills.kill_at_random,
        "signals": kills.signal_at_random,
        "damage": damage.damage_checkpoints,
        "disk": disk.fill_the_disk,
        "memory": memory.run_out_of_memory,
        "nan": memory.meet_nonfinite_numbers,
        "starts": starts.start_together,
    }
    assert_nothing_failed(parts[part](arena, num_tries))


@pytest.mark.slow
def test_death_at_more_boundaries(arena: Arena) -> None:
    from disturbed.boundaries import die_at_boundaries

    assert_nothing_failed(die_at_boundaries(arena, 0.1))
