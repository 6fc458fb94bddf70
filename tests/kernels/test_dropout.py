"""Dropout that follows from seed, step, row, layer and place, and not from how rows are grouped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.errors import ModelError
from llamafarm.kernels.dropout import DropoutPlan, RowDropout

NUM_FEATURES = 6


def mask_of(
    row_indices: list[int],
    lengths: list[int],
    *,
    probability: float = 0.5,
    seed: int = 1,
    step: int = 1,
    layer: str = "layers.0.q_proj",
    num_features: int = NUM_FEATURES,
) -> dict[int, torch.Tensor]:
    """Return which elements of each row are kept."""
    plan = DropoutPlan(seed)
    dropout = RowDropout(probability, layer, plan).train()
    plan.enter_pack(step, row_indices, lengths)
    kept = dropout(torch.ones(1, sum(lengths), num_features))[0] != 0
    return dict(zip(row_indices, torch.split(kept, lengths), strict=True))


def are_same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return all(torch.equal(one[row], other[row]) for row in one)


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), step=st.integers(0, 10**6)
)
def test_rows_lose_the_same_elements_however_they_are_packed(
    data: st.DataObject, lengths: list[int], step: int
) -> None:
    rows = list(range(100, 100 + len(lengths)))
    together = mask_of(rows, lengths, step=step)
    order = data.draw(st.permutations(range(len(rows))))
    cut = data.draw(st.integers(0, len(rows)))
    for group in (order[:cut], order[cut:]):
        if group:
            apart = mask_of([rows[at] for at in group], [lengths[at] for at in group], step=step)
            assert are_same(apart, together)


@pytest.mark.parametrize("num_features", [6, 8])
def test_what_fills_a_pack_up_changes_no_mask_of_its_rows(num_features: int) -> None:
    """Row -1 is a document at the end of the pack that nobody trains on."""
    plain = mask_of([3, 4], [5, 8], num_features=num_features)
    filled = mask_of([3, 4, -1], [5, 8, 3], num_features=num_features)
    assert are_same(plain, filled)
    assert filled[-1].shape == (3, num_features)


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 2}, {"layer": "layers.1.q_proj"}])
def test_another_seed_step_or_layer_loses_others(change: dict[str, int | str]) -> None:
    rows, lengths = [3, 4], [40, 40]
    assert are_same(mask_of(rows, lengths), mask_of(rows, lengths))
    assert not are_same(mask_of(rows, lengths), mask_of(rows, lengths, **change))  # type: ignore[arg-type]


def test_rows_of_a_pack_lose_different_elements() -> None:
    masks = mask_of([3, 4], [40, 40])
    assert not torch.equal(masks[3], masks[4])


def test_parts_of_a_mask_do_not_repeat_each_other() -> None:
    mask = mask_of([0], [64], num_features=64)[0]
    assert len({tuple(token.tolist()) for token in mask}) == 64
    assert len({tuple(feature.tolist()) for feature in mask.T}) == 64


@pytest.mark.parametrize("probability", [0.05, 0.3, 0.9])
def test_the_share_that_is_lost_is_the_probability(probability: float) -> None:
    masks = mask_of(list(range(50)), [40] * 50, probability=probability, num_features=32)
    share = 1 - torch.cat(list(masks.values())).float().mean().item()
    # 64,000 elements: four standard deviations are less than 0.008.
    assert share == pytest.approx(probability, abs=0.008)


def test_what_is_kept_is_scaled_so_that_the_mean_stays() -> None:
    plan = DropoutPlan(0)
    dropout = RowDropout(0.2, "layer", plan).train()
    plan.enter_pack(1, [0, 1], [3, 4])
    hidden = torch.randn(1, 7, 16)
    output = dropout(hidden)
    kept = output != 0
    assert 0 < kept.float().mean() < 1
    torch.testing.assert_close(output, torch.where(kept, hidden / 0.8, 0.0), rtol=1e-5, atol=1e-6)


def test_the_gradient_passes_where_the_element_did() -> None:
    plan = DropoutPlan(0)
    dropout = RowDropout(0.4, "layer", plan).train()
    plan.enter_pack(5, [8], [12])
    hidden = torch.ones(1, 12, 16, requires_grad=True)
    output = dropout(hidden)
    output.sum().backward()
    torch.testing.assert_close(hidden.grad, output.detach())


def test_nothing_is_lost_in_evaluation_or_at_probability_zero() -> None:
    hidden = torch.randn(1, 5, 4)
    # No pack has been entered: neither needs to know one.
    assert RowDropout(0.9, "layer", DropoutPlan(0)).eval()(hidden) is hidden
    assert RowDropout(0.0, "layer", DropoutPlan(0)).train()(hidden) is hidden


def test_torchs_own_randomness_is_neither_used_nor_moved() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = mask_of([1], [20])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert are_same(one, mask_of([1], [20]))


def test_half_precision_keeps_its_type() -> None:
    plan = DropoutPlan(0)
    dropout = RowDropout(0.5, "layer", plan).train()
    plan.enter_pack(1, [0], [6])
    assert dropout(torch.ones(1, 6, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_pack_of_other_lengths_than_announced_is_an_error() -> None:
    plan = DropoutPlan(0)
    dropout = RowDropout(0.5, "layer", plan).train()
    plan.enter_pack(1, [0, 1], [2, 3])
    with pytest.raises(ModelError):
        dropout(torch.ones(1, 6, 4))


def test_a_layer_without_a_batch_axis_drops_the_same_elements() -> None:
    plan = DropoutPlan(3)
    layer = RowDropout(0.5, "layer", plan)
    plan.enter_pack(1, [4, 2], [5, 3])
    hidden = torch.randn(8, 6)
    assert torch.equal(layer(hidden), layer(hidden[None])[0])


def test_a_layer_that_sees_some_of_the_tokens_is_refused() -> None:
    plan = DropoutPlan(3)
    layer = RowDropout(0.5, "experts.0.up_proj", plan)
    plan.enter_pack(1, [4, 2], [5, 3], torch.tensor([1, 2]))
    with pytest.raises(ModelError, match=r"experts\.0\.up_proj sees 4 tokens"):
        layer(torch.randn(4, 6))
