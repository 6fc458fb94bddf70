"""Whole runs by each method and variant: the loss falls, packs change nothing, stock libraries load it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llamafarm.data.reading.records import read_data_file
from llamafarm.evaluation.evaluate import evaluate_model
from llamafarm.evaluation.loss import LossResult
from llamafarm.inference.open import open_final_model
from llamafarm.model.bundle import read_bundle
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training import run, session
from llamafarm.training.preparation import memory
from llamafarm.training.result import RunResult
from llamafarm.training.run import run_training

Train = Callable[..., RunResult]
MakeRows = Callable[..., list[dict[str, Any]]]

NO_ADAPTER = dict.fromkeys(("method__r", "method__alpha", "method__dropout", "method__target_modules"))
FULL = {**NO_ADAPTER, "method__type": "full_finetune", "training_args__learning_rate": 0.002}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"method__use_rslora": True},
    "dora": {"method__use_dora": True},
    "dora-rslora": {"method__use_dora": True, "method__use_rslora": True},
    "pissa": {"method__init_lora_weights": "pissa"},
    "pissa-rslora": {"method__init_lora_weights": "pissa", "method__use_rslora": True},
    "loraplus": {"method__loraplus_lr_ratio": 8.0},
    "full": FULL,
}


def settings_of(variant: str, **more: Any) -> dict[str, Any]:
    given = VARIANTS[variant]
    adapter = {} if "full" in variant else {"method__dropout": 0.2, "method__target_modules": "all-linear"}
    return {"training_args__learning_rate": 0.01} | adapter | given | more


def metrics_of(result: RunResult) -> list[dict[str, Any]]:
    lines = (result.final_model.parent / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def logits_of(model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(token_ids).logits
    return logits


def stock_logits(result: RunResult, base: Path, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of the final model as transformers and peft load it by themselves."""
    if read_bundle(result.final_model).kind == "full":
        return logits_of(AutoModelForCausalLM.from_pretrained(result.final_model), token_ids)
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(result.final_model))
    return logits_of(stock, token_ids)


@pytest.fixture(scope="module")
def token_ids(tiny_base: Path) -> torch.Tensor:
    """A prompt in tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    ids: torch.Tensor = tokenizer("Question: what is pain?\nAnswer:", return_tensors="pt").input_ids
    return ids


@pytest.fixture
def train(load: Callable[..., LoadedStrategy], make_rows: MakeRows) -> Train:
    """Train on eight rows in steps of four."""

    def train_rows(output: str = "run", *, num_eval_rows: int = 0, **settings: Any) -> RunResult:
        eval_rows = make_rows(num_eval_rows, seed=1) if num_eval_rows else None
        given = {"training_args__num_train_epochs": 3} | settings
        return run_training(load(make_rows(8), eval_rows, output=output, **given))

    return train_rows


@pytest.fixture
def trained_models(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models in memory at the end of each run."""
    models: list[Any] = []
    write_bundle = run.write_bundle

    def remember(folder: Path, bundle: Any, model: Any, *rest: Any) -> None:
        models.append(model)
        write_bundle(folder, bundle, model, *rest)

    monkeypatch.setattr(run, "write_bundle", remember)
    return models


@pytest.mark.parametrize("variant", VARIANTS)
def test_stock_libraries_load_what_was_trained_and_the_loss_has_fallen(
    train: Train, tiny_base: Path, token_ids: torch.Tensor, trained_models: list[Any], variant: str
) -> None:
    result = train(**settings_of(variant))
    expected = logits_of(trained_models[0], token_ids)
    torch.testing.assert_close(stock_logits(result, tiny_base, token_ids), expected, atol=2e-5, rtol=1e-5)
    opened = open_final_model(result.final_model, "cpu")
    torch.testing.assert_close(logits_of(opened.model, token_ids), expected, atol=2e-5, rtol=1e-5)
    untouched = logits_of(AutoModelForCausalLM.from_pretrained(tiny_base), token_ids)
    assert (untouched - expected).abs().max() > 0.01
    losses = [line["train_loss"] for line in metrics_of(result)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_row_at_a_time_gives_the_weights_of_packs(
    train: Train, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    settings = settings_of(variant, training_args__max_steps=3)
    packed = train("packed", **settings)
    monkeypatch.setattr(memory, "choose_pack_tokens", lambda kind: 1)
    alone = train("alone", **settings)
    name = "model.safetensors" if variant == "full" else "adapter_model.safetensors"
    theirs = load_file(alone.final_model / name)
    for key, tensor in load_file(packed.final_model / name).items():
        # AdamW makes steps of the learning rate, 5e-3, out of any gradient, so that rounding shows.
        torch.testing.assert_close(tensor, theirs[key], atol=1e-4, rtol=0)


def test_every_variant_trains_to_other_weights(
    train: Train, tiny_base: Path, token_ids: torch.Tensor
) -> None:
    logits = [
        stock_logits(train(variant, **settings_of(variant, training_args__max_steps=2)), tiny_base, token_ids)
        for variant in VARIANTS
    ]
    for index, one in enumerate(logits):
        assert all((one - other).abs().max() > 1e-4 for other in logits[:index])


@pytest.mark.parametrize("variant", ["lora", "dora", "pissa", "full"])
def test_the_best_checkpoint_becomes_the_final_model(
    train: Train,
    tiny_base: Path,
    token_ids: torch.Tensor,
    trained_models: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
) -> None:
    losses = iter([4.0, 3.0, 1.0, 2.0])
    monkeypatch.setattr(session.Session, "evaluate", lambda _: LossResult(next(losses), 10))
    result = train(num_eval_rows=2, **settings_of(variant), training_args__load_best_model_at_end=True)
    assert (result.best_step, result.num_steps) == (4, 6)
    expected = logits_of(trained_models[0], token_ids)
    torch.testing.assert_close(stock_logits(result, tiny_base, token_ids), expected, atol=2e-5, rtol=1e-5)
    best = result.final_model.parent / "checkpoints" / "step-00000004"
    name = "model.safetensors" if variant == "full" else "adapter_model.safetensors"
    final = load_file(result.final_model / name)
    assert final.keys() == load_file(best / name).keys()
    assert all(torch.equal(final[key], tensor) for key, tensor in load_file(best / name).items())


def test_a_pissa_adapter_is_plain_lora_of_twice_the_rank(train: Train) -> None:
    result = train(**settings_of("pissa-rslora", training_args__max_steps=1))
    config = json.loads((result.final_model / "adapter_config.json").read_text())
    assert (config["r"], config["use_rslora"], config["init_lora_weights"]) == (8, False, True)
    assert config["lora_alpha"] == pytest.approx(2 * 8 * 4**0.5)


@pytest.mark.parametrize(("variant", "keys"), [("rslora", ["use_rslora"]), ("dora", ["use_dora"])])
def test_the_saved_configuration_names_the_variant(train: Train, variant: str, keys: list[str]) -> None:
    config = train(**settings_of(variant, training_args__max_steps=1)).final_model / "adapter_config.json"
    assert all(json.loads(config.read_text())[key] is True for key in keys)


def test_a_full_model_has_all_that_it_takes(train: Train, tiny_base: Path) -> None:
    result = train(**settings_of("full", training_args__max_steps=2))
    names = {path.name for path in result.final_model.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "llamafarm.json"} <= names
    assert "adapter_config.json" not in names
    record = json.loads((result.final_model / "llamafarm.json").read_text())
    assert (record["kind"], record["base_model"]) == ("full", str(tiny_base))
    tensors = load_file(result.final_model / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert "lm_head.weight" not in tensors, "tied weights are written once"
    before = load_file(tiny_base / "model.safetensors")
    assert tensors.keys() == before.keys()
    assert all(not torch.equal(tensors[name], before[name]) for name in tensors)
    config = json.loads((result.final_model / "config.json").read_text())
    assert config["tie_word_embeddings"] and "within_documents" not in json.dumps(config)


def test_full_finetune_keeps_fp32_weights_under_bf16(train: Train) -> None:
    result = train(**settings_of("full"), hardware__optimization__mixed_precision="bf16")
    tensors = load_file(result.final_model / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    losses = [line["train_loss"] for line in metrics_of(result)]
    assert losses[-1] < losses[0]


def test_a_full_model_is_measured_beside_its_base(
    train: Train, tiny_base: Path, load: Callable[..., LoadedStrategy], make_rows: MakeRows
) -> None:
    result = train(num_eval_rows=3, **settings_of("full"), training_args__num_train_epochs=6)
    conversations = read_data_file(Path(str(load(make_rows(8)).strategy.dataset.train_file))).conversations
    opened = open_final_model(result.final_model, "cpu")
    assert opened.is_tuned
    base, tuned = evaluate_model(opened, conversations, "rows").measured
    assert (base.name, tuned.name) == ("base", "tuned")
    assert tuned.losses.total.loss < base.losses.total.loss
    lone_base = opened.as_base()
    assert not lone_base.is_tuned and lone_base.base_name == str(tiny_base)
    (alone,) = evaluate_model(lone_base, conversations, "rows").measured
    assert alone.losses.total == base.losses.total


def test_gradient_checkpointing_changes_nothing_for_all_weights(train: Train) -> None:
    kept = train("kept", **settings_of("full", training_args__max_steps=2))
    again = train(
        "again",
        **settings_of("full", training_args__max_steps=2),
        hardware__optimization__gradient_checkpointing=True,
    )
    theirs = load_file(again.final_model / "model.safetensors")
    for name, tensor in load_file(kept.final_model / "model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=0)


def test_auto_is_settled_and_told_before_training(train: Train) -> None:
    automatic = dict.fromkeys(("method__type", "method__r", "method__alpha", "method__dropout"), "auto")
    result = train(**automatic, training_args__max_steps=1)
    config = json.loads((result.final_model / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.1)
    record = json.loads((result.final_model.parent / "run.json").read_text())
    told = {choice["setting"]: choice["value"] for choice in record["choices"]}
    assert (told["method.type"], told["method.r"], told["method.dropout"]) == ("lora", "4", "0.1")
    assert record["settings"]["method"]["r"] == "auto", "what was asked for is kept"


@pytest.fixture
def base_with_biases(tmp_path: Path, tiny_base: Path) -> Path:
    """A random Qwen2, whose q, k and v have biases."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path / "biased"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("bias", "num_trained"), [("none", 0), ("lora_only", 2), ("all", 3)])
def test_biases_are_trained_in_fp32_under_mixed_precision(
    train: Train, base_with_biases: Path, bias: str, num_trained: int
) -> None:
    result = train(
        base_model__huggingface_id=str(base_with_biases),
        hardware__optimization__mixed_precision="bf16",
        method__bias=bias,
    )
    tensors = load_file(result.final_model / "adapter_model.safetensors")
    biases = {name: tensor for name, tensor in tensors.items() if name.endswith("bias")}
    assert len(biases) == num_trained
    assert all(tensor.dtype == torch.float32 and tensor.any() for tensor in biases.values())


def test_the_base_of_trained_biases_is_loaded_anew(
    train: Train, base_with_biases: Path, token_ids: torch.Tensor
) -> None:
    """Switching the adapter off would leave the trained biases on."""
    result = train(base_model__huggingface_id=str(base_with_biases), method__bias="all")
    untouched = logits_of(AutoModelForCausalLM.from_pretrained(base_with_biases), token_ids)
    opened = open_final_model(result.final_model, "cpu")
    with opened.base_beside() as base:
        assert torch.equal(logits_of(base.model, token_ids), untouched)
    assert torch.equal(logits_of(opened.as_base().model, token_ids), untouched)
    assert not torch.equal(logits_of(opened.model, token_ids), untouched)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_frozen_weights_are_held_as_torch_dtype_says(
    train: Train, trained_models: list[Any], dtype: str
) -> None:
    train(training_args__max_steps=1, base_model__torch_dtype=dtype)
    frozen = {p.dtype for p in trained_models[0].parameters() if not p.requires_grad}
    assert frozen == {getattr(torch, dtype)}
