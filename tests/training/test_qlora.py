"""Whole runs on a base in 4 bits; skipped without bitsandbytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from llamafarm.errors import MachineError
from llamafarm.inference import open as opening
from llamafarm.inference.open import open_final_model
from llamafarm.model import quantized
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training import run
from llamafarm.training.preparation import memory
from llamafarm.training.result import RunResult
from llamafarm.training.run import run_training

Train = Callable[..., RunResult]
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
TOKEN_IDS = torch.arange(3, 23)[None]


@pytest.fixture
def train(load: Callable[..., LoadedStrategy], make_rows: Callable[..., list[dict[str, Any]]]) -> Train:
    """Train on eight rows in steps of four, the base in 4 bits."""

    def train_rows(output: str = "run", *, num_eval_rows: int = 0, **settings: Any) -> RunResult:
        given = {"method__type": "qlora", "method__dropout": 0.2, "training_args__num_train_epochs": 3}
        eval_rows = make_rows(num_eval_rows, seed=1) if num_eval_rows else None
        return run_training(load(make_rows(8), eval_rows, output=output, **{**given, **settings}))

    return train_rows


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(input_ids=TOKEN_IDS).logits
    return logits.float()


def test_without_bitsandbytes_nothing_is_started(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "_LIBRARY", "a_library_that_is_not_there")
    with pytest.raises(MachineError, match="needs bitsandbytes"):
        train()


@needs_bitsandbytes
@pytest.mark.parametrize("settings", [{}, {"method__use_dora": True}, {"method__bnb_4bit_quant_type": "fp4"}])
def test_the_final_model_gives_the_trained_logits_on_a_base_in_4_bits(
    train: Train, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    trained: list[Any] = []
    write_bundle = run.write_bundle
    monkeypatch.setattr(run, "write_bundle", lambda *a: (trained.append(a[2]), write_bundle(*a))[1])
    result = train(num_eval_rows=2, training_args__learning_rate=0.02, **settings)
    expected = logits_of(trained[0])
    quant_type = settings.get("method__bnb_4bit_quant_type", "nf4")
    record = json.loads((result.final_model / "llamafarm.json").read_text())
    assert record["quantization"] == {"quant_type": quant_type, "use_double_quant": True}
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=True
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_base, quantization_config=config, device_map={"": "cpu"})
    for module in base.modules():
        module.support_avx512bf16_for_cpu = False
    stock = PeftModel.from_pretrained(base, str(result.final_model))
    torch.testing.assert_close(logits_of(stock), expected, atol=1e-4, rtol=1e-4)
    opened = open_final_model(result.final_model, "cpu")
    torch.testing.assert_close(logits_of(opened.model), expected, atol=1e-4, rtol=1e-4)
    lines = (result.final_model.parent / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train_loss"] for line in lines[1:]]  # the first is of before training
    assert losses[-1] < losses[0]


@needs_bitsandbytes
def test_one_row_at_a_time_gives_the_losses_of_packs(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = train("packed", training_args__max_steps=3)
    monkeypatch.setattr(memory, "choose_pack_tokens", lambda kind: 1)
    alone = train("alone", training_args__max_steps=3)
    assert packed.train_loss == pytest.approx(alone.train_loss, abs=1e-4)


@needs_bitsandbytes
def test_without_4_bits_the_base_is_loaded_in_full_and_that_is_said(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(training_args__max_steps=2)
    capsys.readouterr()
    open_final_model(result.final_model, "cpu")
    assert "held in 4 bits (nf4), as it was in training" in capsys.readouterr().err
    monkeypatch.setattr(opening, "may_quantize", lambda _: False)
    opened = open_final_model(result.final_model, "cpu")
    assert "answers may differ slightly" in capsys.readouterr().err
    assert opened.transformer.get_input_embeddings().weight.dtype == torch.float32
    assert opened.transformer.model.layers[0].mlp.down_proj.weight.dtype == torch.float32
