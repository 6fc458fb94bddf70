"""Masks that one kernel draws for a pack: the same for a row wherever it lies, and as many as asked for."""

from __future__ import annotations

import pytest
import torch

from llamafarm.kernels.dropout import DropoutPlan, RowDropout


def mask_of(
    device: torch.device,
    row_indices: list[int],
    lengths: list[int],
    *,
    width: int,
    seed: int = 1,
    step: int = 1,
    layer: str = "layers.0.q_proj",
    probability: float = 0.5,
) -> dict[int, torch.Tensor]:
    """Return which elements of each row are kept."""
    plan = DropoutPlan(seed)
    dropout = RowDropout(probability, layer, plan).train()
    plan.enter_pack(step, row_indices, lengths)
    kept = dropout(torch.ones(1, sum(lengths), width, device=device))[0] != 0
    return dict(zip(row_indices, torch.split(kept, lengths), strict=True))


@pytest.mark.parametrize("width", [5, 64, 5000])
def test_rows_lose_the_same_elements_however_they_are_packed(device: torch.device, width: int) -> None:
    together = mask_of(device, [7, 2**40, 9], [4, 1, 3], width=width)
    apart = mask_of(device, [9], [3], width=width) | mask_of(device, [2**40, 7], [1, 4], width=width)
    assert all(torch.equal(together[row], apart[row]) for row in together)


def test_what_fills_a_pack_up_changes_no_mask_of_its_rows(device: torch.device) -> None:
    """Row -1 is a document at the end of the pack that nobody trains on."""
    plain = mask_of(device, [3, 4], [5, 8], width=64)
    filled = mask_of(device, [3, 4, -1], [5, 8, 3], width=64)
    assert all(torch.equal(plain[row], filled[row]) for row in plain)


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 2}, {"layer": "layers.1.q_proj"}])
def test_another_seed_step_or_layer_loses_others(device: torch.device, change: dict) -> None:
    one = mask_of(device, [3, 4], [8, 8], width=64)
    other = mask_of(device, [3, 4], [8, 8], width=64, **change)
    for row in (3, 4):
        assert 0.4 < float((one[row] == other[row]).float().mean()) < 0.6
    assert 0.4 < float((one[3] == one[4]).float().mean()) < 0.6


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_for(device: torch.device, probability: float) -> None:
    kept = mask_of(device, [0, 1], [32, 32], width=4096, probability=probability)
    every = torch.cat(list(kept.values())).float()
    assert float(every.mean()) == pytest.approx(1 - probability, abs=0.005)
    # Neither a column nor a token is kept more often than others, beyond chance.
    spread = (probability * (1 - probability)) ** 0.5
    assert float((every.mean(0) - 1 + probability).abs().max()) < 6 * spread / 64**0.5
    assert float((every.mean(1) - 1 + probability).abs().max()) < 6 * spread / 4096**0.5
