"""Operations of a run, counted by hand and by torch; time and disk that follow from them."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from llamafarm.model.shape import shape_of
from llamafarm.planning.duration import (
    EFFICIENCY,
    GGUF_BITS,
    RowLengths,
    estimate_seconds,
    evaluation_flops,
    plan_disk,
    training_flops,
)
from llamafarm.planning.packs import choose_pack_tokens
from llamafarm.planning.request import MemoryRequest
from llamafarm.planning.shape import LinearLayer, ModelShape
from llamafarm.strategy.sections.deployment import Quantization

LAYERS = (
    LinearLayer("self_attn.q_proj", 64, 64, 4, "self_attn"),
    LinearLayer("mlp.up_proj", 64, 128, 4, "mlp"),
)
SHAPE = ModelShape(4, 64, 128, 4, 2, 16, 1000, True, False, 200_000, LAYERS)
REQUEST = MemoryRequest(
    shape=SHAPE,
    device_kind="cpu",
    method="lora",
    rank=8,
    targets=["q_proj"],
    precision="fp32",
    weight_bytes=4,
    training_packs=(),
)
LINEAR = 4 * (64 * 64 + 64 * 128)
ROWS = RowLengths.of(np.array([10, 20], np.int32), np.array([4, 6], np.int32))


def test_lengths_are_summed() -> None:
    assert RowLengths(30, 10, 100 + 400) == ROWS
    assert RowLengths.of(np.zeros(0, np.int32), np.zeros(0, np.int32)) == RowLengths(0, 0, 0)


def test_operations_of_training_are_those_of_the_formula() -> None:
    adapters = 6 * 30 * 4 * 8 * (64 + 64)
    attention = 6 * 4 * 64 * 500
    assert training_flops(REQUEST, ROWS) == 4 * 30 * LINEAR + adapters + attention + 4 * 10 * 64_000
    full = replace(REQUEST, method="full_finetune")
    assert training_flops(full, ROWS) == 6 * 30 * LINEAR + attention + 6 * 10 * 64_000


@pytest.mark.parametrize("num_blocks", range(5))
def test_checkpointed_blocks_go_forward_once_more(num_blocks: int) -> None:
    checkpointed = replace(REQUEST, checkpointed_blocks=num_blocks)
    more = training_flops(checkpointed, ROWS) - training_flops(REQUEST, ROWS)
    assert more == (2 * 30 * LINEAR + 2 * 30 * 4 * 8 * 128 + 2 * 4 * 64 * 500) * num_blocks / 4


def test_torch_counts_the_same_operations_of_full_finetuning() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=64, intermediate_size=160, num_hidden_layers=3,
                    num_attention_heads=4, num_key_value_heads=4, attn_implementation="eager")
    )  # fmt: skip
    ids_1T = torch.arange(48)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids_1T, labels=ids_1T, use_cache=False).loss.backward()
    request = replace(REQUEST, shape=shape_of(model), method="full_finetune")
    # Attention in one piece multiplies the half that causality hides, too; nothing before the first layer
    # needs a gradient of its input, which the formula does not know.
    lengths = RowLengths(48, 48, 2 * 48**2)
    assert training_flops(request, lengths) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_evaluation_is_a_forward_pass() -> None:
    assert evaluation_flops(REQUEST, ROWS) == 2 * 30 * LINEAR + 2 * 4 * 64 * 500 + 2 * 10 * 64_000


def test_seconds_follow_from_speed_and_efficiency() -> None:
    assert estimate_seconds(1e12, 1e11, 0.5) == pytest.approx(20)
    for kind in ("cpu", "mps", "cuda"):
        assert choose_pack_tokens(kind) and 0 < EFFICIENCY[kind] <= 1


def test_every_quantization_of_an_export_has_its_bits() -> None:
    names = get_args(get_args(Quantization)[0])
    assert set(GGUF_BITS) == set(names)
    assert GGUF_BITS["q4_k_m"] < GGUF_BITS["q8_0"] < GGUF_BITS["f16"]


def test_disk_counts_checkpoints_the_final_model_and_the_export() -> None:
    adapter_bytes = 4 * 4 * 8 * 128
    disk = plan_disk(REQUEST, num_checkpoints=3, quantization=None)
    assert (disk.checkpoints, disk.final_model, disk.export) == (3 * 4 * adapter_bytes, adapter_bytes, 0)
    assert disk.total_bytes == 13 * adapter_bytes
    exported = plan_disk(REQUEST, num_checkpoints=0, quantization="q8_0")
    assert exported.export == 200_000 * 2 + 200_000 * 8.5 / 8
