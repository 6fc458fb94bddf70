"""PiSSA: the outputs start as they were, the principal part is trained, a plain adapter is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch.nn import functional as F  # noqa: N812
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llamafarm.errors import ModelError
from llamafarm.model.adapter import (
    AdapterSettings,
    adapter_tensors,
    attach_adapter,
    restore_adapter,
    write_adapter,
)

Fresh = Callable[[], PreTrainedModel]
Logits = Callable[[torch.nn.Module], torch.Tensor]


def attach(model: PreTrainedModel, seed: int = 1, **changes: Any) -> PeftModel:
    chosen = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ("q_proj", "down_proj"), **changes}
    adapter = AdapterSettings(**chosen, starts_principal=True)
    return attach_adapter(model, adapter, base_name=model.name_or_path, seed=seed)[0]


def disturb(model: PeftModel) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def lora_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("changes", [{}, {"uses_rslora": True}, {"target_modules": "all-linear", "r": 32}])
def test_outputs_start_as_those_of_the_base(
    fresh_model: Fresh, logits_of: Logits, changes: dict[str, Any]
) -> None:
    model = fresh_model()
    before = logits_of(model)
    adapted = attach(model, **changes).eval()
    torch.testing.assert_close(logits_of(adapted), before, atol=1e-4, rtol=1e-4)
    assert all(tensor.any() for tensor in lora_weights(adapted).values())


@pytest.mark.parametrize("uses_rslora", [False, True])
def test_the_adapter_is_the_best_part_of_its_rank(fresh_model: Fresh, uses_rslora: bool) -> None:
    model = fresh_model()
    weight = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    weights = lora_weights(attach(model, uses_rslora=uses_rslora))
    site = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = weights[f"{site}.lora_A.default.weight"], weights[f"{site}.lora_B.default.weight"]
    part = (8 / 2 if uses_rslora else 8 / 4) * b @ a
    singular = torch.linalg.svdvals(weight)
    best = singular[4:].square().sum().sqrt()
    assert torch.linalg.norm(weight - part) < 1.01 * best
    torch.testing.assert_close(
        torch.linalg.svdvals(a).square() * (4 if uses_rslora else 2), singular[:4], rtol=0.02, atol=0
    )


def test_gradients_are_those_of_the_rest_and_the_part(fresh_model: Fresh) -> None:
    """Equal to the paper's form, W_rest x + s B A x with W_rest frozen, forward and gradient."""
    model = fresh_model()
    layer = attach(model).base_model.model.model.layers[0].mlp.down_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    rest = (layer.base_layer.weight - 2 * b @ a).detach()
    with torch.no_grad():
        b += 0.1
    hidden = torch.randn(1, 5, 128, requires_grad=True)
    grads, outputs = [], []
    for output in (layer(hidden), F.linear(hidden, rest) + 2 * F.linear(F.linear(hidden, a), b)):
        outputs.append(output)
        grads.append(torch.autograd.grad(output.square().sum(), (hidden, a, b)))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)
    for mine, expected in zip(*grads, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"uses_rslora": True}])
def test_stock_peft_puts_what_is_saved_on_the_untouched_base(
    tmp_path: Path, fresh_model: Fresh, logits_of: Logits, changes: dict[str, Any]
) -> None:
    adapted = attach(fresh_model(), **changes)
    disturb(adapted)
    write_adapter(tmp_path, adapted, adapter_tensors(adapted))
    stock = PeftModel.from_pretrained(fresh_model(), str(tmp_path)).eval()
    torch.testing.assert_close(logits_of(stock), logits_of(adapted.eval()), atol=1e-4, rtol=1e-4)
    assert (logits_of(stock) - logits_of(fresh_model())).abs().max() > 0.1
    assert (adapted.peft_config["default"].r, adapted.peft_config["default"].lora_alpha) == (4, 8)


def test_saved_weights_come_back_into_another_model(fresh_model: Fresh, logits_of: Logits) -> None:
    adapted = attach(fresh_model(), seed=1)
    disturb(adapted)
    other = attach(fresh_model(), seed=2)  # its own start is another one
    restore_adapter(other, adapter_tensors(adapted))
    assert torch.equal(logits_of(other.eval()), logits_of(adapted.eval()))
    theirs = lora_weights(other)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in lora_weights(adapted).items())


def test_in_16_bits_the_start_is_taken_off_exactly(fresh_model: Fresh) -> None:
    model = fresh_model().to(torch.bfloat16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapted = attach(model)
    for name, parameter in adapted.named_parameters():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, before[plain]), "the base is untouched"
    tensors = adapter_tensors(adapted)
    for name in tensors:
        if "lora_A" in name:
            change = tensors[name.replace("lora_A", "lora_B")].double() @ tensors[name].double()
            assert change.abs().max() < 1e-12, "an untrained adapter changes nothing"


def test_weights_that_are_kept_transposed() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = model(ids).logits
        adapted = attach(model, target_modules="all-linear").eval()
        torch.testing.assert_close(adapted(ids).logits, before, atol=1e-4, rtol=1e-4)
    weights = lora_weights(adapted)
    site = "base_model.model.transformer.h.0.attn.c_attn"
    part = 2 * weights[f"{site}.lora_B.default.weight"] @ weights[f"{site}.lora_A.default.weight"]
    weight = model.transformer.h[0].attn.c_attn.base_layer.weight.T
    assert torch.linalg.norm(weight - part) < 1.01 * torch.linalg.svdvals(weight)[4:].square().sum().sqrt()


def test_a_rank_above_the_layers_size_is_refused(fresh_model: Fresh) -> None:
    with pytest.raises(ModelError, match="has only 64 directions, and r is 65") as caught:
        attach(fresh_model(), r=65)
    assert caught.value.where == "method.r"


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_start_follows_from_the_seed_alone(tiny_base: Path, seed: int) -> None:
    def start() -> dict[str, torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(tiny_base)
        return adapter_tensors(attach(model, seed=seed, target_modules=("q_proj",)))

    torch.manual_seed(1)
    one = start()
    torch.manual_seed(2)
    again = start()
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
