"""All weights of a model: taken, put back, written in shards, read, with transformers itself as the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llamafarm.errors import ModelError
from llamafarm.model import full
from llamafarm.model.full import full_tensors, read_full, restore_full, train_all_weights, write_full
from llamafarm.model.weights import form_of, read_weights, transformer_of, write_weights

Fresh = Callable[[], PreTrainedModel]
Logits = Callable[[torch.nn.Module], torch.Tensor]


@pytest.fixture
def trained(fresh_model: Fresh) -> PreTrainedModel:
    """The tiny base with every weight changed."""
    model = fresh_model()
    train_all_weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    return model


def test_every_weight_is_trained_and_counted_once(fresh_model: Fresh) -> None:
    model = fresh_model()
    model.requires_grad_(False)
    train_all_weights(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert (form_of(model), transformer_of(model)) == ("full", model)


def test_weights_in_16_bits_are_not_trained(fresh_model: Fresh) -> None:
    with pytest.raises(AssertionError):
        train_all_weights(fresh_model().to(torch.bfloat16))


def test_stock_transformers_loads_what_is_written(
    tmp_path: Path, fresh_model: Fresh, trained: PreTrainedModel, logits_of: Logits
) -> None:
    write_weights(tmp_path, trained, full_tensors(trained))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(stock), logits_of(trained.eval()))
    assert not torch.equal(logits_of(stock), logits_of(fresh_model()))
    assert stock.lm_head.weight is stock.get_input_embeddings().weight
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_large_models_are_written_in_shards(
    tmp_path: Path, trained: PreTrainedModel, logits_of: Logits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "_MAX_SHARD_SIZE", "300KB")
    write_full(tmp_path, trained, full_tensors(trained))
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    assert torch.equal(
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits_of(trained.eval())
    )
    tensors, read = full_tensors(trained), read_weights(tmp_path)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_weights_are_put_back_and_stay_tied(
    tmp_path: Path, fresh_model: Fresh, trained: PreTrainedModel, logits_of: Logits
) -> None:
    write_full(tmp_path, trained, full_tensors(trained))
    model = fresh_model()
    parameters = dict(model.named_parameters())
    restore_full(model, read_full(tmp_path))
    assert torch.equal(logits_of(model), logits_of(trained.eval()))
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_taken_weights_cost_no_memory(trained: PreTrainedModel) -> None:
    own = {name: parameter.data_ptr() for name, parameter in trained.named_parameters()}
    taken = full_tensors(trained)
    assert all(taken[name].data_ptr() == pointer for name, pointer in own.items())
    assert not any(tensor.requires_grad for tensor in taken.values())


def test_generation_settings_that_cannot_be_saved_do_not_lose_the_model(
    tmp_path: Path, trained: PreTrainedModel, logits_of: Logits
) -> None:
    trained.generation_config.do_sample = False
    trained.generation_config.temperature = 0.5  # Llama 2 came with settings of this kind
    write_full(tmp_path, trained, full_tensors(trained))
    assert torch.equal(
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits_of(trained.eval())
    )


def test_experts_that_are_written_under_other_names_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "mixtral",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    write_full(tmp_path, model, full_tensors(model))
    read = read_full(tmp_path)
    assert all(torch.equal(read[name], tensor) for name, tensor in full_tensors(model).items())


@pytest.mark.parametrize("damage", [b"", b"garbage" * 50, None])
def test_damaged_weights_are_refused(tmp_path: Path, trained: PreTrainedModel, damage: bytes | None) -> None:
    write_full(tmp_path, trained, full_tensors(trained))
    file = tmp_path / "model.safetensors"
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(ModelError) as caught:
        read_full(tmp_path)
    assert caught.value.where == str(tmp_path) and "\n" not in caught.value.problem
