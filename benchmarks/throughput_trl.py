"""TRL's SFTTrainer, as it comes, tuned, with Liger's kernels or by Unsloth: used by `throughput_peers.py`.

Padded runs on a GPU attend by torch's own attention (no package for flash attention is needed): rows of one
length need no mask, rows of several are grouped by length. Where a batch does not fit the memory, it becomes
a single row, and then activations are computed again; `told` says so.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from throughput_peers import load, lora_of, read, tokenizer_of
from transformers import TrainerCallback

PACK_TOKENS = 1024


class Clock(TrainerCallback):
    """The time of the training loop alone and of each of its steps, and its losses."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.of_steps: list[float] = []
        self.losses: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.started = self.ended = moment()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Take the time of a step, from the end of the one before."""
        before, self.ended = self.ended, moment()
        self.of_steps.append(self.ended - before)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds = moment() - self.started

    def on_log(self, *args: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Remember a step's loss."""
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


class Counter:
    """A collator that remembers of each batch the tokens, the supervised ones and the squared lengths."""

    def __init__(self, collator: Callable[[Any], Any]) -> None:
        self._collator = collator
        self.batches: list[tuple[int, int, int]] = []

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        """Make a batch of rows."""
        lengths = [length for row in examples for length in row.get("seq_lengths") or [len(row["input_ids"])]]
        supervised = sum(label != -100 for row in examples for label in row["labels"])
        self.batches.append((sum(lengths), supervised, sum(length**2 for length in lengths)))
        return self._collator(examples)


def moment() -> float:
    """Return the time once the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def run_trl(folder: Path, *, is_tuned: bool) -> dict[str, Any]:
    """Train on a processor: as TRL comes, or with 16-bit weights and packing."""
    rows, settings = read(folder)
    tuned: dict[str, Any] = {"packing": True, "max_length": PACK_TOKENS} if is_tuned else {"max_length": None}
    batch = 1 if is_tuned else settings["batch_size"]
    # Packs hold several rows: as many packs make a step as rows would fill in the mean.
    mean = sum(len(row["token_ids"]) for row in rows) / len(rows)
    rows_per_batch = max(round(PACK_TOKENS / mean), 1) if is_tuned else batch
    config = {
        **common_options(folder, settings),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": max(round(settings["rows_per_step"] / rows_per_batch), 1),
        "gradient_checkpointing": False,
        "bf16": is_tuned,
        **tuned,
    }
    model = load(settings, torch.bfloat16 if is_tuned else torch.float32)
    found = train(folder, settings, model, lora_of(settings), rows, config)
    return {
        **found,
        "told": "bf16 weights, packing" if is_tuned else "fp32, padded batches, no checkpointing",
    }


def run_padded(
    folder: Path, open_model: Callable[..., tuple[Any, LoraConfig | None]], told: str, **options: Any
) -> dict[str, Any]:
    """Train in bf16 on padded batches, as large as they fit: `open_model` returns model and adapter."""
    rows, settings = read(folder)
    lengths = {len(row["token_ids"]) for row in rows}
    order = "sequential" if len(lengths) == 1 else "group_by_length"
    most = min(settings["batch_size"], settings["rows_per_step"])
    attempts = [(most, False), (1, False), (1, True)]
    for batch, checkpoints in attempts[most == 1 :]:
        config = {
            **common_options(folder, settings),
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": settings["rows_per_step"] // batch,
            "gradient_checkpointing": checkpoints,
            "bf16": True,
            "max_length": None,
            "train_sampling_strategy": order,
            **options,
        }
        try:
            model, adapter = open_model(settings, max(lengths), checkpoints)
            found = train(folder, settings, model, adapter, rows, config)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            told = (
                f"{told}; batches of {batch}{' with checkpointing' if checkpoints else ''} ran out of memory"
            )
        else:
            kept = "checkpointing" if checkpoints else "no checkpointing"
            return {**found, "told": f"{told}; batches of {batch}, {order}, {kept}"}
        model = adapter = None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    raise SystemExit(told)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a GPU's memory was not enough, whoever noticed."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in str(error).lower() for sign in ("out of memory", "alloc_failed")
    )


def common_options(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the options that all runs have."""
    return {
        "output_dir": str(folder / "trl"),
        "num_train_epochs": 1,
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": settings["device"] == "cpu",
        "disable_tqdm": True,
    }


def train(
    folder: Path,
    settings: dict[str, Any],
    model: Any,
    adapter: LoraConfig | None,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Train by SFTTrainer on rows that are tokens already; return its times, steps and losses."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list(
        [
            {
                "input_ids": row["token_ids"],
                "attention_mask": [1] * len(row["token_ids"]),
                "labels": [
                    token if mark else -100
                    for token, mark in zip(row["token_ids"], row["is_supervised"], strict=True)
                ],
            }
            for row in rows
        ]
    )
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**options),
        train_dataset=data,
        peft_config=adapter,
        processing_class=tokenizer_of(settings),
        callbacks=[clock],
    )
    trainer.data_collator = counter = Counter(trainer.data_collator)
    trainer.train()
    steps = steps_of(clock, counter, trainer.args.gradient_accumulation_steps)
    return {"seconds": clock.seconds, "steps": steps, "losses": clock.losses}


def steps_of(clock: Clock, counter: Counter, batches_per_step: int) -> list[dict[str, Any]]:
    """Return what each step was: batches are asked for in the order in which they are trained on."""
    steps = []
    for place, seconds in enumerate(clock.of_steps):
        batches = counter.batches[place * batches_per_step : (place + 1) * batches_per_step]
        tokens, supervised, squares = (sum(column) for column in zip(*batches, strict=True))
        steps.append(
            {
                "seconds": seconds,
                "tokens": tokens,
                "supervised": supervised,
                "computed": [tokens, supervised, squares],
            }
        )
    return steps


def open_trl(settings: dict[str, Any], _: int, __: bool) -> tuple[Any, LoraConfig]:
    """Return the base, in bf16 or in 4 bits, and the adapter that TRL puts on it."""
    return load(settings, torch.bfloat16, quantizes=settings["method"] == "qlora"), lora_of(settings)


def open_unsloth(settings: dict[str, Any], longest: int, checkpoints: bool) -> tuple[Any, None]:
    """Return Unsloth's model with its adapter."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        model_name=settings["model"],
        max_seq_length=longest,
        dtype=torch.bfloat16,
        load_in_4bit=settings["method"] == "qlora",
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=settings["rank"],
        target_modules=settings["target_modules"],
        lora_alpha=2 * settings["rank"],
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing="unsloth" if checkpoints else False,
        random_state=0,
    )
    return model, None
