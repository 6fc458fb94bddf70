"""What is taken so that a run fits, in which order, and what is proposed where that is not enough."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.planning.changes import Cut, Freedom, Packing, propose_changes
from llamafarm.planning.fit import MemoryDecision, settle_memory
from llamafarm.planning.guide import OUT_OF_MEMORY
from llamafarm.planning.memory import predict_memory
from llamafarm.planning.packs import choose_pack_tokens, pack_tokens_from
from llamafarm.planning.request import MemoryRequest, PackSize
from llamafarm.planning.shape import LinearLayer, ModelShape

MIB = 2**20
LONGEST = 200
NO_FREEDOM = Freedom()


def shape() -> ModelShape:
    """A Llama of about 1 B parameters."""
    d, f, num_layers = 2048, 5632, 22
    sizes = {"q_proj": (d, d), "k_proj": (d, 256), "v_proj": (d, 256), "o_proj": (d, d)}
    feed = {"gate_proj": (d, f), "up_proj": (d, f), "down_proj": (f, d)}
    layers = tuple(
        LinearLayer(name, inputs, outputs, num_layers, name if name[0] in "od" else "x")
        for name, (inputs, outputs) in (sizes | feed).items()
    )
    num_parameters = sum(layer.num_weights for layer in layers) + 32000 * d * 2
    return ModelShape(num_layers, d, f, 32, 4, 64, 32000, False, True, num_parameters, layers)


def pack_with(pack_tokens: int, max_length: int) -> Packing:
    """Rows of up to 200 tokens, thousands of them: every pack is full, whatever its size."""
    longest = min(LONGEST, max_length)
    size = max(pack_tokens, longest)
    packs = (PackSize(size, size // 2), PackSize(size, size // 2, finds_gradients=True))
    return Packing(pack_tokens, max_length, longest, packs, num_rows_left_out=LONGEST - longest)


def cut_of(pack_tokens: int = 1024, **changes: Any) -> Cut:
    """A run with packs of that size."""
    request = MemoryRequest(
        shape=shape(),
        device_kind="cpu",
        method="lora",
        rank=64,
        targets="all-linear",
        precision="fp32",
        weight_bytes=4,
        training_packs=(),
        **changes,
    )
    return Cut(request, Packing(pack_tokens, LONGEST, LONGEST, ()), pack_with).packed(pack_tokens)


def settle(cut: Cut, available_bytes: int, **options: Any) -> MemoryDecision:
    """Settle with everything that may be left to us left to us."""
    return settle_memory(
        cut,
        available_bytes,
        options.pop("freedom", NO_FREEDOM),
        **{"may_checkpoint": True, "may_return_memory": True} | options,
    )


def returning(cut: Cut, **changes: Any) -> Cut:
    """The same run with an allocator that gives memory back."""
    return replace(cut, request=replace(cut.request, returns_freed_memory=True, **changes))


def test_where_memory_is_plenty_nothing_is_touched() -> None:
    cut = cut_of()
    decision = settle(cut, cut.total_bytes * 2)
    assert decision.fits and not decision.reasons
    assert decision.cut == cut
    assert decision.pack_tokens == 1024
    assert decision.proposal is None


def test_the_allocator_comes_first_then_packs_then_checkpointing() -> None:
    cut = cut_of()
    compact = settle(cut, returning(cut).total_bytes)
    assert compact.returns_freed_memory and compact.pack_tokens == 1024
    assert [reason.setting for reason in compact.reasons] == ["allocator"]

    smaller = settle(cut, returning(cut).total_bytes - 1)
    assert smaller.pack_tokens == 512 and not smaller.checkpointed_blocks
    assert [reason.setting for reason in smaller.reasons] == ["allocator", "pack"]

    smallest = returning(cut_of(LONGEST))
    checkpointed = settle(cut, smallest.total_bytes - 1)
    assert checkpointed.checkpointed_blocks == 1 and checkpointed.fits
    reason = checkpointed.reasons[-1]
    assert (reason.setting, reason.value) == ("checkpointing", "1 of 22 blocks are computed again")


@pytest.mark.parametrize("num_blocks", [1, 7, 21])
def test_as_few_blocks_are_computed_again_as_it_takes(num_blocks: int) -> None:
    smallest = returning(cut_of(LONGEST))
    enough = smallest.checkpointed(num_blocks).total_bytes
    assert settle(cut_of(), enough).checkpointed_blocks == num_blocks
    assert settle(cut_of(), enough - 1).checkpointed_blocks != num_blocks


@given(st.integers(100, 40_000), st.integers(0, 4000), st.booleans())
def test_more_memory_never_means_more_blocks_that_are_computed_again(
    mib: int, more: int, may_return: bool
) -> None:
    less = settle(cut_of(), mib * MIB, may_return_memory=may_return)
    greater = settle(cut_of(), (mib + more) * MIB, may_return_memory=may_return)
    assert greater.fits >= less.fits
    if less.fits:
        assert greater.checkpointed_blocks <= less.checkpointed_blocks


def test_a_run_that_computes_all_blocks_again_stays_so() -> None:
    cut = cut_of(checkpointed_blocks=22)
    for available in (cut.total_bytes * 2, returning(cut_of(LONGEST, checkpointed_blocks=22)).total_bytes):
        decision = settle(cut, available)
        assert decision.fits and decision.checkpointed_blocks == 22
        assert "checkpointing" not in [reason.setting for reason in decision.reasons]


def test_checkpointing_that_is_settled_is_not_switched_on() -> None:
    cut = cut_of()
    decision = settle(cut, returning(cut_of(LONGEST)).total_bytes - 1, may_checkpoint=False)
    assert not decision.fits and not decision.checkpointed_blocks
    assert decision.proposal is not None


@given(st.integers(100, 40_000), st.booleans(), st.booleans())
def test_what_is_settled_fits_or_is_no_promise(mib: int, may_checkpoint: bool, may_return: bool) -> None:
    available = mib * MIB
    decision = settle(
        cut_of(), available, may_checkpoint=may_checkpoint, may_return_memory=may_return,
        freedom=Freedom("bf16", may_quantize=True, may_checkpoint=may_checkpoint),
    )  # fmt: skip
    assert decision.plan == predict_memory(decision.cut.request)
    assert decision.fits == (decision.plan.total_bytes <= available)
    assert decision.pack_tokens >= LONGEST
    assert decision.fits == (decision.proposal is None)
    if decision.proposal is not None:
        assert decision.proposal.missing_bytes == max(decision.proposal.total_bytes - available, 0)


@given(st.integers(100, 40_000), st.integers(0, 4000))
def test_more_memory_never_means_smaller_packs(mib: int, more: int) -> None:
    less = settle(cut_of(), mib * MIB, may_checkpoint=False)
    greater = settle(cut_of(), (mib + more) * MIB, may_checkpoint=False)
    assert greater.fits >= less.fits
    if less.fits:
        assert greater.pack_tokens >= less.pack_tokens


def test_one_change_is_proposed_where_one_is_enough_in_the_guides_order() -> None:
    smallest = returning(cut_of(LONGEST))
    checkpointed = smallest.checkpointed(22)
    everything = Freedom("bf16", may_quantize=True)
    proposal = propose_changes(smallest, checkpointed.total_bytes, everything)
    assert [change.setting for change in proposal.changes] == ["hardware.optimization.gradient_checkpointing"]
    change = proposal.changes[0]
    assert change.saved_bytes == smallest.total_bytes - checkpointed.total_bytes
    row = next(row for row in OUT_OF_MEMORY if row.setting == change.setting)
    assert (change.solution, change.performance_impact) == (row.solution, row.performance_impact)
    assert row.performance_impact in str(change)
    # What holds the weights is the only thing that saves as much.
    halved = returning(smallest, precision="bf16", weight_bytes=2)
    proposal = propose_changes(smallest, halved.total_bytes, everything)
    assert [(change.setting, change.value) for change in proposal.changes] == [
        ("hardware.optimization.mixed_precision", "bf16")
    ]


def test_changes_add_up_where_none_is_enough() -> None:
    smallest = returning(cut_of(LONGEST))
    everything = Freedom("bf16", may_quantize=True)
    proposal = propose_changes(smallest, 0, everything)
    settings = [change.setting for change in proposal.changes]
    order = [row.setting for row in OUT_OF_MEMORY if row.setting in settings]
    assert settings == [*order, "method.type"]
    assert "training_args.gradient_accumulation_steps" not in settings
    assert not proposal.fits and proposal.missing_bytes == proposal.total_bytes
    assert smallest.total_bytes - sum(c.saved_bytes for c in proposal.changes) == proposal.total_bytes


@pytest.mark.parametrize("freedom", [NO_FREEDOM, Freedom(may_checkpoint=False)])
def test_what_the_device_cannot_do_is_not_proposed(freedom: Freedom) -> None:
    proposal = propose_changes(returning(cut_of(LONGEST)), 0, freedom)
    settings = {change.setting for change in proposal.changes}
    assert not settings & {"hardware.optimization.mixed_precision", "method.type"}
    assert ("hardware.optimization.gradient_checkpointing" in settings) == freedom.may_checkpoint


def test_full_finetuning_is_told_of_adapters() -> None:
    cut = cut_of(LONGEST)
    full = returning(replace(cut, request=replace(cut.request, method="full_finetune")))
    proposal = propose_changes(full, full.total_bytes // 2, Freedom("bf16"))
    assert [(change.setting, change.value) for change in proposal.changes] == [("method.type", "lora")]


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_sizes_to_try_fall_to_the_longest_row(largest: int, longest_row: int) -> None:
    sizes = list(pack_tokens_from(largest, longest_row))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == max(min(longest_row, largest), 64)
    assert sizes[0] == max(largest, 64)


def test_devices_prefer_larger_packs_the_faster_they_are() -> None:
    assert choose_pack_tokens("cpu") <= choose_pack_tokens("mps") < choose_pack_tokens("cuda")
