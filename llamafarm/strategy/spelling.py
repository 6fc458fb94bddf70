"""Tell what an unknown key was meant to be: another tool's name, a key of another section, or a slip."""

from __future__ import annotations

from difflib import get_close_matches

from llamafarm.strategy.document import show_key
from llamafarm.strategy.schema import Section, Strategy

MOVED = {
    "training_args.max_new_tokens": "generation.max_new_tokens",
    "training_args.temperature": "generation.temperature",
    "training_args.top_p": "generation.top_p",
    "training_args.top_k": "generation.top_k",
    "training_args.repetition_penalty": "generation.repetition_penalty",
    "training_args.eval_split": "dataset.eval_split",
    "training_args.max_length": "data_preprocessing.max_length",
    "training_args.max_seq_length": "data_preprocessing.max_length",
    "training_args.seed": "environment.seed",
    "environment.device": "hardware.device",
    "framework.gradient_checkpointing": "hardware.optimization.gradient_checkpointing",
    "optimization": "hardware.optimization",
}
"""Places where a file may write a setting, and the one place that it has in a Strategy."""

_BATCH = "training_args.per_device_train_batch_size"
_MODEL = "base_model.huggingface_id"
_LENGTH = "data_preprocessing.max_length"

FOREIGN: dict[str, tuple[str, str]] = {
    "adapter": ("Axolotl", "method.type"),
    "base": ("Soup", _MODEL),
    "batch_size": ("Unsloth", _BATCH),
    "bf16": ("transformers", "hardware.optimization.mixed_precision"),
    "cutoff_len": ("LLaMA-Factory", _LENGTH),
    "epochs": ("Soup", "training_args.num_train_epochs"),
    "evaluation_strategy": ("transformers", "training_args.eval_strategy"),
    "finetuning_type": ("LLaMA-Factory", "method.type"),
    "fp16": ("transformers", "hardware.optimization.mixed_precision"),
    "lora_alpha": ("PEFT", "method.alpha"),
    "lora_dropout": ("PEFT", "method.dropout"),
    "lora_r": ("PEFT", "method.r"),
    "lora_rank": ("LLaMA-Factory", "method.r"),
    "lora_target": ("LLaMA-Factory", "method.target_modules"),
    "lora_target_linear": ("Axolotl", "method.target_modules"),
    "lora_target_modules": ("Axolotl", "method.target_modules"),
    "lr": ("Soup", "training_args.learning_rate"),
    "lr_scheduler": ("Axolotl", "training_args.lr_scheduler_type"),
    "micro_batch_size": ("Axolotl", _BATCH),
    "model": ("Unsloth", _MODEL),
    "model_name_or_path": ("LLaMA-Factory", _MODEL),
    "num_epochs": ("Axolotl", "training_args.num_train_epochs"),
    "output": ("Soup", "training_args.output_dir"),
    "sequence_len": ("Axolotl", _LENGTH),
    "max_seq_len": ("torchtune", _LENGTH),
    "max_seq_length": ("Unsloth", _LENGTH),
    "test_size": ("datasets", "dataset.eval_split"),
    "train_batch_size": ("DeepSpeed", _BATCH),
    "train_dataset": ("TRL", "dataset.train_file"),
    "eval_dataset": ("TRL", "dataset.eval_file"),
    "training_type": ("Unsloth", "method.type"),
    "val_set_size": ("Axolotl", "dataset.eval_split"),
    "val_size": ("LLaMA-Factory", "dataset.eval_split"),
    "val_split": ("Soup", "dataset.eval_split"),
}
"""Keys of other tools (one tool named where several share a spelling), and the place here."""

NEEDLESS = {
    "chat_template": "The chat template follows from prompt_template, or is the base model's own",
    "completion_only_loss": "Only answers are trained on",
    "device_map": "Where the model is held follows from hardware.device",
    "load_in_4bit": "Write method.type: qlora for a base in 4 bits",
    "neat_packing": "Rows are packed whenever that is faster; they never see each other",
    "optim": "The optimizer is AdamW; its settings are training_args.adam_beta1, adam_beta2 and adam_epsilon",
    "packing": "Rows are packed whenever that is faster; they never see each other",
    "report_to": "Write monitoring.log_tensorboard: true for TensorBoard",
    "sample_packing": "Rows are packed whenever that is faster; they never see each other",
    "train_on_inputs": "Only answers are trained on",
    "train_on_prompt": "Only answers are trained on",
    "train_on_responses_only": "Only answers are trained on",
}
"""Keys of other tools that need no key here, and why; each continues with `; remove the key`."""


def section_at(path: tuple[str, ...]) -> type[Section] | None:
    """Return the section that a path leads to, or None if it leads to a setting or nowhere."""
    section: type[Section] = Strategy
    for name in path:
        field = section.model_fields.get(name)
        annotation = None if field is None else field.annotation
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return None
        section = annotation
    return section


def all_paths(section: type[Section] = Strategy, prefix: str = "") -> list[str]:
    """Return the dotted paths of all sections and settings."""
    paths = []
    for name, field in section.model_fields.items():
        paths.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            paths += all_paths(field.annotation, f"{prefix}{name}.")
    return paths


def suggest_for_key(path: tuple[str, ...], also: tuple[str, ...] = ()) -> str:
    """Return the remedy for an unknown key; `also` are keys known there beside the section's own."""
    key = path[-1]
    if key in NEEDLESS:
        return f"{NEEDLESS[key]}; remove the key."
    if key in FOREIGN:
        tool, target = FOREIGN[key]
        return f"{tool}'s {key} is {target} here."
    parent = ".".join(path[:-1])
    section = section_at(path[:-1])
    known = [*(section.model_fields if section else ()), *also]
    known += [place.rpartition(".")[2] for place in MOVED if place.rpartition(".")[0] == parent]
    known += [] if parent else ["components", "extends"]
    paths = all_paths()
    if homes := [other for other in paths if other.rpartition(".")[2] == key]:
        return f"Did you mean {homes[0]}? {key} belongs there."
    if near := get_close_matches(key, known, 1):
        return f"Did you mean {near[0]}?"
    leaves = {other.rpartition(".")[2]: other for other in reversed(paths)}
    if near := get_close_matches(key, leaves, 1):
        return f"Did you mean {leaves[near[0]]}?"
    return f"Remove {show_key(key)}, or use one of: {', '.join(known)}."
