"""The memory of a run, from a strategy and its rows: packs, checkpointing, what cannot fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llamafarm.errors import MachineError
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training import run
from llamafarm.training.preparation import memory
from llamafarm.training.preparation.prepare import Preparation, prepare
from llamafarm.training.run import run_training

Load = Callable[..., LoadedStrategy]
MakeRows = Callable[..., list[dict[str, Any]]]

GIB = 2**30


def needed_gb(preparation: Preparation) -> float:
    """What a run was predicted to need, as `hardware.memory_gb` says it."""
    return preparation.memory.plan.total_bytes / GIB


def chosen(preparation: Preparation) -> dict[str, str]:
    """What was chosen, by setting."""
    return {choice.setting: choice.value for choice in preparation.choices}


@pytest.fixture(autouse=True)
def _resident(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process holds grows from test to test; here it does not, and its allocator stays as it is."""
    monkeypatch.setattr(memory, "resident_memory_bytes", lambda: 300 * 2**20)
    monkeypatch.setattr(run, "return_freed_memory", lambda: True)


@pytest.fixture
def rows(make_rows: MakeRows) -> list[dict[str, Any]]:
    """Rows of which one step takes enough to fill several packs."""
    return make_rows(48, words=(20, 30))


def test_packs_are_as_large_as_the_device_likes_where_memory_is_plenty(
    load: Load, rows: list[dict[str, Any]]
) -> None:
    preparation = prepare(load(rows, hardware__memory_gb=64))
    assert preparation.memory.pack_tokens == 2048
    assert not preparation.memory.checkpointed_blocks
    assert preparation.memory.available_bytes == 64 * GIB
    assert "hardware.memory_gb" in next(c.why for c in preparation.choices if c.setting == "memory")


def test_less_memory_means_smaller_packs_and_the_same_weights(load: Load, rows: list[dict[str, Any]]) -> None:
    settings = {"training_args.per_device_train_batch_size": 48, "training_args.num_train_epochs": 2}
    plenty = load(rows, output="plenty", **settings)
    # What the least packs need is found by asking for far too little.
    least = prepare(load(rows, **settings, hardware__memory_gb=0.001))
    limit = needed_gb(least) + 0.001
    loaded = load(rows, output="short", **settings, hardware__memory_gb=limit)
    short = prepare(loaded)
    assert short.memory.fits
    assert short.memory.pack_tokens < prepare(plenty).memory.pack_tokens
    assert chosen(short)["pack"] == f"{short.memory.pack_tokens} tokens"
    weights = [
        load_file(Path(run_training(one).final_model) / "adapter_model.safetensors")
        for one in (plenty, loaded)
    ]
    for name, expected in weights[0].items():
        assert (weights[1][name] - expected).abs().max() < 1e-5, name


def test_a_run_that_cannot_fit_is_refused_before_it_starts(
    load: Load, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(MachineError) as caught:
        run_training(load(rows, hardware__memory_gb=0.05))
    assert "GiB at its peak" in caught.value.problem
    assert "alone take" in caught.value.remedy
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wish", [True, False])
def test_checkpointing_that_the_strategy_settles_stays_as_it_is(
    load: Load, rows: list[dict[str, Any]], wish: bool
) -> None:
    loaded = load(rows, hardware__memory_gb=0.05, hardware__optimization__gradient_checkpointing=wish)
    preparation = prepare(loaded)
    num_blocks = preparation.memory.cut.request.shape.num_layers
    assert preparation.memory.checkpointed_blocks == (num_blocks if wish else 0)
    assert "checkpointing" not in chosen(preparation)


def test_what_is_left_to_us_computes_as_few_blocks_again_as_the_memory_asks_for(
    load: Load, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing else of a model so small is larger than what its loss takes.
    monkeypatch.setattr(memory, "keeps_weights", lambda *_: True)
    least = prepare(load(rows, hardware__memory_gb=0.001))
    limit = needed_gb(least) - 1e-6
    loaded = load(rows, hardware__memory_gb=limit)
    preparation = prepare(loaded)
    assert preparation.memory.checkpointed_blocks == 1
    assert chosen(preparation)["checkpointing"] == "1 of 2 blocks are computed again"
    result = run_training(loaded)
    record = json.loads((Path(result.final_model).parent / "run.json").read_text(encoding="utf-8"))
    assert record["checkpointed_blocks"] == 1
    shown = {choice["setting"]: choice["value"] for choice in record["choices"]}
    assert shown["checkpointing"] == "1 of 2 blocks are computed again"


def test_trained_biases_and_full_finetuning_are_counted(load: Load, rows: list[dict[str, Any]]) -> None:
    lora = prepare(load(rows)).memory.plan
    settings = {"method": None, "method.type": "full_finetune", "training_args.learning_rate": 1e-5}
    unused = dict.fromkeys(("method.r", "method.alpha", "method.dropout", "method.target_modules"))
    full = prepare(load(rows, **unused, **{k: v for k, v in settings.items() if v is not None})).memory.plan
    assert lora.adapters and not full.adapters
    assert full.optimizer == 2 * full.weights
