"""Each tensor has the type that llama.cpp's own quantiser gives it, and its own kernel's bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import quants

from llamafarm.deploy.gguf.quantise import quantise
from llamafarm.deploy.gguf.types import MIXTURES, Place, choose_type, num_bytes
from llamafarm.inference.llamacpp import has_llamacpp
from llamafarm.strategy.sections.deployment import Export

needs_llamacpp = pytest.mark.skipif(not has_llamacpp(), reason="needs xllamacpp")


def types_of(mixture: str, kind: str, num_layers: int = 32, num_groups: int = 4, **options: bool) -> str:
    """Return the types of one tensor through all layers, run-length encoded: `Q6_K*4 Q4_K*2 …`."""
    found = [
        choose_type(
            MIXTURES[mixture],
            Place(f"blk.{layer}.{kind}.weight", num_layers, num_groups, is_tied=False),
            (512, 512),
            **options,
        ).type.name
        for layer in range(num_layers)
    ]
    runs: list[list[object]] = []
    for name in found:
        if runs and runs[-1][0] == name:
            runs[-1][1] += 1  # type: ignore[operator]
        else:
            runs.append([name, 1])
    return " ".join(f"{name}*{count}" for name, count in runs)


# As published files of Llama 3 8B have them (32 layers, four query heads to a key head).
MORE_BITS = "Q6_K*4 " + "Q4_K*2 Q6_K*1 " * 8 + "Q6_K*4"


@pytest.mark.parametrize(
    ("mixture", "kind", "expected"),
    [
        ("q4_k_m", "attn_q", "Q4_K*32"),
        ("q4_k_m", "ffn_up", "Q4_K*32"),
        ("q4_k_s", "attn_v", "Q5_K*4 Q4_K*28"),
        ("q4_k_s", "ffn_down", "Q5_K*4 Q4_K*28"),
        ("q5_k_s", "attn_v", "Q5_K*32"),
        ("q3_k_m", "attn_v", "Q5_K*2 Q4_K*30"),
        ("q3_k_m", "ffn_down", "Q5_K*2 Q4_K*30"),
        ("q3_k_m", "attn_output", "Q4_K*32"),
        ("q3_k_l", "ffn_down", "Q5_K*32"),
        ("q2_k", "attn_v", "Q4_K*32"),
        ("q2_k", "ffn_down", "Q3_K*32"),
        ("q2_k", "attn_output", "Q3_K*32"),
        ("q6_k", "attn_v", "Q6_K*32"),
        ("q8_0", "ffn_down", "Q8_0*32"),
        ("q4_0", "ffn_down", "Q4_0*32"),
        ("f16", "ffn_down", "F16*32"),
    ],
)
def test_mixtures_are_llama_cpps(mixture: str, kind: str, expected: str) -> None:
    assert types_of(mixture, kind) == expected


@pytest.mark.parametrize(("mixture", "usual"), [("q4_k_m", "Q4_K"), ("q5_k_m", "Q5_K")])
@pytest.mark.parametrize("kind", ["attn_v", "ffn_down", "attn_qkv"])
def test_sensitive_tensors_have_more_bits_in_some_layers(mixture: str, usual: str, kind: str) -> None:
    more = {*range(4), 6, 9, 12, 15, 18, 21, 24, 27, *range(28, 32)}
    found = types_of(mixture, kind).split()
    layers = [name for run in found for name in [run.split("*")[0]] * int(run.split("*")[1])]
    assert layers == ["Q6_K" if layer in more else usual for layer in range(32)]


def test_with_an_importance_matrix_the_old_types_guard_the_first_layers() -> None:
    assert types_of("q4_0", "ffn_down", has_importance=True) == "Q4_1*4 Q4_0*28"
    assert types_of("q5_0", "ffn_down", has_importance=True) == "Q5_1*4 Q5_0*28"


@pytest.mark.parametrize(
    ("mixture", "name", "is_tied", "expected"),
    [
        ("q4_k_m", "output.weight", False, Type.Q6_K),
        ("q4_k_m", "token_embd.weight", False, Type.Q4_K),
        ("q4_k_m", "token_embd.weight", True, Type.Q6_K),
        ("q4_0", "token_embd.weight", True, Type.Q6_K),
        ("q8_0", "output.weight", False, Type.Q8_0),
        ("f16", "output.weight", False, Type.F16),
        ("q4_k_m", "blk.0.attn_q_norm.weight", False, Type.F32),
        ("q4_k_m", "blk.0.attn_q.bias", False, Type.F32),
    ],
)
def test_the_ends_of_a_model_and_its_small_tensors(
    mixture: str, name: str, is_tied: bool, expected: Type
) -> None:
    shape = (512,) if name.endswith(("bias", "norm.weight")) else (3072, 512)
    assert choose_type(MIXTURES[mixture], Place(name, 32, 4, is_tied), shape).type == expected


@pytest.mark.parametrize(
    ("mixture", "row", "expected"),
    [
        ("q4_k_m", 96, Type.Q5_0),
        ("q5_k_m", 96, Type.Q5_1),
        ("q6_k", 96, Type.Q8_0),
        ("q3_k_s", 96, Type.Q4_0),
        ("q2_k", 96, Type.Q4_0),
        ("q4_k_m", 100, Type.F16),
        ("q8_0", 100, Type.F16),
        ("q4_0", 33, Type.F16),
    ],
)
def test_a_shape_that_does_not_allow_the_type_gets_another_and_that_is_said(
    mixture: str, row: int, expected: Type
) -> None:
    chosen = choose_type(MIXTURES[mixture], Place("blk.9.attn_q.weight", 32, 4, False), (8, row))
    assert chosen.type == expected
    assert chosen.instead_of == MIXTURES[mixture].usual


def test_every_quantization_of_a_strategy_can_be_written() -> None:
    schema = Export.model_json_schema()["properties"]["quantization"]
    assert set(schema["enum"]) <= set(MIXTURES)


@needs_llamacpp
@pytest.mark.parametrize("type_", [Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1])
def test_old_types_are_the_bytes_of_the_gguf_library(type_: Type) -> None:
    tensor = torch.randn(24, 256, generator=torch.Generator().manual_seed(3))
    found = np.concatenate([chunk.ravel() for chunk in quantise(tensor, type_)])
    ours = quants.dequantize(found.reshape(24, -1), type_)
    theirs = quants.dequantize(quants.quantize(tensor.numpy(), type_), type_)
    np.testing.assert_allclose(ours, theirs, atol=2e-2)


@needs_llamacpp
@pytest.mark.parametrize(
    ("type_", "most"),
    [
        (Type.Q2_K, 0.35),
        (Type.Q3_K, 0.17),
        (Type.Q4_K, 0.075),
        (Type.Q5_K, 0.038),
        (Type.Q6_K, 0.019),
        (Type.Q8_0, 0.006),
        (Type.F16, 0.001),
        (Type.BF16, 0.004),
        (Type.F32, 0.0),
    ],
)
def test_what_is_read_back_is_near(type_: Type, most: float) -> None:
    tensor = torch.randn(70, 512, generator=torch.Generator().manual_seed(4))
    found = np.concatenate([chunk.ravel() for chunk in quantise(tensor, type_)])
    assert found.nbytes == num_bytes(type_, (70, 512))
    read = quants.dequantize(found.reshape(70, -1), type_)
    assert float(np.sqrt(np.mean((read - tensor.numpy()) ** 2))) <= most


@needs_llamacpp
def test_an_importance_matrix_moves_the_error_to_where_it_matters_less() -> None:
    tensor = torch.randn(64, 256, generator=torch.Generator().manual_seed(5))
    matters = np.arange(256) % 4 == 0
    importance = np.where(matters, 100.0, 0.01).astype(np.float32)

    def errors(weights: np.ndarray | None) -> np.ndarray:
        packed = np.concatenate([chunk.ravel() for chunk in quantise(tensor, Type.Q3_K, weights)])
        read = quants.dequantize(packed.reshape(64, -1), gguf.GGMLQuantizationType.Q3_K)
        return ((read - tensor.numpy()) ** 2).mean(axis=0)

    with_it, without = errors(importance), errors(None)
    assert with_it[matters].mean() < 0.8 * without[matters].mean()
    assert with_it[~matters].mean() > without[~matters].mean()
