"""The guide's YAML fragments as data: what each kind of device and each use case is set to, and why.

Paths are dotted and as the guide writes them; `strategy.spelling.MOVED` has where some of them live.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

Value = str | int | float | bool | tuple[str, ...]


class Setting(NamedTuple):
    """A setting with the guide's value and, where it has one, the guide's comment on it."""

    path: str
    value: Value
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SettingGroup:
    """Settings that belong together: those of a kind of device, or of a use case."""

    key: str
    """As on the command line: cuda, mps, cpu; quick, production, small, large, domain, conversational."""
    title: str
    """The guide's heading."""
    settings: tuple[Setting, ...]
    goal: str = ""

    def find(self, path: str) -> Setting | None:
        """Return the setting of that path, if the group has one."""
        return next((setting for setting in self.settings if setting.path == path), None)

    def number(self, path: str) -> float | None:
        """Return the value of that path if it is a number; a whole one stays whole."""
        setting = self.find(path)
        value = None if setting is None else setting.value
        return value if isinstance(value, int | float) else None


_CHECKPOINTING = "hardware.optimization.gradient_checkpointing"
_MIXED = "hardware.optimization.mixed_precision"

DEVICES = (
    SettingGroup(
        "cuda",
        "NVIDIA GPU (CUDA) Configuration",
        (
            Setting("hardware.device", "cuda"),
            Setting("hardware.precision.cuda.use_fp16", True, "Fast, memory efficient"),
            Setting("hardware.precision.cuda.use_bf16", False, "Only for Ampere+ GPUs"),
            Setting("hardware.precision.cuda.use_tf32", True, "Tensor Core acceleration"),
            Setting(_CHECKPOINTING, True, "If <12GB VRAM"),
            Setting(_MIXED, "fp16"),
        ),
    ),
    SettingGroup(
        "mps",
        "Apple Silicon (MPS) Configuration",
        (
            Setting("hardware.device", "mps"),
            Setting("hardware.precision.mps.use_fp16", False, "Not stable on MPS"),
            Setting("hardware.precision.mps.use_bf16", False, "Not supported"),
            Setting(_CHECKPOINTING, False, "Usually not needed"),
            Setting(_MIXED, "no"),
        ),
    ),
    SettingGroup(
        "cpu",
        "CPU-Only Configuration",
        (
            Setting("hardware.device", "cpu"),
            Setting("hardware.precision.cpu.use_fp16", False, "Keep full precision"),
            Setting(_CHECKPOINTING, True),
            Setting("hardware.optimization.gradient_accumulation_steps", 8, "Simulate larger batches"),
            Setting(_MIXED, "no"),
        ),
    ),
)

SCHEDULER = SettingGroup(
    "scheduling",
    "Custom Scheduling",
    (
        Setting("training_args.lr_scheduler_type", "cosine", "Better than linear for most cases"),
        Setting("training_args.warmup_ratio", 0.1),
        Setting("training_args.num_train_epochs", 3),
    ),
)

CHECKPOINTING_BELOW_GB = 12
"""A GPU with less memory recomputes activations."""
CHECKPOINTING_FROM_PARAMETERS = 7e9
"""So does training a model of this size or more, on any device."""

_ATTENTION = ("q_proj", "v_proj", "k_proj", "o_proj")

QUICK = SettingGroup(
    "quick",
    "Quick Experimentation",
    (
        Setting("method.type", "lora"),
        Setting("method.r", 4),
        Setting("method.alpha", 8),
        Setting("method.dropout", 0.05),
        Setting("training_args.num_train_epochs", 1),
        Setting("training_args.per_device_train_batch_size", 2),
        Setting("training_args.learning_rate", 0.0002),
        Setting("training_args.eval_strategy", "no", "Skip evaluation for speed"),
        Setting("training_args.save_strategy", "no", "Don't save checkpoints"),
    ),
    goal="Fast iteration, testing ideas",
)

PRODUCTION = SettingGroup(
    "production",
    "Production Fine-Tuning",
    (
        Setting("method.type", "lora"),
        Setting("method.r", 16),
        Setting("method.alpha", 32),
        Setting("method.dropout", 0.1),
        Setting("method.target_modules", (*_ATTENTION, "gate_proj", "up_proj", "down_proj")),
        Setting("training_args.num_train_epochs", 3),
        Setting("training_args.per_device_train_batch_size", 4),
        Setting("training_args.gradient_accumulation_steps", 4),
        Setting("training_args.learning_rate", 0.00005),
        Setting("training_args.warmup_ratio", 0.1),
        Setting("training_args.weight_decay", 0.01),
        Setting("training_args.eval_strategy", "steps"),
        Setting("training_args.eval_steps", 50),
        Setting("training_args.save_strategy", "steps"),
        Setting("training_args.save_steps", 100),
        Setting("training_args.load_best_model_at_end", True),
        Setting("training_args.metric_for_best_model", "eval_loss"),
    ),
    goal="Best quality, robust model",
)

SMALL = SettingGroup(
    "small",
    "Small Dataset (<100 examples)",
    (
        Setting("method.type", "lora"),
        Setting("method.r", 4, "Very low rank"),
        Setting("method.alpha", 8),
        Setting("method.dropout", 0.15, "Higher dropout"),
        Setting("training_args.num_train_epochs", "5-10", "More epochs OK with small data"),
        Setting("training_args.per_device_train_batch_size", 1),
        Setting("training_args.gradient_accumulation_steps", 4),
        Setting("training_args.learning_rate", 0.00001, "Very low LR"),
        Setting("training_args.weight_decay", 0.02, "Strong regularization"),
        Setting("training_args.eval_strategy", "epoch"),
        Setting("training_args.load_best_model_at_end", True),
    ),
    goal="Prevent overfitting, maximize learning",
)

LARGE = SettingGroup(
    "large",
    "Large Dataset (>10,000 examples)",
    (
        Setting("method.type", "lora"),
        Setting("method.r", 32, "Higher rank for complex patterns"),
        Setting("method.alpha", 64),
        Setting("method.dropout", 0.05, "Lower dropout (data provides regularization)"),
        Setting("training_args.num_train_epochs", "1-2", "Fewer epochs needed"),
        Setting("training_args.per_device_train_batch_size", 8),
        Setting("training_args.gradient_accumulation_steps", 2),
        Setting("training_args.learning_rate", 0.0002),
        Setting("training_args.eval_strategy", "steps"),
        Setting("training_args.eval_steps", 500, "Less frequent evaluation"),
        Setting("training_args.save_steps", 1000),
    ),
    goal="Efficient training, good generalization",
)

DOMAIN = SettingGroup(
    "domain",
    "Domain Adaptation (Medical, Legal, etc.)",
    (
        Setting("method.type", "lora"),
        Setting("method.r", 8),
        Setting("method.alpha", 16),
        Setting("method.dropout", 0.1),
        Setting("method.target_modules", _ATTENTION, "Core attention only"),
        Setting("training_args.num_train_epochs", "2-3"),
        Setting("training_args.per_device_train_batch_size", 2),
        Setting("training_args.learning_rate", 0.00005),
        Setting("training_args.warmup_ratio", 0.05),
        Setting("training_args.eval_split", 0.15, "Larger eval for domain validation"),
        Setting("data_preprocessing.max_length", 256, "Shorter for focused responses"),
        Setting("data_preprocessing.remove_duplicates", True),
        Setting("data_preprocessing.filter_quality", True, "Remove low-quality examples"),
    ),
    goal="Specialized knowledge while preserving general capabilities",
)

CONVERSATIONAL = SettingGroup(
    "conversational",
    "Conversational AI",
    (
        Setting("method.type", "lora"),
        Setting("method.r", 12),
        Setting("method.alpha", 24),
        Setting("method.dropout", 0.08),
        Setting("training_args.num_train_epochs", 2),
        Setting("training_args.learning_rate", 0.0001),
        Setting("training_args.max_new_tokens", 150, "Prevent long responses"),
        Setting("training_args.temperature", 0.7, "Natural variation"),
        Setting("training_args.repetition_penalty", 1.1),
        Setting("prompt_template.format", "User: {input}\nAssistant: {output}\n"),
        Setting("prompt_template.stop_sequences", ("\nUser:", "\nAssistant:", "###")),
    ),
    goal="Natural dialogue while preventing multi-turn generation",
)

USE_CASES = (QUICK, PRODUCTION, SMALL, LARGE, DOMAIN, CONVERSATIONAL)

SMALL_BELOW_EXAMPLES = 100
LARGE_ABOVE_EXAMPLES = 10_000


def device_settings(kind: str) -> SettingGroup:
    """Return what the guide sets for a kind of device as torch calls it: cuda, mps or cpu."""
    return next(group for group in DEVICES if group.key == kind)


def use_case(key: str) -> SettingGroup:
    """Return the use case of that key."""
    return next(group for group in USE_CASES if group.key == key)
