"""The same training by other tools: run by `throughput.py`, in an environment without this package.

    python benchmarks/throughput_peers.py TOOL FOLDER

FOLDER has `rows.jsonl` (token_ids, is_supervised) and `settings.json`. Prints one JSON line: the seconds of
the training loop and of each step with its tokens, the losses, the largest memory (of the process, or on a
GPU what was allocated and reserved there), and what the tool was told.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

# Other tools are imported where they are used: Unsloth wants to be first.


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the settings."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return rows, json.loads((folder / "settings.json").read_text())


def load(settings: dict[str, Any], dtype: torch.dtype, *, quantizes: bool = False) -> Any:
    """Return the base model on its device, its linear layers in 4 bits if that is asked for."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    if settings["device"] == "cuda":
        options = {"device_map": {"": 0}, "attn_implementation": "sdpa"}
    if quantizes:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype, **options)


def lora_of(settings: dict[str, Any]) -> Any:
    """Return the adapter that everybody trains."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings["rank"],
        lora_alpha=2 * settings["rank"],
        lora_dropout=0.0,
        target_modules=settings["target_modules"],
        task_type="CAUSAL_LM",
    )


def run_plain(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Train by a loop that pads: the mean loss over the supervised tokens of a step, as everywhere."""
    from peft import get_peft_model

    rows, settings = read(folder)
    torch.manual_seed(0)
    base = load(settings, dtype, quantizes=settings["method"] == "qlora")
    model = get_peft_model(base, lora_of(settings))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings["learning_rate"])
    batch, per_step = settings["batch_size"], settings["rows_per_step"]
    losses, steps = [], []
    started = time.perf_counter()
    model.train()
    for first in range(0, len(rows), per_step):
        began = time.perf_counter()
        of_step = rows[first : first + per_step]
        num_supervised = sum(sum(row["is_supervised"][1:]) for row in of_step)
        summed = 0.0
        for place in range(0, len(of_step), batch):
            padded = {name: ids.to(model.device) for name, ids in pad(of_step[place : place + batch]).items()}
            logits = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), padded["labels"][:, 1:].flatten(), reduction="sum"
            )
            (loss / num_supervised).backward()
            summed += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if settings["device"] == "cuda":
            torch.cuda.synchronize()
        losses.append(summed / num_supervised)
        steps.append({"seconds": time.perf_counter() - began, **sizes_of(of_step)})
    told = f"{dtype}, batches of {batch} padded"
    return {"seconds": time.perf_counter() - started, "steps": steps, "losses": losses, "told": told}


def sizes_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the tokens of a step, its supervised ones, and with the squared lengths what is computed."""
    lengths = [len(row["token_ids"]) for row in rows]
    supervised = sum(sum(row["is_supervised"]) for row in rows)
    computed = [sum(lengths), supervised, sum(length**2 for length in lengths)]
    return {"tokens": sum(lengths), "supervised": supervised, "computed": computed}


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


def run_llamafactory(folder: Path) -> dict[str, Any]:
    """Train by LLaMA-Factory in bf16 with its neat packing, which attends within documents.

    Its packs are made by its own rule, from the rows' ids: its text templates would give others.
    """
    from llamafactory.train.tuner import run_exp
    from throughput_trl import PACK_TOKENS, Clock

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
            "model_name_or_path": settings["model"],
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
    return {
        "seconds": clock.seconds,
        "steps": [],  # which rows a step had is not told
        "losses": clock.losses,
        "told": "bf16, neat_packing 1024",
    }


def write_neat_packs(rows: list[dict[str, Any]], folder: Path) -> None:
    """Write the data set that LLaMA-Factory makes of rows with neat packing."""
    from datasets import Dataset, DatasetDict
    from llamafactory.data.processor.processor_utils import greedy_knapsack
    from throughput_trl import PACK_TOKENS

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


def tokenizer_of(settings: dict[str, Any]) -> Any:
    """Return the model's tokenizer, with something to pad by."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def run_sft(folder: Path, tool: str) -> dict[str, Any]:
    """Train by one of the tools around SFTTrainer; `trl` as it comes is for a processor."""
    if tool == "unsloth":
        import unsloth  # noqa: F401 - before what it changes
    import throughput_trl as trl

    _, settings = read(folder)
    if tool == "trl-tuned" or (tool == "trl" and settings["device"] == "cpu"):
        return trl.run_trl(folder, is_tuned=tool == "trl-tuned")
    if tool == "unsloth":
        return trl.run_padded(folder, trl.open_unsloth, "Unsloth")
    weights = "nf4 twice quantized" if settings["method"] == "qlora" else "bf16 weights"
    liger = {"use_liger_kernel": True} if tool == "trl-liger" else {}
    told = f"{weights}, torch's own attention, Liger {'on' if liger else 'off'}"
    return trl.run_padded(folder, trl.open_trl, told, **liger)


def peak_memory(device: str) -> dict[str, int]:
    """Return the largest memory of the process: on a GPU what is allocated there, and what is reserved."""
    if device == "cuda":
        return {
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


TOOLS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "plain": lambda folder: run_plain(folder, torch.float32),
    "plain-bf16": lambda folder: run_plain(folder, torch.bfloat16),
    "llamafactory": run_llamafactory,
    **{
        tool: partial(run_sft, tool=tool)
        for tool in ("trl", "trl-tuned", "trl-padded", "trl-liger", "unsloth")
    },
}


def main() -> None:
    """Run one tool and print what it took."""
    warnings.simplefilter("ignore")
    tool, folder = sys.argv[1], Path(sys.argv[2])
    found = TOOLS[tool](folder)
    _, settings = read(folder)
    sys.stdout.write("\n" + json.dumps({**found, **peak_memory(settings["device"])}) + "\n")


if __name__ == "__main__":
    main()
