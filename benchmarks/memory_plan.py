"""Predicted peak memory beside the measured one, over many settings on this machine's processor.

    python benchmarks/memory_plan.py [--only WORD]

Each setting is trained for three steps by `run_training` in a process of its own, on random weights of real
shapes made in a temporary folder. Measured is what the kernel counted as the process's largest resident size.
The prediction is the one that the run printed before it loaded anything; it is read from its run.json.

Two groups: with little memory (`hardware.memory_gb` a tenth above what is needed), where freed memory goes
back at once, the prediction must be within 10 %; with plenty, where glibc's heap keeps an amount that follows
from the order of packs, within the 25 % of room that planning leaves for it. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamafarm import terminal

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
QUERY_VALUE = ("q_proj", "v_proj")
_NUM_STEPS = 3
_TOLERANCE, _HEAP_TOLERANCE = 0.10, 0.25
_MIB = 2**20

# Hidden size, feed-forward size, layers, heads, key heads, vocabulary, tied.
_SHAPES: dict[str, tuple[str, tuple[int, int, int, int, int, int, bool]]] = {
    "llama-21M": ("llama", (320, 960, 12, 5, 5, 16384, True)),
    "qwen2-62M": ("qwen2", (512, 1408, 10, 8, 2, 32768, False)),
    "llama-135M": ("llama", (576, 1536, 30, 9, 3, 49152, True)),
}


@dataclass(frozen=True)
class Setting:
    """One run: a model of `_SHAPES`, tokens of a pack, and what the strategy says of the method.

    `num_checkpointed` blocks are what it gets memory for, where `checkpointing` is left to the plan.
    """

    model: str
    pack_tokens: int
    targets: Sequence[str] | str = QUERY_VALUE
    rank: int = 8
    precision: str = "fp32"
    checkpointing: bool = False
    num_checkpointed: int = 0
    dropout: float = 0.0
    method: str = "lora"
    has_plenty: bool = False

    def __str__(self) -> str:
        targets = self.targets if isinstance(self.targets, str) else f"{len(self.targets)} targets"
        what = self.method if self.method != "lora" else f"r={self.rank} {targets}"
        marks = [f"dropout {self.dropout}"] * bool(self.dropout) + ["checkpointing"] * self.checkpointing
        marks += [f"{self.num_checkpointed} blocks again"] * bool(self.num_checkpointed)
        return ", ".join([self.model, f"{self.pack_tokens} tokens", what, self.precision, *marks])


SETTINGS = (
    Setting("llama-21M", 512),
    Setting("llama-21M", 1024, ATTENTION, dropout=0.1),
    Setting("llama-21M", 1024, ATTENTION, precision="bf16"),
    Setting("llama-21M", 1024, method="full_finetune"),
    Setting("llama-21M", 2048, "all-linear", rank=32),
    Setting("llama-21M", 2048, ATTENTION, checkpointing=True),
    Setting("llama-21M", 4096, QUERY_VALUE, precision="bf16", checkpointing=True),
    Setting("qwen2-62M", 512, "all-linear", rank=64),
    Setting("qwen2-62M", 1024, ATTENTION, precision="bf16", dropout=0.05),
    Setting("qwen2-62M", 2048, "all-linear", checkpointing=True),
    Setting("qwen2-62M", 1024, method="full_finetune", precision="bf16"),
    Setting("llama-135M", 512),
    Setting("llama-135M", 1024, "all-linear", precision="bf16"),
    Setting("llama-135M", 1024, ATTENTION, checkpointing=True),
    Setting("llama-21M", 2048, ATTENTION, num_checkpointed=6),
    Setting("llama-21M", 2048, method="full_finetune", num_checkpointed=9),
    Setting("llama-135M", 1024, ATTENTION, num_checkpointed=24),
    Setting("llama-21M", 512, has_plenty=True),
    Setting("llama-21M", 2048, "all-linear", rank=32, has_plenty=True),
    Setting("llama-21M", 2048, ATTENTION, checkpointing=True, has_plenty=True),
    Setting("qwen2-62M", 1024, ATTENTION, precision="bf16", dropout=0.05, has_plenty=True),
    Setting("llama-135M", 1024, ATTENTION, checkpointing=True, has_plenty=True),
)


def main() -> None:
    """Run every setting and print the table."""
    parser = argparse.ArgumentParser(usage="python benchmarks/memory_plan.py [--only WORD]")
    parser.add_argument("--only", default="", help="Run the settings whose line has this word.")
    # What it calls itself with.
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_model(Path(options.make[0]), options.make[1])
    elif options.train:
        file, pack_tokens, num_checkpointed, memory = options.train
        train_in_this_process(
            Path(file), int(pack_tokens), int(num_checkpointed), has_plenty=memory == "plenty"
        )
    else:
        sys.exit(0 if run_all(options.only) else 1)


def run_all(word: str) -> bool:
    """Run the settings that have a word in their line; return whether each prediction was near enough."""
    is_good = True
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows.jsonl")
        for has_plenty in (False, True):
            tolerance = _HEAP_TOLERANCE if has_plenty else _TOLERANCE
            terminal.result(f"\n{'plenty of' if has_plenty else 'little'} memory: within {tolerance:.0%}")
            for setting in SETTINGS:
                if setting.has_plenty == has_plenty and word in str(setting):
                    is_good &= run(setting, Path(folder), tolerance)
    return is_good


def run(setting: Setting, folder: Path, tolerance: float) -> bool:
    """Train a setting, print its lines, and return whether the prediction was near enough."""
    model = folder / setting.model
    if not model.exists():
        run_self(folder, "--make", str(model), setting.model)
    memory = "plenty" if setting.has_plenty else "little"
    numbers = str(setting.pack_tokens), str(setting.num_checkpointed)
    measured = run_self(folder, "--train", str(write_strategy(setting, folder)), *numbers, memory)
    record = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
    parts: dict[str, int] = record["predicted_memory_bytes"]
    predicted = sum(parts.values())
    error = predicted / measured - 1
    mark = "" if abs(error) <= tolerance else "  TOO FAR OFF"
    shown = "  ".join(f"{name} {size / _MIB:.0f}" for name, size in parts.items() if size >= _MIB)
    terminal.result(str(setting))
    terminal.result(
        f"  predicted {predicted / _MIB:,.0f} MiB, measured {measured / _MIB:,.0f}: {error:+.1%}{mark}"
    )
    terminal.result(f"  {shown}")
    return abs(error) <= tolerance


def run_self(folder: Path, *arguments: str) -> int:
    """Run this file with arguments and return the largest resident size of that process in bytes.

    This process stays small: a child's count begins with the size of the process that it comes from.
    """
    log_file = folder / "log.txt"
    with log_file.open("w", encoding="utf-8") as log:
        redirect = [(os.POSIX_SPAWN_DUP2, log.fileno(), stream) for stream in (1, 2)]
        command = [sys.executable, __file__, *arguments]
        process = os.posix_spawn(sys.executable, command, os.environ, file_actions=redirect)
        _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"{' '.join(arguments)} failed:\n{log_file.read_text(encoding='utf-8')[-2000:]}")
    return usage.ru_maxrss * 1024


def train_in_this_process(
    strategy_file: Path, pack_tokens: int, num_checkpointed: int, *, has_plenty: bool
) -> None:
    """Train a strategy with packs of a given size and so many blocks again, which no strategy can ask for."""
    from llamafarm.planning import packs
    from llamafarm.planning.memory import predict_memory
    from llamafarm.strategy.load import Override, load_strategy
    from llamafarm.training.preparation.prepare import prepare
    from llamafarm.training.run import run_training

    packs._PACK_TOKENS["cpu"] = packs._FEWEST_PACK_TOKENS = pack_tokens
    overrides = []
    if not has_plenty:
        request = prepare(load_strategy("s", file=strategy_file)).memory.cut.request
        request = replace(request, returns_freed_memory=True)
        if num_checkpointed:
            request = replace(request, checkpointed_blocks=num_checkpointed)
        # Of blocks as few are taken as it allows, so that what is given is no more than that.
        room = 1.002 if num_checkpointed else 1.1
        needed = predict_memory(request).total_bytes
        overrides = [Override("hardware.memory_gb", str(needed * room / 2**30))]
    run_training(load_strategy("s", file=strategy_file, overrides=overrides), overwrite=True)


def make_model(folder: Path, name: str) -> None:
    """Write random weights of a shape, with the embedded model's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "llamafarm" / "assets" / "cria-5m")
    architecture, (hidden, feed_forward, layers, heads, key_heads, vocabulary, is_tied) = _SHAPES[name]
    sizes: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": is_tied,
        "max_position_embeddings": 8192,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if architecture == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path: Path) -> None:
    """Write rows of 50 to 400 tokens, the same ones each time."""
    draw = random.Random(1)
    words = [
        "pain",
        "fever",
        "heart",
        "person",
        "causes",
        "rest",
        "of",
        "in",
        "is",
        "why",
        "how",
        "can",
        "the",
    ]

    def sentences() -> Iterator[dict[str, str]]:
        for number in range(64):
            question = " ".join(draw.choices(words, k=draw.randint(30, 100)))
            answer = " ".join(draw.choices(words, k=draw.randint(60, 300)))
            yield {"instruction": f"{question} {number}?", "output": f"{answer}."}

    path.write_text("".join(json.dumps(row) + "\n" for row in sentences()), encoding="utf-8")


def write_strategy(setting: Setting, folder: Path) -> Path:
    """Write the strategy of a setting."""
    method: dict[str, Any] = {"type": setting.method}
    if setting.method == "lora":
        targets = setting.targets if isinstance(setting.targets, str) else list(setting.targets)
        method |= {"r": setting.rank, "alpha": 16, "dropout": setting.dropout, "target_modules": targets}
    strategy = {
        "base_model": {"huggingface_id": str(folder / setting.model)},
        "method": method,
        "training_args": {
            "output_dir": str(folder / "run"),
            "max_steps": _NUM_STEPS,
            "num_train_epochs": 20,
            "learning_rate": 1e-5,
            # Enough rows of 230 tokens on average to fill a pack and begin another.
            "per_device_train_batch_size": max(4, setting.pack_tokens // 200),
        },
        "hardware": {
            "device": "cpu",
            "optimization": {
                "gradient_checkpointing": "auto" if setting.num_checkpointed else setting.checkpointing,
                "mixed_precision": "no" if setting.precision == "fp32" else setting.precision,
            },
        },
        "dataset": {"train_file": str(folder / "rows.jsonl")},
        "prompt_template": {"format": "Question: {input}\nAnswer: {output}"},
    }
    path = folder / "strategies.yaml"
    path.write_text(json.dumps({"s": strategy}), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
