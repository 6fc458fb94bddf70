"""The same training by other tools: run by `throughput.py`, in an environment without this package.

    python benchmarks/throughput_peers.py TOOL FOLDER

FOLDER has `model/`, `rows.jsonl` (token_ids, is_supervised) and `settings.json`. Prints one JSON line: the
seconds of the training loop, the losses, the largest memory of the process, and what the tool was told.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback

PACK_TOKENS = 1024


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the settings."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return rows, json.loads((folder / "settings.json").read_text())


def load(folder: Path, dtype: torch.dtype) -> Any:
    """Return the base model."""
    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)


def lora_of(settings: dict[str, Any]) -> LoraConfig:
    """Return the adapter that everybody trains."""
    return LoraConfig(
        r=settings["rank"],
        lora_alpha=2 * settings["rank"],
        lora_dropout=0.0,
        target_modules=settings["target_modules"],
        task_type="CAUSAL_LM",
    )


def run_plain(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Train by a loop that pads: the mean loss over the supervised tokens of a step, as everywhere."""
    rows, settings = read(folder)
    torch.manual_seed(0)
    model = get_peft_model(load(folder, dtype), lora_of(settings))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings["learning_rate"])
    batch, per_step = settings["batch_size"], settings["rows_per_step"]
    losses = []
    started = time.perf_counter()
    model.train()
    for first in range(0, len(rows), per_step):
        of_step = rows[first : first + per_step]
        num_supervised = sum(sum(row["is_supervised"][1:]) for row in of_step)
        summed = 0.0
        for place in range(0, len(of_step), batch):
            padded = pad(of_step[place : place + batch])
            logits = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), padded["labels"][:, 1:].flatten(), reduction="sum"
            )
            (loss / num_supervised).backward()
            summed += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(summed / num_supervised)
    told = f"{dtype}, batches of {batch} padded"
    return {"seconds": time.perf_counter() - started, "losses": losses, "told": told}


def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a padded batch with labels of -100 where nothing is trained on."""
    longest = max(len(row["token_ids"]) for row in rows)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}  # type: dict[str, list[list[int]]]
    for row in rows:
        ids, marks = row["token_ids"], row["is_supervised"]
        rest = longest - len(ids)
        batch["input_ids"].append(ids + [0] * rest)
        batch["attention_mask"].append([1] * len(ids) + [0] * rest)
        labels = [token if mark else -100 for token, mark in zip(ids, marks, strict=True)]
        batch["labels"].append(labels + [-100] * rest)
    return {name: torch.tensor(values) for name, values in batch.items()}


class Clock(TrainerCallback):
    """The time of the training loop alone, and its losses."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.losses: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.started

    def on_log(self, *args: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Remember a step's loss."""
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def run_trl(folder: Path, *, is_tuned: bool) -> dict[str, Any]:
    """Train by TRL's SFTTrainer: as it comes, or with 16-bit weights and packing."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows, settings = read(folder)
    data = Dataset.from_list(
        [
            {"input_ids": row["token_ids"], "completion_mask": [int(mark) for mark in row["is_supervised"]]}
            for row in rows
        ]
    )
    tuned: dict[str, Any] = {"packing": True, "max_length": PACK_TOKENS} if is_tuned else {"max_length": None}
    batch = 1 if is_tuned else settings["batch_size"]
    # Packs hold several rows: as many packs make a step as rows would fill in the mean.
    mean = sum(len(row["token_ids"]) for row in rows) / len(rows)
    rows_per_batch = max(round(PACK_TOKENS / mean), 1) if is_tuned else batch
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=max(round(settings["rows_per_step"] / rows_per_batch), 1),
        num_train_epochs=1,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        completion_only_loss=True,
        use_cpu=True,
        gradient_checkpointing=False,
        bf16=is_tuned,
        disable_tqdm=True,
        **tuned,
    )
    model = load(folder, torch.bfloat16 if is_tuned else torch.float32)
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=data,
        peft_config=lora_of(settings),
        processing_class=tokenizer_of(folder),
        callbacks=[clock],
    )
    trainer.train()
    told = "bf16 weights, packing" if is_tuned else "fp32, padded batches, no checkpointing"
    return {"seconds": clock.seconds, "losses": clock.losses, "told": told}


def tokenizer_of(folder: Path) -> Any:
    """Return the model's tokenizer, with something to pad by."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


TOOLS = {
    "plain": lambda folder: run_plain(folder, torch.float32),
    "plain-bf16": lambda folder: run_plain(folder, torch.bfloat16),
    "trl": lambda folder: run_trl(folder, is_tuned=False),
    "trl-tuned": lambda folder: run_trl(folder, is_tuned=True),
}


def main() -> None:
    """Run one tool and print what it took."""
    warnings.simplefilter("ignore")
    tool, folder = sys.argv[1], Path(sys.argv[2])
    found = TOOLS[tool](folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    sys.stdout.write("\n" + json.dumps({**found, "peak_bytes": peak}) + "\n")


if __name__ == "__main__":
    main()
