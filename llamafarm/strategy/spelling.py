"""Tell what a key was meant to be: the second places of settings, other tools' names, and slips."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache

from llamafarm.strategy.document import show_key
from llamafarm.strategy.foreign import TOOLS
from llamafarm.strategy.schema import Section, Strategy

_CHECKPOINTING = "hardware.optimization.gradient_checkpointing"
_LENGTH = "data_preprocessing.max_length"

MOVED = {
    "base_model.dtype": "base_model.torch_dtype",
    "base_model.max_length": _LENGTH,
    "base_model.max_seq_length": _LENGTH,
    "base_model.model_id": "base_model.huggingface_id",
    "base_model.path": "base_model.huggingface_id",
    "components.repository.cache_dir": "base_model.cache_dir",
    "components.repository.config.cache_dir": "base_model.cache_dir",
    "constraints.max_tokens": "generation.max_new_tokens",
    "data_preprocessing.max_seq_length": _LENGTH,
    "dataset.path": "dataset.train_file",
    "dataset.preprocessing_num_workers": "training_args.dataloader_num_workers",
    "environment.device": "hardware.device",
    "framework.gradient_checkpointing": _CHECKPOINTING,
    "hardware.gradient_checkpointing": _CHECKPOINTING,
    "hardware.mixed_precision": "hardware.optimization.mixed_precision",
    "model_app.config.model": "model_app.config.default_model",
    "monitoring.metrics_enabled": "monitoring.track_training_metrics",
    "optimization": "hardware.optimization",
    "training": "training_args",
    "training.batch_size": "training_args.per_device_train_batch_size",
    "training.epochs": "training_args.num_train_epochs",
    "training.num_epochs": "training_args.num_train_epochs",
    "training.scheduler": "training_args.lr_scheduler_type",
    "training_args.activation_checkpointing": _CHECKPOINTING,
    "training_args.data_seed": "data_preprocessing.seed",
    "training_args.dataset_num_proc": "training_args.dataloader_num_workers",
    "training_args.eval_split": "dataset.eval_split",
    "training_args.evaluation_strategy": "training_args.eval_strategy",
    "training_args.gradient_checkpointing": _CHECKPOINTING,
    "training_args.log_level": "monitoring.log_level",
    "training_args.max_length": _LENGTH,
    "training_args.max_new_tokens": "generation.max_new_tokens",
    "training_args.max_seq_length": _LENGTH,
    "training_args.mixed_precision": "hardware.optimization.mixed_precision",
    "training_args.project": "monitoring.project",
    "training_args.repetition_penalty": "generation.repetition_penalty",
    "training_args.report_to": "monitoring.report_to",
    "training_args.seed": "environment.seed",
    "training_args.temperature": "generation.temperature",
    "training_args.tf32": "hardware.precision.cuda.use_tf32",
    "training_args.top_k": "generation.top_k",
    "training_args.top_p": "generation.top_p",
}
"""Places where a file may write a setting, and the one place that it has in a Strategy."""


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


@cache
def all_paths(section: type[Section] = Strategy, prefix: str = "") -> tuple[str, ...]:
    """Return the dotted paths of all sections and settings."""
    paths: list[str] = []
    for name, field in section.model_fields.items():
        paths.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            paths += all_paths(field.annotation, f"{prefix}{name}.")
    return tuple(paths)


def is_moved_heading(path: str) -> bool:
    """Return whether settings may be written below a path that is no section."""
    return path in _MOVED_HEADINGS


_MOVED_HEADINGS = {
    ".".join(names[:depth])
    for names in (place.split(".") for place in MOVED)
    for depth in range(1, len(names))
}


def suggest_for_key(path: tuple[str, ...], also: tuple[str, ...] = ()) -> str:
    """Return the remedy for an unknown key; `also` are keys known there beside the section's own."""
    key, parent = path[-1], ".".join(path[:-1])
    section = section_at(path[:-1])
    known = [*(section.model_fields if section else ()), *also]
    known += [place.rpartition(".")[2] for place in MOVED if place.rpartition(".")[0] == parent]
    known += [] if parent else ["components", "extends"]
    paths = all_paths()
    if homes := [other for other in paths if other.rpartition(".")[2] == key]:
        return f"Did you mean {homes[0]}? {show_key(key)} belongs there."
    if translation := translate(key):
        return translation
    if near := get_close_matches(key, known, 1):
        return f"Did you mean {near[0]}?"
    leaves = {other.rpartition(".")[2]: other for other in reversed(paths)}
    if near := get_close_matches(key, leaves, 1):
        return f"Did you mean {leaves[near[0]]}?"
    return f"Remove {show_key(key)}, or use one of: {', '.join(known)}."


def translate(key: str) -> str:
    """Return what another tool's key is here, as a sentence; empty for a key that no tool of ours knows."""
    for tool, keys in TOOLS.items():
        if key in keys:
            answer = keys[key]
            place, _, _ = answer.partition(" ")
            is_place = place.rstrip(",") in all_paths()
            return f"{tool}'s {key} is {answer} here." if is_place else f"{answer}; remove the key."
    return ""


def recognise_tool(keys: Iterable[str]) -> str:
    """Return the tool whose configuration has most of these keys; empty if none has two of them."""
    listed = list(keys)
    counts = {tool: sum(key in known for key in listed) for tool, known in TOOLS.items()}
    best = max(counts, key=lambda tool: counts[tool])
    return best if counts[best] > 1 else ""
