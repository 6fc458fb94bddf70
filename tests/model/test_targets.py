"""Target modules on small random models of real architectures: named right, attached, and trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llamafarm.data.encoding.pack import Pack
from llamafarm.errors import ModelError
from llamafarm.kernels.loss import sum_cross_entropy
from llamafarm.model.adapter import AdapterSettings, attach_adapter
from llamafarm.model.forward import packed_forward, supervised_logits
from llamafarm.model.targets import (
    ALL_LINEAR,
    check_target_modules,
    choose_target_modules,
    linear_layers,
    names_for_role,
)
from llamafarm.planning.guide import LORA_BY_SIZE

LLAMA = ("q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
COMMON = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "attn_pdrop": 0.0}
EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}

# What the guide's six names are on an architecture, and whether its attention can be packed.
ARCHITECTURES: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "llama": (COMMON, LLAMA),
    "mistral": (COMMON, LLAMA),
    "qwen2": (COMMON, LLAMA),
    "qwen3": ({**COMMON, "head_dim": 8}, LLAMA),
    "gemma2": ({**COMMON, "head_dim": 8}, LLAMA),
    "gemma3_text": ({**COMMON, "head_dim": 8}, LLAMA),
    "phi": (COMMON, ("q_proj", "v_proj", "k_proj", "dense", "fc1")),
    "phi3": (COMMON, ("qkv_proj", "o_proj", "gate_up_proj")),
    "glm4": ({**COMMON, "head_dim": 8}, ("q_proj", "v_proj", "k_proj", "o_proj", "gate_up_proj")),
    "gpt2": (GPT2, ("c_attn", "attn.c_proj", "c_fc")),
    "codegen": ({**GPT2, "rotary_dim": 8}, ("qkv_proj", "out_proj", "fc_in")),
    "gpt_neox": (COMMON, ("query_key_value", "dense", "dense_h_to_4h")),
    "starcoder2": (COMMON, ("q_proj", "v_proj", "k_proj", "o_proj", "c_fc")),
    "opt": (
        {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32},
        ("q_proj", "v_proj", "k_proj", "out_proj", "fc1"),
    ),
    "mixtral": ({**COMMON, **EXPERTS}, ("q_proj", "v_proj", "k_proj", "o_proj")),
    "qwen2_moe": ({**COMMON, **EXPERTS, "shared_expert_intermediate_size": 32}, LLAMA),
    "lfm2": (
        {**COMMON, "layer_types": ["full_attention", "conv"]},
        ("q_proj", "v_proj", "k_proj", "self_attn.out_proj", "w1", "w3"),
    ),
    "falcon": (COMMON, ("query_key_value", "dense", "dense_h_to_4h")),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, ("query_key_value", "dense", "dense_h_to_4h")),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, ("Wqkv", "out_proj", "up_proj")),
}
# Their attention knows places by a mask or goes around transformers' interface: refused before training.
NOT_PACKABLE = {"falcon", "bloom", "mpt", "lfm2"}


def build(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, vocab_size=64, **ARCHITECTURES[architecture][0])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def attach(model: PreTrainedModel, targets: Sequence[str] | str, dropout: float = 0.0) -> Any:
    settings = AdapterSettings(r=2, alpha=4, dropout=dropout, target_modules=targets)
    return attach_adapter(model, settings, base_name="base", seed=1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_guides_names_are_found_under_the_models_own(architecture: str) -> None:
    model, expected = build(architecture), ARCHITECTURES[architecture][1]
    chosen, why = choose_target_modules(model, 5e9)
    assert chosen == expected
    assert "the guide's table for 3-7B" in why
    for role in LLAMA:
        names = names_for_role(model, role)
        if not names:
            assert f"no linear layer for {role}" in why or role in why.partition("no linear layer for ")[2]
        elif names != (role,):
            assert f"{role} is {names[0]} here" in why


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - NOT_PACKABLE))
def test_every_chosen_module_is_trained_on_a_pack_with_dropout(architecture: str) -> None:
    model = build(architecture)
    chosen, _ = choose_target_modules(model, 5e9)
    adapted, plan = attach(model, chosen, dropout=0.2)
    lengths = (5, 4)
    ids = torch.arange(1, 10)
    positions = torch.cat([torch.arange(length) for length in lengths])
    pack = Pack(ids, positions, torch.tensor([1, 2, 6]), torch.tensor([3, 4, 8]), lengths, (0, 1))
    with packed_forward(model):
        plan.enter_pack(1, pack.row_indices, pack.document_lengths, pack.supervised_positions_S)
        sum_cross_entropy(supervised_logits(adapted.train(), pack), pack.targets_S).backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    assert all(p.grad is not None for p in trained.values())
    assert all(p.grad.any() for name, p in trained.items() if "lora_B" in name)
    sites = {name.partition(".lora_")[0] for name in trained}
    assert all(any(site.endswith(f".{name}") for site in sites) for name in chosen)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_takes_every_layer_but_the_head(architecture: str) -> None:
    model = build(architecture)
    head = model.get_output_embeddings()
    head_name = next(name for name, module in model.named_modules() if module is head)
    layers = set(linear_layers(model))
    adapted, _ = attach(model, ALL_LINEAR)
    sites = {
        name.partition(".lora_A")[0].removeprefix("base_model.model.")
        for name, _ in adapted.named_parameters()
        if ".lora_A" in name
    }
    assert sites == layers
    assert head_name not in sites


def test_every_row_of_the_guide_is_followed() -> None:
    model = build("llama")
    for row in LORA_BY_SIZE:
        chosen, why = choose_target_modules(model, row.parameters.low)
        assert chosen == row.target_modules
        assert why == f"the guide's table for {row.size}"


def test_an_architecture_with_nothing_alike_gets_all_its_linear_layers() -> None:
    chosen, why = choose_target_modules(nn.ModuleDict({"mixer": nn.Linear(2, 2)}), 1_000_000)
    assert chosen == ALL_LINEAR
    assert "no modules called q_proj, v_proj" in why


@pytest.mark.parametrize(
    ("architecture", "targets", "expected"),
    [
        ("gpt2", ["q_proj", "v_proj"], "q_proj is c_attn here"),
        ("phi3", ["o_proj", "gate_proj"], "gate_proj is gate_up_proj here"),
        ("llama", ["c_attn"], "Choose among down_proj, gate_proj, k_proj"),
    ],
)
def test_names_of_another_architecture_are_refused_with_the_models_own(
    architecture: str, targets: list[str], expected: str
) -> None:
    with pytest.raises(ModelError) as caught:
        check_target_modules(build(architecture), targets)
    assert expected in caught.value.remedy
    assert caught.value.where == "method.target_modules"


@pytest.fixture
def refuse_names() -> Callable[[str], None]:
    """Fail if a name is accepted."""

    def refuse(name: str) -> None:
        with pytest.raises(ModelError):
            check_target_modules(build("llama"), [name])

    return refuse


def test_part_of_a_name_is_no_name(refuse_names: Callable[[str], None]) -> None:
    for name in ("proj", "q_pro", "Q_PROJ"):
        refuse_names(name)
