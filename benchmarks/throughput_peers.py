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


def run_llamafactory(folder: Path) -> dict[str, Any]:
    """Train by LLaMA-Factory in bf16 with its neat packing, which attends within documents.

    Its packs are made by its own rule, from the rows' ids: its text templates would give others.
    """
    from llamafactory.train.tuner import run_exp

    rows, settings = read(folder)
    packed = folder / "llamafactory-data"
    write_neat_packs(rows, packed)
    mean = sum(len(row["token_ids"]) for row in rows) / len(rows)
    rows_per_pack = max(round(PACK_TOKENS / mean), 1)
    clock = Clock()
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "model_name_or_path": str(folder / "model"),
            "template": "empty",
            "dataset": "packed",
            "tokenized_path": str(packed),
            "cutoff_len": PACK_TOKENS - 1,
            "packing": True,
            "neat_packing": True,
            "lora_rank": settings["rank"],
            "lora_alpha": 2 * settings["rank"],
            "lora_dropout": 0.0,
            "lora_target": ",".join(settings["target_modules"]),
            "output_dir": str(folder / "llamafactory"),
            "overwrite_output_dir": True,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": max(round(settings["rows_per_step"] / rows_per_pack), 1),
            "num_train_epochs": 1,
            "learning_rate": settings["learning_rate"],
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch",
            "bf16": True,
            "use_cpu": True,
            "disable_gradient_checkpointing": True,
            "dataloader_num_workers": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        },
        callbacks=[clock],
    )
    return {"seconds": clock.seconds, "losses": clock.losses, "told": "bf16, neat_packing 1024"}


def write_neat_packs(rows: list[dict[str, Any]], folder: Path) -> None:
    """Write the data set that LLaMA-Factory makes of rows with neat packing."""
    from datasets import Dataset, DatasetDict
    from llamafactory.data.processor.processor_utils import greedy_knapsack

    with_length: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        with_length.setdefault(len(row["token_ids"]), []).append(row)
    examples = []
    for knapsack in greedy_knapsack([len(row["token_ids"]) for row in rows], PACK_TOKENS - 1):
        pack: dict[str, list[int]] = {"input_ids": [], "attention_mask": [], "position_ids": [], "labels": []}
        for number, length in enumerate(knapsack, start=1):
            row = with_length[length].pop()
            pack["input_ids"] += row["token_ids"]
            pack["attention_mask"] += [number] * length
            pack["position_ids"] += range(length)
            marked = zip(row["token_ids"], row["is_supervised"], strict=True)
            pack["labels"] += [token if mark else -100 for token, mark in marked]
        rest = PACK_TOKENS - len(pack["input_ids"])
        for name, filler in (("input_ids", 0), ("attention_mask", 0), ("position_ids", 0), ("labels", -100)):
            pack[name] += [filler] * rest
        examples.append(pack)
    DatasetDict({"train": Dataset.from_list(examples)}).save_to_disk(str(folder))


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
    "llamafactory": run_llamafactory,
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
