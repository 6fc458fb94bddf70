"""Bases in 4 bits: refused where they cannot be had, and trained on where bitsandbytes is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from llamafarm.data.encoding.pack import Pack
from llamafarm.errors import MachineError
from llamafarm.kernels.loss import sum_cross_entropy
from llamafarm.model import quantized
from llamafarm.model.adapter import AdapterSettings, adapter_tensors, attach_adapter, restore_adapter
from llamafarm.model.forward import packed_forward, supervised_logits
from llamafarm.model.load import Base
from llamafarm.model.quantized import (
    Quantization,
    check_quantization,
    load_quantized_model,
    may_quantize,
)
from llamafarm.model.weights import is_frozen_in

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
TARGETS = ("q_proj", "v_proj", "down_proj")


def load(base: Base, dtype: torch.dtype = torch.float32, **quantization: Any) -> Any:
    return load_quantized_model(
        base, Quantization(**quantization), dtype=dtype, compute_dtype=dtype, device=torch.device("cpu")
    )


def attach(model: Any, **changes: Any) -> Any:
    settings = AdapterSettings(**{"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": TARGETS, **changes})
    return attach_adapter(model, settings, base_name="base", seed=1)


@pytest.fixture
def pack() -> Pack:
    """Two documents."""
    ids, lengths = torch.arange(3, 23), (9, 11)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Pack(ids, positions, torch.tensor([3, 7, 12, 18]), torch.tensor([9, 8, 7, 6]), lengths, (0, 1))


def test_a_device_without_4_bit_kernels_is_refused() -> None:
    assert not may_quantize("mps")
    with pytest.raises(MachineError, match="not supported on mps") as caught:
        check_quantization("mps")
    assert caught.value.remedy == "Write type: lora."


def test_without_bitsandbytes_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "_LIBRARY", "a_library_that_is_not_there")
    assert not may_quantize("cuda") and not may_quantize("cpu")
    with pytest.raises(MachineError, match="needs bitsandbytes") as caught:
        check_quantization("cpu")
    assert "uv sync --extra qlora" in caught.value.remedy and "pip install" in caught.value.remedy


@needs_bitsandbytes
def test_linear_layers_are_held_in_4_bits_and_the_rest_is_not(base: Base, fresh_model: Any) -> None:
    model, plain = load(base), fresh_model()
    assert model.num_parameters() == plain.num_parameters()
    linear = model.model.layers[0].mlp.down_proj.weight
    assert linear.dtype == torch.uint8 and linear.numel() * 2 == 64 * 128
    assert model.get_input_embeddings().weight.dtype == torch.float32
    num_linear = sum(p.numel() for p in plain.model.layers.parameters() if p.dim() == 2)
    assert plain.get_memory_footprint() - model.get_memory_footprint() == num_linear * (4 - 0.5)


@needs_bitsandbytes
def test_type_and_double_quantisation_act(base: Base) -> None:
    def state_of(**quantization: Any) -> Any:
        return load(base, **quantization).model.layers[0].mlp.down_proj.weight.quant_state

    nf4, fp4 = state_of(), state_of(quant_type="fp4", use_double_quant=False)
    assert (nf4.quant_type, nf4.nested) == ("nf4", True)
    assert (fp4.quant_type, fp4.nested) == ("fp4", False)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_pass_through_4_bit_layers_after_an_evaluation(
    base: Base, pack: Pack, dtype: torch.dtype
) -> None:
    """bitsandbytes lays weights out anew in evaluation on a CPU with AVX512_BF16, and cuts gradients off."""

    def gradients(*, evaluates_first: bool) -> dict[str, torch.Tensor]:
        model = load(base, dtype)
        adapted, plan = attach(model)
        restore = {
            n: torch.full_like(t, 0.01) if "lora_B" in n else t for n, t in adapter_tensors(adapted).items()
        }
        restore_adapter(adapted, restore)
        with packed_forward(model):
            if evaluates_first:
                with torch.inference_mode():
                    supervised_logits(adapted.eval(), pack)
            plan.enter_pack(1, pack.row_indices, pack.document_lengths)
            sum_cross_entropy(supervised_logits(adapted.train(), pack), pack.targets_S).backward()
        return {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}

    fresh, later = gradients(evaluates_first=False), gradients(evaluates_first=True)
    assert all(gradient is not None and gradient.any() for gradient in fresh.values())
    assert all(torch.equal(gradient, later[name]) for name, gradient in fresh.items())


@needs_bitsandbytes
@pytest.mark.parametrize("variant", [{}, {"uses_dora": True}, {"uses_rslora": True}])
def test_a_pack_is_what_its_rows_are_alone(base: Base, pack: Pack, variant: dict[str, bool]) -> None:
    model = load(base)
    adapted, _ = attach(model, **variant)
    with packed_forward(model), torch.no_grad():
        together = supervised_logits(adapted.eval(), pack)
        second = Pack(
            pack.token_ids_T[9:],
            pack.position_ids_T[9:],
            torch.tensor([3, 9]),
            pack.targets_S[2:],
            (11,),
            (1,),
        )
        torch.testing.assert_close(supervised_logits(adapted, second), together[2:], atol=1e-4, rtol=1e-4)


@needs_bitsandbytes
@pytest.mark.parametrize("options", [{}, {"quant_type": "fp4", "use_double_quant": False}], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_kernels_compute_layers_in_4_bits_as_bitsandbytes_does(
    base: Base, pack: Pack, options: dict[str, Any], dropout: float
) -> None:
    def loss_and_gradients(*, fuses: bool) -> list[torch.Tensor]:
        model = load(base, **options)
        adapted, plan = attach(model, dropout=dropout)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
        with packed_forward(model, fuses=fuses) as packed:
            assert (packed.num_fused > 0) == fuses
            if fuses:
                assert "forward" in vars(adapted.base_model.model.model.layers[0].mlp)
            plan.enter_pack(1, pack.row_indices, pack.document_lengths)
            adapted.train()
            loss = packed.sum_loss(pack)
            loss.backward()
        return [loss.detach(), *(p.grad for p in adapted.parameters() if p.requires_grad)]

    for ours, theirs in zip(loss_and_gradients(fuses=True), loss_and_gradients(fuses=False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_in_4_bits_needs_no_autocast_where_it_is_multiplied_in_the_run_s_numbers(
    base: Base, dtype: torch.dtype
) -> None:
    adapted, _ = attach(load(base, dtype))
    assert is_frozen_in(adapted, dtype)
    assert not is_frozen_in(adapted, torch.float16)
    mixed = load_quantized_model(
        base,
        Quantization(),
        dtype=dtype,
        compute_dtype=torch.float16,
        device=torch.device("cpu"),
    )
    assert not is_frozen_in(attach(mixed)[0], dtype)
