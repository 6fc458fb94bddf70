"""The inventory of saved tensors and the parts of the peak, held equal to what torch really saves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from llamafarm.data.encoding.pack import Pack, build_pack
from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.kernels import layout, loss
from llamafarm.kernels.attention import keeps_weights
from llamafarm.kernels.compiled import why_not_compiled
from llamafarm.kernels.dropout import DropoutPlan
from llamafarm.model.adapter import AdapterSettings, attach_adapter
from llamafarm.model.forward import packed_forward
from llamafarm.model.full import train_all_weights
from llamafarm.model.shape import shape_of
from llamafarm.planning import activations
from llamafarm.planning.activations import (
    block_backward_bytes,
    evaluation_bytes,
    loss_bytes,
    saved_by_block_bytes,
    saved_bytes,
)
from llamafarm.planning.memory import MemoryPlan, held_weight_bytes, predict_memory
from llamafarm.planning.request import MemoryRequest, PackSize
from llamafarm.planning.shape import LinearLayer, ModelShape
from llamafarm.training.methods import checkpoint_gradients

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# Wide enough that the small things that are not counted, such as the tables of positions, stay small.
SIZES: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def packed(lengths: tuple[int, ...]) -> Pack:
    """A pack of which half of each document is trained on."""
    rows = []
    for number, length in enumerate(lengths):
        is_supervised = np.arange(length) >= length // 2
        rows.append(EncodedRow(np.arange(length, dtype=np.int32) % 500, is_supervised, number))
    return build_pack(rows, range(len(rows)))


def saved_by_torch(
    model: torch.nn.Module,
    base: PreTrainedModel,
    plan: DropoutPlan | None,
    pack: Pack,
    request: MemoryRequest,
    autocast: Callable[[], AbstractContextManager[object]],
) -> int:
    """The bytes that a forward pass leaves for the backward pass, weights aside, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in weights:
            kept[pointer] = tensor
        return tensor

    model.train()
    if plan is not None:
        plan.enter_pack(1, pack.row_indices, pack.document_lengths, pack.supervised_positions_S)
    with (
        packed_forward(base, fuses=request.is_fused) as packed,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        autocast(),
    ):
        summed = packed.sum_loss(pack)
    assert summed.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def predicted_and_saved(
    architecture: str, precision: str, targets: list[str] | str | None, dropout: float, num_checkpointed: int
) -> tuple[int, int]:
    """The bytes that a step is said to keep for its backward pass, and those that it does keep."""
    torch.manual_seed(0)
    is_full, is_half = targets is None, precision == "bf16"
    base: PreTrainedModel
    if architecture == "llama":
        base = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    else:
        base = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    shape = shape_of(base)
    plan = None
    model: torch.nn.Module = base
    if targets is None:
        train_all_weights(base)
    else:
        base.to(torch.bfloat16 if is_half else torch.float32)
        settings = AdapterSettings(r=8, alpha=16, dropout=dropout, target_modules=targets)
        model, plan = attach_adapter(base, settings, base_name="base", seed=0)
    if num_checkpointed:
        checkpoint_gradients(base, num_checkpointed)
    pack = packed((200, 96))
    size = PackSize(pack.num_tokens, pack.num_supervised_tokens, pack.sum_of_squares)
    request = MemoryRequest(
        shape=shape,
        device_kind="cpu",
        method="full_finetune" if is_full else "lora",
        rank=8,
        targets=targets or [],
        precision=precision,
        weight_bytes=2 if is_half and not is_full else 4,
        training_packs=(size,),
        checkpointed_blocks=num_checkpointed,
        has_dropout=dropout > 0,
        keeps_attention_weights=keeps_weights("cpu", shape.head_dim),
    )

    def autocast() -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if is_half and is_full else nullcontext()

    # Of the three tensors of the loss one is saved, the log-softmax; in chunks, the gradient alone.
    log_softmax = 0 if request.has_known_head else loss_bytes(request, size) // 3
    predicted = saved_bytes(request, size) + log_softmax
    return predicted, saved_by_torch(model, base, plan, pack, request, autocast)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("targets", "dropout", "num_checkpointed"),
    [
        (["q_proj", "v_proj"], 0.0, 0),
        (ATTENTION, 0.1, 0),
        ("all-linear", 0.0, 0),
        ("all-linear", 0.1, 0),
        (None, 0.0, 0),
        (ATTENTION, 0.0, 1),
        ("all-linear", 0.1, 2),
        (ATTENTION, 0.0, 4),
        (None, 0.0, 3),
        (None, 0.0, 4),
    ],
)
@pytest.mark.parametrize("is_compiled", [False, True])
def test_the_inventory_is_what_torch_saves(
    architecture: str,
    precision: str,
    targets: list[str] | str | None,
    dropout: float,
    num_checkpointed: int,
    is_compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a processor with a compiler, and of one without, where attention keeps its weights."""
    if not is_compiled:
        monkeypatch.setattr("llamafarm.kernels.cpu.choice.why_not_compiled", lambda: "no compiler")
    elif reason := why_not_compiled("cpu"):
        pytest.skip(reason)
    predicted, saved = predicted_and_saved(architecture, precision, targets, dropout, num_checkpointed)
    assert predicted == pytest.approx(saved, rel=0.06)


LAYERS = tuple(
    LinearLayer(path, inputs, outputs, 4, name)
    for path, inputs, outputs, name in (
        ("self_attn.q_proj", 64, 64, "self_attn"),
        ("self_attn.v_proj", 64, 32, "self_attn"),
        ("mlp.down_proj", 128, 64, "mlp.down_proj"),
    )
)
SHAPE = ModelShape(4, 64, 128, 4, 2, 16, 1000, True, True, 200_000, LAYERS)
REQUEST = MemoryRequest(
    shape=SHAPE,
    device_kind="cpu",
    method="lora",
    rank=8,
    targets=["q_proj", "v_proj"],
    precision="fp32",
    weight_bytes=4,
    training_packs=(PackSize(512, 200),),
    returns_freed_memory=True,
    process_bytes=10**6,
)


def total(**changes: Any) -> int:
    """The predicted peak with some numbers changed."""
    return predict_memory(replace(REQUEST, **changes)).total_bytes


def test_the_parts_add_up_and_have_their_names() -> None:
    plan = predict_memory(REQUEST)
    parts = dict(plan.parts())
    assert {"weights", "adapters", "gradients", "optimizer", "activations", "logits"} < set(parts)
    assert sum(parts.values()) == plan.total_bytes
    assert parts["weights"] == 800_000
    assert parts["adapters"] == 4 * 4 * 8 * (64 + 64 + 64 + 32)
    assert parts["optimizer"] == 2 * parts["adapters"]
    assert dict(predict_memory(replace(REQUEST, uses_dora=True)).parts())["logits"] == 200 * 1000 * 12


def test_the_plan_knows_the_sizes_of_the_kernels() -> None:
    assert activations.CHUNK_POSITIONS == loss.CHUNK_POSITIONS
    assert activations.KEYS_KEPT == layout.KEYS_KEPT
    assert activations.ALIGNED_TOKENS == layout.ALIGNMENT


@given(
    tokens=st.integers(1, 4000),
    more=st.integers(0, 4000),
    part=st.floats(0, 1),
    rank=st.integers(1, 128),
    precision=st.sampled_from(["fp32", "bf16"]),
    checkpointed=st.integers(0, 4),
)
def test_more_tokens_and_a_higher_rank_never_take_less(
    tokens: int, more: int, part: float, rank: int, precision: str, checkpointed: int
) -> None:
    changes = {"precision": precision, "checkpointed_blocks": checkpointed, "rank": rank}
    small = PackSize(tokens, int(tokens * part))
    large = PackSize(tokens + more, small.num_supervised_tokens)
    assert total(**changes, training_packs=(small,)) <= total(**changes, training_packs=(large,))
    assert total(**changes) <= total(**{**changes, "rank": rank + 1})
    both = total(**changes, training_packs=(small, large))
    assert both == total(**changes, training_packs=(large,))


def test_each_lever_saves_what_it_is_for() -> None:
    assert total(checkpointed_blocks=4, training_packs=(PackSize(4000, 1),)) < total(
        training_packs=(PackSize(4000, 1),)
    )
    parts_of = dict(predict_memory(REQUEST).parts())
    gpu = total(device_kind="cuda")
    assert total(device_kind="cuda", precision="bf16", weight_bytes=2) < gpu
    assert predict_memory(replace(REQUEST, method="qlora", weight_bytes=0.5)).weights < parts_of["weights"]
    assert total(returns_freed_memory=False) > total()
    assert total(has_dropout=True, uses_dora=True) > total(uses_dora=True)
    assert total(has_dropout=True) == total(), "a mask is drawn again"
    assert total(method="full_finetune") > total()


@given(
    st.integers(64, 4000),
    st.integers(0, 3),
    st.sampled_from(["lora", "full_finetune"]),
    st.sampled_from(["cpu", "cuda"]),
)
def test_each_block_that_is_computed_again_saves_memory_but_the_last(
    tokens: int, num_blocks: int, method: str, device: str
) -> None:
    changes = {"method": method, "device_kind": device, "training_packs": (PackSize(tokens, 1),)}
    more, fewer = (total(checkpointed_blocks=number, **changes) for number in (num_blocks, num_blocks + 1))
    if num_blocks < 3:
        assert fewer <= more
    else:  # it comes back before anything is gone, and its input was kept for that
        assert fewer == pytest.approx(more, rel=0.1)


def test_the_block_that_is_computed_again_takes_the_place_of_those_kept_whole() -> None:
    pack = PackSize(512, 1)

    def in_backward_pass(num_blocks: int) -> int:
        request = replace(REQUEST, checkpointed_blocks=num_blocks)
        return saved_bytes(request, pack) + block_backward_bytes(request, pack)

    whole_block = saved_by_block_bytes(REQUEST, pack)
    block_input = 512 * 64 * 4
    assert in_backward_pass(0) - in_backward_pass(1) == whole_block - block_input
    assert in_backward_pass(1) - in_backward_pass(3) == 2 * (whole_block - block_input)
    assert in_backward_pass(4) - in_backward_pass(3) == block_input


def test_the_first_block_of_a_full_model_is_computed_beside_all_gradients() -> None:
    untied = replace(SHAPE, is_tied=False)
    request = replace(
        REQUEST,
        shape=untied,
        method="full_finetune",
        training_packs=(PackSize(64, 1),),
        checkpointed_blocks=4,
    )
    plan = predict_memory(request)
    assert plan.gradients == 800_000 - 4 * SHAPE.num_head_weights
    assert plan.activations == block_backward_bytes(request, PackSize(64, 1))


def test_gradients_are_there_only_from_the_second_pack_of_a_step_on() -> None:
    def plan_of(*packs: PackSize) -> MemoryPlan:
        return predict_memory(replace(REQUEST, method="full_finetune", training_packs=packs))

    assert plan_of(PackSize(4000, 4000)).gradients == 0
    assert plan_of(PackSize(4000, 4000, finds_gradients=True)).gradients == 800_000
    # A tiny step's peak is where all gradients have come.
    assert plan_of(PackSize(1, 1)).gradients == 800_000 + 4 * SHAPE.num_head_weights


def test_evaluation_and_loading_may_be_the_peak() -> None:
    large = PackSize(4000, 4000)
    small = replace(REQUEST, training_packs=(PackSize(1, 1),))
    with_evaluation = predict_memory(replace(small, evaluation_packs=(large,)))
    assert with_evaluation.logits == evaluation_bytes(REQUEST, large)
    loading = predict_memory(
        replace(REQUEST, weight_bytes=2, stored_bytes=10**9, training_packs=(PackSize(1, 1),))
    )
    assert loading.loading == 10**9
    assert not predict_memory(replace(REQUEST, stored_bytes=800_500)).loading


def test_weights_in_4_bits_leave_the_others_as_they_are() -> None:
    request = replace(REQUEST, method="qlora", weight_bytes=0.5, precision="bf16")
    in_linear = SHAPE.num_linear_weights
    outside = SHAPE.num_parameters - in_linear
    assert held_weight_bytes(request) == pytest.approx(outside * 2 + in_linear * (0.5 + 1 / 64), abs=1)
    assert held_weight_bytes(REQUEST) == 800_000


SIZES_OF_PACKS = st.builds(
    PackSize, st.integers(0, 9), st.integers(0, 9), st.none() | st.integers(0, 81), st.booleans()
)


@given(SIZES_OF_PACKS, SIZES_OF_PACKS)
def test_a_pack_that_covers_another_takes_at_least_its_memory(one: PackSize, other: PackSize) -> None:
    if one.covers(other):
        assert total(training_packs=(one,)) >= total(training_packs=(other,))
