"""Attaching, saving and loading adapters, with stock PEFT as the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from llamafarm.errors import ModelError
from llamafarm.kernels.dropout import RowDropout
from llamafarm.model.adapter import (
    AdapterSettings,
    adapter_tensors,
    attach_adapter,
    load_adapter,
    read_adapter,
    restore_adapter,
    write_adapter,
)
from llamafarm.model.targets import ALL_LINEAR

Fresh = Callable[[], PreTrainedModel]
Logits = Callable[[torch.nn.Module], torch.Tensor]


def settings_with(**changes: object) -> AdapterSettings:
    chosen = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ("q_proj", "v_proj"), **changes}
    return AdapterSettings(**chosen)  # type: ignore[arg-type]


def attach(model: PreTrainedModel, seed: int = 1, **changes: object) -> PeftModel:
    adapted, _ = attach_adapter(model, settings_with(**changes), base_name=model.name_or_path, seed=seed)
    return adapted


def test_a_new_adapter_changes_nothing_yet(fresh_model: Fresh, logits_of: Logits) -> None:
    model = fresh_model()
    before = logits_of(model)
    adapted = attach(model)
    assert torch.equal(logits_of(adapted.eval()), before)
    tensors = adapter_tensors(adapted)
    assert len(tensors) == 2 * 2 * 2
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        assert tensor.shape[0 if "lora_A" in name else 1] == 4
        assert bool(tensor.any()) == ("lora_A" in name)


def test_only_the_adapter_is_trained(fresh_model: Fresh) -> None:
    adapted = attach(fresh_model())
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)


def test_the_first_weights_follow_from_the_seed_alone(fresh_model: Fresh) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = adapter_tensors(attach(fresh_model(), seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again, other = (adapter_tensors(attach(fresh_model(), seed=seed)) for seed in (1, 2))
    assert first.keys() == again.keys() == other.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, other[name]) == ("lora_B" in name)


def test_alpha_over_r_scales_the_adapter(fresh_model: Fresh, logits_of: Logits, tuned: PeftModel) -> None:
    base_logits, tuned_logits = logits_of(fresh_model()), logits_of(tuned)
    tensors = adapter_tensors(tuned)
    # B twice as small and alpha twice as large is the same adapter.
    halved = {name: tensor / 2 if "lora_B" in name else tensor for name, tensor in tensors.items()}
    adapted = attach(fresh_model(), alpha=16).eval()
    restore_adapter(adapted, halved)
    torch.testing.assert_close(logits_of(adapted), tuned_logits)
    assert (tuned_logits - base_logits).abs().max() > 0.1


def test_all_linear_takes_every_layer_but_the_head(fresh_model: Fresh) -> None:
    names = {
        name.split(".")[-3] for name in adapter_tensors(attach(fresh_model(), target_modules=ALL_LINEAR))
    }
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("missing", [("query",), ("q_proj", "query_key_value")])
def test_a_module_that_the_model_lacks_is_refused_with_those_it_has(
    fresh_model: Fresh, missing: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError) as caught:
        attach(fresh_model(), target_modules=missing)
    error = caught.value
    assert missing[-1] in error.problem
    assert "q_proj" not in error.problem
    assert error.where == "method.target_modules"
    for choice in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "all-linear"):
        assert choice in error.remedy


@pytest.mark.parametrize("target", ["self_attn", "input_layernorm", "layers.99.self_attn.q_proj"])
def test_a_module_that_takes_no_adapter_is_refused(fresh_model: Fresh, target: str) -> None:
    with pytest.raises(ModelError) as caught:
        attach(fresh_model(), target_modules=(target,))
    assert caught.value.where == "method.target_modules"
    assert "\n" not in caught.value.problem


def test_every_dropout_of_the_adapter_is_ours_and_has_a_name_of_its_own(fresh_model: Fresh) -> None:
    model = fresh_model()
    adapted, plan = attach_adapter(model, settings_with(dropout=0.3), base_name=model.name_or_path, seed=9)
    inside = {
        name: module
        for name, module in adapted.named_modules()
        if name.rpartition(".")[0].endswith("lora_dropout")
    }
    assert len(inside) == 4
    assert all(isinstance(module, RowDropout) and module.p == 0.3 for module in inside.values())
    assert plan.seed == 9
    # The layers drop different elements of the same row.
    plan.enter_pack(1, [0], [50])
    hidden = torch.ones(1, 50, 8)
    kept = [tuple((module.train()(hidden) != 0).flatten().tolist()) for module in inside.values()]
    assert len(set(kept)) == 4


def test_dropout_works_in_training_and_rests_in_evaluation(
    fresh_model: Fresh, tuned: PeftModel, logits_of: Logits
) -> None:
    model = fresh_model()
    adapted, plan = attach_adapter(model, settings_with(dropout=0.5), base_name=model.name_or_path, seed=9)
    restore_adapter(adapted, adapter_tensors(tuned))
    plan.enter_pack(1, [0], [20])
    torch.testing.assert_close(logits_of(adapted.eval()), logits_of(tuned))
    assert (logits_of(adapted.train()) - logits_of(tuned)).abs().max() > 0.01


def test_stock_peft_loads_what_is_written(
    tmp_path: Path, fresh_model: Fresh, tuned: PeftModel, logits_of: Logits
) -> None:
    write_adapter(tmp_path, tuned, adapter_tensors(tuned))
    stock = PeftModel.from_pretrained(fresh_model(), str(tmp_path)).eval()
    assert (logits_of(tuned) - logits_of(fresh_model())).abs().max() > 0.1
    assert torch.equal(logits_of(stock), logits_of(tuned))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")
    assert config["inference_mode"]
    assert not tuned.peft_config["default"].inference_mode, "the model in training stays in training"


def test_a_saved_adapter_is_loaded_and_read_as_it_was(
    tmp_path: Path, fresh_model: Fresh, tuned: PeftModel, logits_of: Logits
) -> None:
    tensors = adapter_tensors(tuned)
    write_adapter(tmp_path, tuned, tensors)
    loaded = load_adapter(fresh_model(), tmp_path)
    assert not loaded.training
    assert torch.equal(logits_of(loaded), logits_of(tuned))
    read = read_adapter(tmp_path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_a_dropout_adapter_is_loaded_without_our_dropout(
    tmp_path: Path, fresh_model: Fresh, tuned: PeftModel, logits_of: Logits
) -> None:
    adapted = attach(fresh_model(), dropout=0.5)
    restore_adapter(adapted, adapter_tensors(tuned))
    write_adapter(tmp_path, adapted, adapter_tensors(adapted))
    stock = PeftModel.from_pretrained(fresh_model(), str(tmp_path)).eval()
    assert torch.equal(logits_of(stock), logits_of(tuned))


def test_taken_weights_are_a_copy_and_can_be_put_back(tuned: PeftModel, logits_of: Logits) -> None:
    tensors, before = adapter_tensors(tuned), logits_of(tuned)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.zero_()
    assert all(tensor.any() for tensor in tensors.values())
    assert not torch.equal(logits_of(tuned), before)
    restore_adapter(tuned, tensors)
    assert torch.equal(logits_of(tuned), before)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_config.json", None),
        ("adapter_config.json", b""),
        ("adapter_config.json", b"\xff"),
        ("adapter_config.json", b"{}"),
        ("adapter_model.safetensors", None),
        ("adapter_model.safetensors", b""),
        ("adapter_model.safetensors", b"garbage" * 100),
    ],
)
def test_a_damaged_adapter_is_refused(
    tmp_path: Path, fresh_model: Fresh, tuned: PeftModel, file: str, content: bytes | None
) -> None:
    write_adapter(tmp_path, tuned, adapter_tensors(tuned))
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_adapter(fresh_model(), tmp_path)
    error = caught.value
    assert error.where == str(tmp_path)
    assert all(part and "\n" not in part for part in (error.problem, error.where, error.remedy))
    if file.endswith("safetensors"):
        with pytest.raises(ModelError):
            read_adapter(tmp_path)


def test_an_adapter_of_another_size_is_refused(tmp_path: Path, fresh_model: Fresh, tuned: PeftModel) -> None:
    write_adapter(tmp_path, tuned, adapter_tensors(attach(fresh_model(), r=2)))
    with pytest.raises(ModelError) as caught:
        load_adapter(fresh_model(), tmp_path)
    assert "\n" not in caught.value.problem
