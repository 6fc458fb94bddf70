"""One optimizer step, on a model that is small enough to see through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from llamafarm.data.encoding.pack import Pack, pack_rows
from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.errors import NonFiniteError
from llamafarm.kernels.loss import sum_cross_entropy
from llamafarm.training.step import Precision, StepResult, run_step

PLAIN = Precision(nullcontext)
VOCABULARY = 11


class Bigrams(nn.Module):
    """Predicts a token from the one before it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits_VV = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))

    def forward(self, pack: Pack) -> torch.Tensor:
        return self.logits_VV[pack.token_ids_T[pack.supervised_positions_S]]


class RootOfZero(nn.Module):
    """Adds nothing to the logits, by way of a root whose gradient is not finite."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pack: Pack) -> torch.Tensor:
        logits_SV = self.model(pack)
        return logits_SV + torch.sqrt(logits_SV - logits_SV)


def make_row(num_tokens: int, seed: int) -> EncodedRow:
    draw = np.random.default_rng(seed)
    return EncodedRow(
        draw.integers(0, VOCABULARY, num_tokens).astype(np.int32), draw.random(num_tokens) < 0.5, seed
    )


ROWS = [make_row(num_tokens, seed) for seed, num_tokens in enumerate((5, 9, 3, 12, 7))]


def step(
    model: nn.Module, packs: Sequence[Pack], *, max_grad_norm: float = 0.0, precision: Precision = PLAIN
) -> StepResult:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return run_step(
        lambda pack: sum_cross_entropy(model(pack), pack.targets_S),
        packs,
        optimizer,
        precision,
        max_grad_norm=max_grad_norm,
        where="step 7, rows 1, 2",
    )


def test_the_loss_is_the_mean_over_all_supervised_tokens_of_the_step() -> None:
    pairs = [
        (row.token_ids_T[place - 1], row.token_ids_T[place])
        for row in ROWS
        for place in range(1, row.num_tokens)
        if row.is_supervised_T[place]
    ]
    before, after = (torch.tensor(np.array(side), dtype=torch.long) for side in zip(*pairs, strict=True))
    expected = functional.cross_entropy(Bigrams().logits_VV[before], after)
    result = step(Bigrams(), pack_rows(ROWS, range(5), 15))
    assert result.train_loss == pytest.approx(expected.item(), abs=1e-6)
    assert result.num_supervised_tokens == len(pairs)
    assert result.num_tokens == sum(row.num_tokens for row in ROWS)


@pytest.mark.parametrize("max_pack_tokens", [1, 9, 16])
def test_how_rows_are_cut_into_packs_changes_nothing(max_pack_tokens: int) -> None:
    whole, parts = Bigrams(), Bigrams()
    one_pack = pack_rows(ROWS, range(5), 1000)
    more_packs = pack_rows(ROWS, range(5), max_pack_tokens)
    assert len(one_pack) == 1 < len(more_packs)
    results = step(whole, one_pack), step(parts, more_packs)
    assert results[0].train_loss == pytest.approx(results[1].train_loss, abs=1e-6)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, abs=1e-6)
    torch.testing.assert_close(whole.logits_VV, parts.logits_VV, atol=1e-6, rtol=0)
    assert not torch.equal(whole.logits_VV, Bigrams().logits_VV)


def test_gradients_are_clipped_to_their_norm_and_0_leaves_them() -> None:
    packs = pack_rows(ROWS, range(5), 1000)
    free, clipped = Bigrams(), Bigrams()
    norm = step(free, packs).grad_norm
    assert step(clipped, packs, max_grad_norm=norm / 2).grad_norm == pytest.approx(norm)
    moves = [model.logits_VV.detach() - Bigrams().logits_VV.detach() for model in (free, clipped)]
    torch.testing.assert_close(moves[1], moves[0] / 2, atol=1e-5, rtol=1e-4)


def test_gradients_are_empty_afterwards() -> None:
    model = Bigrams()
    step(model, pack_rows(ROWS, range(5), 1000))
    assert model.logits_VV.grad is None


@pytest.mark.parametrize("bad_value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_step_named_and_the_weights_untouched(
    bad_value: float,
) -> None:
    model = Bigrams()

    class Spoilt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.num_packs = 0

        def forward(self, pack: Pack) -> torch.Tensor:
            self.num_packs += 1
            return self.model(pack) * (bad_value if self.num_packs == 2 else 1.0)

    packs = pack_rows(ROWS, range(5), 16)
    assert len(packs) >= 2
    with pytest.raises(NonFiniteError) as caught:
        step(Spoilt(), packs, max_grad_norm=1.0)
    assert caught.value.where == "step 7, rows 1, 2"
    assert "nan" in caught.value.problem
    assert torch.equal(model.logits_VV, Bigrams().logits_VV)
    assert model.logits_VV.grad is None


def test_a_gradient_that_is_not_finite_stops_as_well() -> None:
    model = Bigrams()
    with pytest.raises(NonFiniteError):
        step(RootOfZero(model), pack_rows(ROWS, range(5), 1000), max_grad_norm=1.0)
    assert torch.equal(model.logits_VV, Bigrams().logits_VV)


def test_a_pack_without_anything_to_learn_is_left_out() -> None:
    mute = EncodedRow(np.arange(6, dtype=np.int32), np.zeros(6, dtype=bool), 9)
    alone, beside = Bigrams(), Bigrams()
    step(alone, pack_rows(ROWS, range(5), 1))
    result = step(beside, pack_rows([*ROWS, mute], range(6), 1))
    assert math.isfinite(result.train_loss)
    assert torch.equal(alone.logits_VV, beside.logits_VV)


def test_a_loss_scaler_changes_no_result() -> None:
    plain, scaled = Bigrams(), Bigrams()
    packs = pack_rows(ROWS, range(5), 16)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    results = step(plain, packs), step(scaled, packs, precision=Precision(nullcontext, scaler))
    assert results[0].train_loss == pytest.approx(results[1].train_loss)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm)
    torch.testing.assert_close(plain.logits_VV, scaled.logits_VV, atol=1e-6, rtol=0)


def test_a_loss_scaler_skips_an_infinite_gradient_and_lowers_its_scale() -> None:
    model = Bigrams()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    packs = pack_rows(ROWS, range(5), 1000)
    result = step(RootOfZero(model), packs, max_grad_norm=1.0, precision=Precision(nullcontext, scaler))
    assert math.isfinite(result.train_loss)
    assert torch.equal(model.logits_VV, Bigrams().logits_VV)
    assert scaler.get_scale() < 1024.0
