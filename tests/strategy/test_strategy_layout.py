"""The shapes that a strategy file may have, and what they become."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from llamafarm.errors import StrategyError
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.schema import EpochRange, Method, Optimization, Strategy, fixed_count, walk_leaves
from llamafarm.strategy.spelling import MOVED, section_at

Load = Callable[..., LoadedStrategy]
Refuse = Callable[..., StrategyError]

FULL = """
s:
  name: "Human-readable name"
  description: "What this strategy does"
  components:
    fine_tuner:
      type: pytorch
      config:
        hardware: {memory_gb: 8}
        base_model: {huggingface_id: owner/model}
        method: {r: 4}
        training_args: {num_train_epochs: 2}
    model_app:
      type: ollama
      config: {default_model: mine}
  dataset: {train_file: train.jsonl, eval_split: 0.1}
  export: {to_ollama: true}
  prompt_template: {format: "Q: {input} A: {output}"}
"""


def test_the_guides_structure(loaded: Load) -> None:
    strategy = loaded(FULL).strategy
    assert strategy.name == "Human-readable name"
    assert strategy.hardware.memory_gb == 8
    assert strategy.base_model.huggingface_id == "owner/model"
    assert (strategy.method.r, strategy.training_args.num_train_epochs) == (4, 2)
    assert (strategy.model_app.type, strategy.model_app.config.default_model) == ("ollama", "mine")
    assert (strategy.dataset.train_file, strategy.dataset.eval_split) == ("train.jsonl", 0.1)
    assert strategy.export.to_ollama


def test_sections_without_content_and_a_strategy_without_components(loaded: Load) -> None:
    empty = loaded(
        "s:\n  components:\n    fine_tuner:\n      type: pytorch\n      config:\n        method:\n"
    )
    assert empty.strategy == loaded("s: {description: ''}").strategy


@pytest.mark.parametrize(
    "text",
    [
        "s: {method: {r: 9}}",
        "version: 2.0\ns: {method: {r: 9}}",
        "version: '2.0'\nstrategies:\n  s: {method: {r: 9}}",
        "strategies:\n- name: other\n- name: s\n  method: {r: 9}",
        "s: {components: {fine_tuner: {config: {method: {r: 9}}}}}",
    ],
)
def test_the_places_of_a_strategy_and_of_a_section(loaded: Load, text: str) -> None:
    assert loaded(text).strategy.method.r == 9


def test_the_guides_use_case_fragments(loaded: Load) -> None:
    strategy = loaded(
        """
        s:
          method: {type: lora, r: 12, alpha: 24, dropout: 0.08}
          training_args:
            num_train_epochs: 5-10  # More epochs OK with small data
            max_new_tokens: 150
            temperature: 0.7
            repetition_penalty: 1.1
            eval_split: 0.15
            max_length: 256
            seed: 7
          optimization:
            gradient_checkpointing: true
            mixed_precision: no
          prompt_template:
            format: |
              User: {input}
              Assistant: {output}
            stop_sequences: ["\\nUser:", "\\nAssistant:", "###"]
        """
    ).strategy
    assert strategy.training_args.num_train_epochs == EpochRange(minimum=5, maximum=10)
    assert strategy.generation.max_new_tokens == 150
    assert (strategy.generation.temperature, strategy.generation.repetition_penalty) == (0.7, 1.1)
    assert strategy.dataset.eval_split == 0.15
    assert strategy.data_preprocessing.max_length == 256
    assert strategy.environment.seed == 7
    assert strategy.hardware.optimization.gradient_checkpointing is True
    assert strategy.hardware.optimization.mixed_precision == "no"
    assert strategy.prompt_template.stop_sequences == ("\nUser:", "\nAssistant:", "###")
    assert strategy.prompt_template.format == "User: {input}\nAssistant: {output}\n"


VALUES: dict[str, object] = {
    "base_model.cache_dir": "cache",
    "base_model.huggingface_id": "owner/model",
    "base_model.torch_dtype": "float16",
    "data_preprocessing.max_length": 99,
    "data_preprocessing.seed": 7,
    "dataset.eval_split": 0.2,
    "dataset.train_file": "rows.jsonl",
    "environment.seed": 7,
    "generation.max_new_tokens": 7,
    "generation.repetition_penalty": 1.2,
    "generation.temperature": 0.3,
    "generation.top_k": 7,
    "generation.top_p": 0.5,
    "hardware.device": "cpu",
    "hardware.optimization.gradient_checkpointing": True,
    "hardware.optimization.mixed_precision": "bf16",
    "hardware.precision.cuda.use_tf32": True,
    "model_app.config.default_model": "mine",
    "monitoring.log_level": "debug",
    "monitoring.project": "asthma",
    "monitoring.report_to": ("wandb", "mlflow"),
    "monitoring.track_training_metrics": False,
    "training_args.dataloader_num_workers": 3,
    "training_args.eval_strategy": "epoch",
    "training_args.lr_scheduler_type": "cosine",
    "training_args.num_train_epochs": 9,
    "training_args.per_device_train_batch_size": 9,
}
SETTINGS_MOVED = [place for place, target in MOVED.items() if section_at(tuple(target.split("."))) is None]


@pytest.mark.parametrize("place", SETTINGS_MOVED)
def test_a_second_place_means_the_first(loaded: Load, place: str) -> None:
    value = VALUES[MOVED[place]]
    *sections, field = place.split(".")
    lines = ["s:", *("  " * (depth + 1) + name + ":" for depth, name in enumerate(sections))]
    lines.append("  " * len(lines) + f"{field}: {json.dumps(value)}")
    found = loaded("\n".join(lines))
    assert dict(walk_leaves(found.strategy))[MOVED[place]] == value
    assert found.origins[MOVED[place]].where == f"f.yaml:{len(lines)}"
    assert dict(walk_leaves(Strategy()))[MOVED[place]] != value


def test_sections_have_second_places_too(loaded: Load) -> None:
    assert set(MOVED) - set(SETTINGS_MOVED) == {"optimization", "training"}
    strategy = loaded(
        """
        s:
          optimization: {mixed_precision: bf16}
          components: {fine_tuner: {config: {training: {batch_size: 3, num_epochs: 5-7, seed: 9}}}}
        """
    ).strategy
    assert strategy.hardware.optimization.mixed_precision == "bf16"
    assert strategy.training_args.per_device_train_batch_size == 3
    assert str(strategy.training_args.num_train_epochs) == "5-7"
    assert strategy.environment.seed == 9


def test_base_model_may_be_a_plain_name(loaded: Load) -> None:
    found = loaded("s:\n  base_model: owner/model\n")
    assert found.strategy.base_model.huggingface_id == "owner/model"
    assert found.origins["base_model.huggingface_id"].where == "f.yaml:2"
    again = loaded("s:\n  base_model: owner/model\n", base_model="./folder")
    assert again.strategy.base_model.huggingface_id == "./folder"


def test_accumulation_under_hardware_holds_where_training_args_has_none(loaded: Load) -> None:
    hardware = "s:\n  hardware: {optimization: {gradient_accumulation_steps: 8}}\n"
    found = loaded(hardware)
    assert found.strategy.training_args.gradient_accumulation_steps == 8
    assert found.origins["training_args.gradient_accumulation_steps"].where == "f.yaml:2"
    both = loaded(hardware + "  training_args: {gradient_accumulation_steps: 2}\n")
    assert both.strategy.training_args.gradient_accumulation_steps == 2
    overridden = loaded(hardware, training_args__gradient_accumulation_steps="3")
    assert overridden.strategy.training_args.gradient_accumulation_steps == 3
    assert loaded("s: {name: x}").strategy.training_args.gradient_accumulation_steps == 1


def test_a_section_in_two_places_is_one(loaded: Load, refused: Refuse) -> None:
    text = "s:\n  method: {r: 4}\n  components: {fine_tuner: {type: pytorch, config: {method: {alpha: 5}}}}\n"
    method = loaded(text).strategy.method
    assert (method.r, method.alpha) == (4, 5)
    error = refused(text.replace("alpha: 5", "r: 5"))
    assert (error.problem, error.where) == ("method.r is there twice, first at f.yaml:2", "f.yaml:3")
    text = "s:\n  optimization: {mixed_precision: fp16}\n  hardware: {optimization: {mixed_precision: no}}"
    assert "hardware.optimization.mixed_precision is there twice" in refused(text).problem


@pytest.mark.parametrize("type_", ["lora", "qlora", "full_finetune"])
def test_method_may_be_a_single_word(loaded: Load, type_: str) -> None:
    found = loaded(f"s:\n  method: {type_}\n")
    assert found.strategy.method == Method(type=type_)  # type: ignore[arg-type]
    assert found.origins["method.type"].where == "f.yaml:2"
    assert loaded("s: {name: x}", method=type_).strategy.method == found.strategy.method


def test_method_auto_leaves_the_whole_adapter_to_the_guides_table(loaded: Load) -> None:
    method = loaded("s: {method: auto}").strategy.method
    assert method == Method(type="auto", r="auto", alpha="auto", dropout="auto")
    assert method.target_modules is None
    assert loaded("s: {method: {type: auto}}").strategy.method == Method(type="auto")


def test_auto_is_a_number_to_come_or_nothing_given(loaded: Load) -> None:
    strategy = loaded(
        """
        s:
          hardware: {optimization: {gradient_checkpointing: auto, mixed_precision: auto}}
          training_args: {per_device_train_batch_size: auto, gradient_accumulation_steps: auto}
        """
    ).strategy
    assert strategy.hardware.optimization == Optimization()
    args = strategy.training_args
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == ("auto", "auto")
    with pytest.raises(AssertionError):
        fixed_count(args.per_device_train_batch_size)
    assert fixed_count(3) == 3
    below = loaded("s: {hardware: {optimization: {gradient_accumulation_steps: auto}}}").strategy
    assert below.training_args.gradient_accumulation_steps == "auto"
    parent = (
        "p: {optimization: {mixed_precision: fp16}}\ns: {extends: p, optimization: {mixed_precision: auto}}"
    )
    assert loaded(parent).strategy.hardware.optimization.mixed_precision is None


def test_a_setting_under_two_names_is_refused(refused: Refuse) -> None:
    error = refused("s:\n  training_args:\n    temperature: 0.1\n  generation:\n    temperature: 0.2\n")
    assert "generation.temperature is there twice, first at f.yaml:3" in error.problem
    assert error.where == "f.yaml:5"
    assert "twice" in refused("s: {training_args: {max_length: 5, max_seq_length: 5}}").problem


def test_only_pytorch_trains(refused: Refuse) -> None:
    error = refused("s:\n  components:\n    fine_tuner:\n      type: llamafactory\n")
    assert "components.fine_tuner.type must be pytorch" in error.problem
    assert error.where == "f.yaml:4"
    assert error.remedy.startswith("Write type: pytorch; the keys of config mean the same")


@pytest.mark.parametrize(
    ("text", "problem", "where"),
    [
        ("just text", "must be a mapping of strategies", "f.yaml:1"),
        ("- a\n- b\n", "must be a mapping of strategies", "f.yaml:1"),
        ("a: {}\ns: 5\n", "the strategy s must be a mapping (it is 5)", "f.yaml:2"),
        ("method: {r: 4}\ntraining_args: {}\n", "where a strategy's name should be", "f.yaml:1"),
        ("strategies: 3\n", "must be a mapping or a list", "f.yaml:1"),
        ("strategies:\n- name: s\n- {}\n", "has no name", "f.yaml:3"),
        ("strategies:\n- name: s\n- name: s\n", "s is there twice, first in line 2", "f.yaml:3"),
        ("strategies: {}\ns: {}\n", "unknown key s beside strategies", "f.yaml:2"),
        ("../s: {}\n", "cannot be the name of a strategy", "f.yaml:1"),
        ("s:\n  method: dora\n", "method.type must be one of", "f.yaml:2"),
        ("s:\n  training_args: lora\n", "training_args must be a mapping of settings", "f.yaml:2"),
        ("version: 3\ns: {}\n", "is not known (it is 3)", "f.yaml:1"),
        ("strategies:\n  - Nmae: s\n", "has no name, but the key Nmae", "f.yaml:2"),
        ("s:\n  framework: {r: 3}\n", "unknown key framework.r", "f.yaml:2"),
        ("s:\n  components: []\n", "components must be a mapping of settings", "f.yaml:2"),
        (
            "s:\n  components: {cloud_api: {type: openai}}\n",
            "components.cloud_api has no place here",
            "f.yaml:2",
        ),
        ("s:\n  components: {fine_tuner: {kind: x}}\n", "unknown key components.fine_tuner.kind", "f.yaml:2"),
        (
            "s:\n  components: {fine_tuner: {config: {model_app: {}}}}\n",
            "unknown key components.fine_tuner.config.model_app",
            "f.yaml:2",
        ),
    ],
)
def test_wrong_shapes_are_refused_with_their_line(
    refused: Refuse, text: str, problem: str, where: str
) -> None:
    error = refused(text)
    assert problem in error.problem
    assert error.where == where
