"""The Strategy itself: complete, frozen, and the same after a trip through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llamafarm.strategy.schema import EpochRange, Strategy

DEFAULTS: dict[str, Any] = {
    "base_model.huggingface_id": None,
    "base_model.torch_dtype": "auto",
    "hardware.device": "auto",
    "hardware.optimization.mixed_precision": None,
    "method.type": "lora",
    "method.r": 16,
    "method.alpha": 32,
    "method.dropout": 0.1,
    "method.target_modules": None,
    "training_args.output_dir": None,
    "training_args.num_train_epochs": 3,
    "training_args.per_device_train_batch_size": 4,
    "training_args.gradient_accumulation_steps": 1,
    "training_args.learning_rate": 2e-4,
    "training_args.warmup_ratio": 0.03,
    "training_args.eval_strategy": None,
    "training_args.save_total_limit": 2,
    "generation.max_new_tokens": 200,
    "generation.temperature": 0.7,
    "generation.top_p": 0.9,
    "dataset.eval_split": None,
    "dataset.seed": 42,
    "environment.seed": 42,
}


@pytest.mark.parametrize(("path", "value"), DEFAULTS.items())
def test_defaults(path: str, value: object) -> None:
    found: Any = Strategy()
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_a_strategy_cannot_change() -> None:
    strategy = Strategy()
    with pytest.raises(ValidationError):
        strategy.method.r = 3
    with pytest.raises(ValidationError):
        strategy.name = "x"
    hash(strategy)


@given(
    epochs=st.one_of(
        st.integers(1, 100),
        st.floats(0.01, 100),
        st.tuples(st.integers(1, 50), st.integers(0, 50)).map(lambda pair: f"{pair[0]}-{sum(pair)}"),
    ),
    modules=st.one_of(st.none(), st.just("all-linear"), st.lists(st.text(min_size=1), min_size=1)),
    stops=st.lists(st.text(min_size=1)),
)
def test_a_strategy_survives_json(epochs: object, modules: object, stops: list[str]) -> None:
    strategy = Strategy.model_validate(
        {
            "training_args": {"num_train_epochs": epochs},
            "method": {"target_modules": modules},
            "prompt_template": {"stop_sequences": stops},
        }
    )
    assert Strategy.model_validate(json.loads(strategy.model_dump_json())) == strategy
    assert Strategy.model_validate(strategy.model_dump()) == strategy


@pytest.mark.parametrize(
    ("written", "trackers"),
    [
        ({}, ()),
        ({"report_to": "none"}, ()),
        ({"report_to": ["none"]}, ()),
        ({"report_to": "WandB"}, ("wandb",)),
        ({"report_to": ["mlflow", "wandb", "mlflow"]}, ("mlflow", "wandb")),
        ({"log_tensorboard": True}, ("tensorboard",)),
        ({"log_tensorboard": True, "report_to": ["trackio", "tensorboard"]}, ("tensorboard", "trackio")),
        ({"log_tensorboard": False, "report_to": "tensorboard"}, ("tensorboard",)),
    ],
)
def test_trackers_are_a_word_or_a_list(written: dict[str, Any], trackers: tuple[str, ...]) -> None:
    strategy = Strategy.model_validate({"monitoring": written})
    assert strategy.monitoring.trackers == trackers
    assert Strategy.model_validate(json.loads(strategy.model_dump_json())) == strategy


def test_a_range_of_epochs() -> None:
    strategy = Strategy.model_validate({"training_args": {"num_train_epochs": "5-10"}})
    assert strategy.training_args.num_train_epochs == EpochRange(minimum=5, maximum=10)
    assert str(strategy.training_args.num_train_epochs) == "5-10"


@pytest.mark.parametrize("path", ["training_args.eval_strategy", "training_args.save_strategy"])
def test_false_is_the_word_no(path: str) -> None:
    section, field = path.split(".")
    strategy = Strategy.model_validate({section: {field: False}})
    assert getattr(getattr(strategy, section), field) == "no"


def test_case_does_not_matter_in_names_written_both_ways() -> None:
    strategy = Strategy.model_validate(
        {"export": {"quantization": "Q4_K_M"}, "monitoring": {"log_level": "WARNING"}}
    )
    assert (strategy.export.quantization, strategy.monitoring.log_level) == ("q4_k_m", "warning")


def test_braces_that_are_no_placeholder_are_text() -> None:
    text = 'Return {"answer": 1}. {system} {instruction} {output} {}'
    assert Strategy.model_validate({"prompt_template": {"format": text}}).prompt_template.format == text


def test_best_by_train_loss_needs_evaluation_too_because_only_then_is_it_judged() -> None:
    args = {
        "eval_strategy": "no",
        "load_best_model_at_end": True,
        "metric_for_best_model": "train_loss",
    }
    with pytest.raises(ValidationError, match="eval_strategy no"):
        Strategy.model_validate({"training_args": args})


def test_the_json_schema_describes_every_section() -> None:
    schema = Strategy.model_json_schema()
    assert set(schema["properties"]) == set(Strategy.model_fields)
    for field in schema["properties"].values():  # pydantic leaves out what the section's own docstring says
        section = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
        assert field.get("description") or section.get("description")
    epochs = schema["$defs"]["TrainingArgs"]["properties"]["num_train_epochs"]
    assert {"type": "string", "pattern": "^[0-9]+-[0-9]+$"} in epochs["anyOf"]
