"""AdamW's groups and the learning rate's way up and down."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from llamafarm.training.optimizer import OptimizerSettings, build_optimizer

SETTINGS = OptimizerSettings(
    learning_rate=0.01,
    lr_scheduler_type="linear",
    warmup_ratio=0.0,
    warmup_steps=0,
    weight_decay=0.1,
    adam_beta1=0.8,
    adam_beta2=0.9,
    adam_epsilon=1e-6,
)


def learning_rates(num_steps: int, **settings: float | str) -> list[float]:
    """Return the learning rate of every step."""
    optimizer, scheduler = build_optimizer(nn.Linear(2, 2), replace(SETTINGS, **settings), num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_decay_spares_biases_and_norms_and_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].weight.requires_grad = False
    optimizer, _ = build_optimizer(model, SETTINGS, 10)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {
        id(model[0].weight): 0.1,
        id(model[0].bias): 0.0,
        id(model[1].weight): 0.0,
        id(model[1].bias): 0.0,
        id(model[2].bias): 0.0,
    }


def test_the_settings_reach_adamw() -> None:
    optimizer, _ = build_optimizer(nn.Linear(2, 2), SETTINGS, 10)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.9), 1e-6)


def test_a_linear_schedule_falls_to_0_right_after_the_last_step() -> None:
    assert learning_rates(4) == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_the_warmup_ratio_counts_whole_steps_rounded_up() -> None:
    assert learning_rates(10, warmup_ratio=0.15)[:3] == pytest.approx([0.0, 0.005, 0.01])


def test_warmup_steps_win_over_the_ratio() -> None:
    rates = learning_rates(10, warmup_ratio=0.5, warmup_steps=1)
    assert rates[:2] == pytest.approx([0.0, 0.01])


def test_a_warmup_longer_than_the_run_ends_with_it() -> None:
    assert learning_rates(4, warmup_steps=100) == pytest.approx([0.0, 0.0025, 0.005, 0.0075])


def test_constant_has_no_warmup() -> None:
    assert learning_rates(4, lr_scheduler_type="constant", warmup_steps=2) == [0.01] * 4


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "constant_with_warmup", "polynomial", "inverse_sqrt", "constant"]
)
def test_every_schedule_of_the_schema_keeps_to_the_highest_rate(name: str) -> None:
    rates = learning_rates(10, lr_scheduler_type=name, warmup_steps=2)
    assert max(rates) == pytest.approx(0.01)
    assert min(rates) >= 0


class _Adapted(nn.Module):
    """Names as PEFT gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})
        self.bias = nn.Parameter(torch.zeros(4))


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "constant_with_warmup", "polynomial", "inverse_sqrt", "constant"]
)
def test_b_matrices_learn_faster_by_the_ratio_at_every_step(name: str) -> None:
    model = nn.ModuleDict({"q_proj": _Adapted()})
    settings = replace(SETTINGS, lr_scheduler_type=name, warmup_steps=2, loraplus_lr_ratio=16.0)
    optimizer, scheduler = build_optimizer(model, settings, 10)
    plain = learning_rates(10, lr_scheduler_type=name, warmup_steps=2)
    layer = model["q_proj"]
    for rate in plain:
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rates[id(layer.lora_A["default"].weight)] == pytest.approx(rate)
        assert rates[id(layer.bias)] == pytest.approx(rate)
        assert rates[id(layer.lora_B["default"].weight)] == pytest.approx(16 * rate)
        assert scheduler.get_last_lr()[0] == pytest.approx(rate), "what metrics report"
        optimizer.step()
        scheduler.step()


def test_without_a_ratio_all_matrices_learn_at_one_rate() -> None:
    optimizer, _ = build_optimizer(nn.ModuleDict({"q_proj": _Adapted()}), SETTINGS, 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.1]
