"""The shapes that a strategy file may have, and what they become."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from llamafarm.errors import StrategyError
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.schema import EpochRange, walk_leaves
from llamafarm.strategy.spelling import MOVED

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


SECOND_PLACES = {
    "training_args.max_new_tokens": ("generation.max_new_tokens", 7),
    "training_args.temperature": ("generation.temperature", 0.3),
    "training_args.top_p": ("generation.top_p", 0.5),
    "training_args.top_k": ("generation.top_k", 7),
    "training_args.repetition_penalty": ("generation.repetition_penalty", 1.2),
    "training_args.eval_split": ("dataset.eval_split", 0.2),
    "training_args.max_length": ("data_preprocessing.max_length", 99),
    "training_args.max_seq_length": ("data_preprocessing.max_length", 99),
    "training_args.seed": ("environment.seed", 7),
    "environment.device": ("hardware.device", "cpu"),
    "framework.gradient_checkpointing": ("hardware.optimization.gradient_checkpointing", True),
    "optimization": ("hardware.optimization", {"mixed_precision": "bf16"}),
}


def test_every_second_place_is_listed_here() -> None:
    assert {place: target for place, (target, _) in SECOND_PLACES.items()} == MOVED


@pytest.mark.parametrize("place", [place for place in SECOND_PLACES if "." in place])
def test_a_second_place_means_the_first(loaded: Load, place: str) -> None:
    target, value = SECOND_PLACES[place]
    section, field = place.split(".")
    found = loaded(f"s:\n  {section}:\n    {field}: {json.dumps(value)}\n")
    assert dict(walk_leaves(found.strategy))[target] == value
    assert found.origins[target].where == "f.yaml:3"


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


def test_a_section_in_two_places_is_refused(refused: Refuse) -> None:
    text = "s:\n  method: {r: 4}\n  components: {fine_tuner: {type: pytorch, config: {method: {alpha: 5}}}}\n"
    error = refused(text)
    assert "section method is there twice, first at f.yaml:2" in error.problem
    assert error.where == "f.yaml:3"
    text = "s:\n  optimization: {mixed_precision: fp16}\n  hardware: {optimization: {mixed_precision: no}}"
    assert "section hardware.optimization is there twice" in refused(text).problem


def test_a_setting_under_two_names_is_refused(refused: Refuse) -> None:
    error = refused("s:\n  training_args:\n    temperature: 0.1\n  generation:\n    temperature: 0.2\n")
    assert "generation.temperature is there twice, first at f.yaml:3" in error.problem
    assert error.where == "f.yaml:5"
    assert "twice" in refused("s: {training_args: {max_length: 5, max_seq_length: 5}}").problem


def test_only_pytorch_trains(refused: Refuse) -> None:
    error = refused("s:\n  components:\n    fine_tuner:\n      type: llamafactory\n")
    assert "components.fine_tuner.type must be pytorch" in error.problem
    assert error.where == "f.yaml:4"


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
        ("s:\n  method: lora\n", "method must be a mapping of settings", "f.yaml:2"),
        ("s:\n  components: []\n", "components must be a mapping of settings", "f.yaml:2"),
        ("s:\n  components: {cloud_api: {}}\n", "unknown key components.cloud_api", "f.yaml:2"),
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
