"""The strategies that come with the repository, and each YAML block that the guide prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llamafarm.strategy.load import LoadedStrategy, list_strategies, load_strategy

Load = Callable[..., LoadedStrategy]

DEMOS = Path(__file__).parents[2] / "demos" / "strategies.yaml"

FRAGMENTS = {
    "cuda": """
        hardware:
          device: cuda
          precision: {cuda: {use_fp16: true, use_bf16: false, use_tf32: true}}
          optimization: {gradient_checkpointing: true, mixed_precision: fp16}
        """,
    "mps": """
        hardware:
          device: mps
          precision: {mps: {use_fp16: false, use_bf16: false}}
          optimization: {gradient_checkpointing: false, mixed_precision: no}
        """,
    "cpu": """
        hardware:
          device: cpu
          precision: {cpu: {use_fp16: false}}
          optimization: {gradient_checkpointing: true, gradient_accumulation_steps: 8, mixed_precision: no}
        """,
    "quick": """
        method: {type: lora, r: 4, alpha: 8, dropout: 0.05}
        training_args:
          num_train_epochs: 1
          per_device_train_batch_size: 2
          learning_rate: 0.0002
          eval_strategy: "no"
          save_strategy: "no"
        """,
    "large": """
        method: {type: lora, r: 32, alpha: 64, dropout: 0.05}
        training_args:
          num_train_epochs: 1-2
          per_device_train_batch_size: 8
          gradient_accumulation_steps: 2
          eval_strategy: "steps"
          eval_steps: 500
          save_steps: 1000
        """,
    "domain": """
        training_args: {num_train_epochs: 2-3, warmup_ratio: 0.05, eval_split: 0.15}
        data_preprocessing: {max_length: 256, remove_duplicates: true, filter_quality: true}
        """,
    "advanced": """
        training_args:
          ddp_find_unused_parameters: false
          dataloader_num_workers: 4
          fp16_backend: "auto"
          lr_scheduler_type: "cosine"
          eval_accumulation_steps: 4
        data_preprocessing:
          max_input_length: 256
          max_output_length: 256
          remove_duplicates: true
          shuffle: true
          seed: 42
        """,
    "datacenter": """
        components:
          fine_tuner:
            type: pytorch
            config:
              base_model: {huggingface_id: meta-llama/Llama-2-7b-hf, torch_dtype: bfloat16}
        monitoring: {track_training_metrics: true, log_tensorboard: true}
        """,
}


@pytest.mark.parametrize("name", FRAGMENTS)
def test_the_guides_blocks_load(loaded: Load, name: str) -> None:
    found = loaded(f"        s:{FRAGMENTS[name].replace(chr(10), chr(10) + '  ')}")
    assert sum(origin.kind == "strategy file" for origin in found.origins.values()) >= 3


def test_a_printed_setting_arrives(loaded: Load) -> None:
    strategy = loaded(f"        s:{FRAGMENTS['large'].replace(chr(10), chr(10) + '  ')}").strategy
    assert (strategy.method.r, strategy.training_args.save_steps) == (32, 1000)


def test_all_demos_load_and_say_how_they_are_run() -> None:
    text = DEMOS.read_text()
    keys = [summary.key for summary in list_strategies(DEMOS)]
    assert {"demo3_training_optimized", "demo3_finetuned_model", "demo3_training", "demo_minimal"} <= set(
        keys
    )
    for key in keys:
        found = load_strategy(key, file=DEMOS)
        assert found.strategy.name and found.strategy.description
        assert f"--strategy {key} " in text
        assert found.strategy.prompt_template.format == "Question: {input}\nAnswer: {output}\n"


def test_the_guides_demonstration() -> None:
    strategy = load_strategy("demo3_training_optimized", file=DEMOS).strategy
    assert strategy.base_model.huggingface_id is None
    assert (strategy.method.r, strategy.method.alpha) == (4, 8)
    assert strategy.training_args.gradient_accumulation_steps == 4
    assert strategy.training_args.learning_rate == 5e-5
    assert strategy.export.model_name == "medical-llama3.2-optimized"


def test_the_finetuned_model_is_the_one_that_was_trained() -> None:
    trained = load_strategy("demo3_training_optimized", file=DEMOS).strategy
    used = load_strategy("demo3_finetuned_model", file=DEMOS).strategy
    assert used.name != trained.name
    same = trained.model_copy(update={"name": used.name, "description": used.description})
    assert used == same


def test_the_shortest_demo_neither_evaluates_nor_saves() -> None:
    arguments = load_strategy("demo_minimal", file=DEMOS).strategy.training_args
    assert (arguments.eval_strategy, arguments.save_strategy) == ("no", "no")
    assert arguments.num_train_epochs == 1
