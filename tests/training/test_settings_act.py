"""Each setting of training changes what is trained: one run with its default, one with another value.

What a setting changes is told by the trained weights, byte for byte. Settings that act on something else have
their tests elsewhere; `tests/laws/test_settings.py` has the list of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training.run import run_training

Load = Callable[..., LoadedStrategy]
MakeRows = Callable[..., list[dict[str, Any]]]

# Enough steps that the schedule, AdamW's memory and the order of an epoch all show.
BASELINE: dict[str, Any] = {
    "method.dropout": 0.1,
    "training_args.num_train_epochs": 2,
    "training_args.per_device_train_batch_size": 2,
    "training_args.warmup_ratio": 0.3,
    "training_args.weight_decay": 0.0,
    "prompt_template.system": "Answer.",
}
OTHER_VALUES: list[tuple[str, Any]] = [
    ("method.r", 2),
    ("method.alpha", 4),
    ("method.dropout", 0.5),
    ("method.target_modules", ["q_proj", "v_proj", "up_proj"]),
    ("method.target_modules", "all-linear"),
    ("training_args.num_train_epochs", 1),
    ("training_args.num_train_epochs", "1-2"),
    ("training_args.max_steps", 2),
    ("training_args.per_device_train_batch_size", 3),
    ("training_args.per_device_train_batch_size", "auto"),
    ("training_args.gradient_accumulation_steps", 2),
    ("training_args.gradient_accumulation_steps", "auto"),
    ("hardware.optimization.gradient_accumulation_steps", 2),
    ("training_args.learning_rate", 0.001),
    ("training_args.lr_scheduler_type", "cosine"),
    ("training_args.warmup_ratio", 0.0),
    ("training_args.warmup_steps", 2),
    ("training_args.weight_decay", 0.5),
    ("training_args.max_grad_norm", 0.01),
    ("training_args.adam_beta1", 0.5),
    ("training_args.adam_beta2", 0.5),
    ("training_args.adam_epsilon", 0.1),
    ("data_preprocessing.shuffle", False),
    ("data_preprocessing.seed", 7),
    ("data_preprocessing.max_length", 40),
    ("data_preprocessing.max_output_length", 14),
    ("dataset.eval_split", 0.3),
    ("environment.seed", 7),
    ("hardware.optimization.mixed_precision", "bf16"),
    ("hardware.precision.cpu.use_bf16", True),
    ("base_model.torch_dtype", "bfloat16"),
    ("prompt_template.system", "Say."),
    ("prompt_template.format", "Q: {input}\nA: {output}"),
]


@pytest.fixture
def trained_bytes(load: Load, make_rows: MakeRows) -> Callable[..., str]:
    """Train on eleven rows and return the hash of what was trained."""

    def train(output: str, **settings: Any) -> str:
        result = run_training(load(make_rows(11), output=output, **BASELINE | settings))
        return hashlib.sha256((result.final_model / "adapter_model.safetensors").read_bytes()).hexdigest()

    return train


@pytest.fixture(scope="module")
def known() -> dict[str, str]:
    """What the baseline trained to, once it has been."""
    return {}


@pytest.mark.parametrize(("path", "value"), OTHER_VALUES, ids=lambda value: str(value)[:40])
def test_another_value_trains_other_weights(
    path: str, value: Any, trained_bytes: Callable[..., str], known: dict[str, str]
) -> None:
    if not known:
        known["baseline"] = trained_bytes("baseline")
        assert trained_bytes("again") == known["baseline"], "the same settings must train the same bytes"
    changes = {path: value}
    if path.startswith("hardware.precision"):
        changes["hardware.optimization.mixed_precision"] = None  # which would win
    assert trained_bytes("other", **changes) != known["baseline"]
