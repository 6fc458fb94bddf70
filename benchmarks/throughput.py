"""Training speed beside other tools on the same work, and beside the matrix products that it needs.

    python benchmarks/throughput.py [--shape 135m|500m|tiny] [--rows 64] [--text FILE] [--peer-python PYTHON]
        [--tools ours,ours-unshared,plain-bf16,trl,trl-tuned] [--rounds 3] [--system-tokens N]
        [--most-tokens N]

Random weights of the shape are made on the spot; rows are questions and answers of `--text` (instruction and
output), else made-up ones of very different lengths. Each tool trains one epoch in a process of its own, and
they take turns; `--peer-python` says by which Python, for one of them as llamafactory=PYTHON. Printed are the
medians: seconds of the training loop, tokens and supervised tokens a second, the largest memory, and, for
ours, per cent of the GEMM floor (`gemm_floor.py`) and of the peak, measured before and after.

Held equal: the weights, the rows as token ids with what is trained on, their order where a tool lets it be,
16 rows a step (for packs: as many packs as 16 rows fill in the mean), LoRA of rank 8 on q, k, v and o without
dropout, AdamW, its constant rate, and the threads. `--system-tokens` begins every row with the same
text; `ours-unshared` computes it for each row. Rows have `--most-tokens` at most, beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from llamafarm import terminal

_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
_RANK, _ROWS_PER_STEP, _LEARNING_RATE = 8, 16, 1e-4
_MIB = 2**20
# Hidden size, feed-forward size, layers, heads, key heads, vocabulary, tied.
_SHAPES = {
    "tiny": (64, 192, 2, 4, 2, 3072, True),
    "small": (256, 768, 8, 4, 2, 8192, True),
    "135m": (576, 1536, 30, 9, 3, 49152, True),
    "500m": (1024, 2816, 24, 16, 4, 151936, True),
}


def make_model(folder: Path, shape: str) -> None:
    """Write a Llama with random weights, and the embedded model's tokenizer with its chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llamafarm.model.load import find_base, load_tokenizer

    hidden, inner, layers, heads, key_heads, vocabulary, tied = _SHAPES[shape]
    tokenizer = load_tokenizer(find_base(None))
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows(folder: Path, options: argparse.Namespace) -> None:
    """Write the rows as text for ours, and for the others as the ids and marks that ours makes of it."""
    from llamafarm.data.encoding.encode import encode_conversations
    from llamafarm.data.reading.records import read_data_file
    from llamafarm.model.load import Base, load_tokenizer, text_encoder
    from llamafarm.model.prompt import build_template

    draw = random.Random(3)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(500)]
    if options.text is not None:
        lines = options.text.read_text(encoding="utf-8").splitlines()
        draw.shuffle(lines)
        pairs = [(row["instruction"], row["output"]) for row in map(json.loads, lines)]
    else:
        lengths = [min(int(draw.lognormvariate(4.2, 0.8)) + 3, 200) for _ in range(4 * options.rows)]
        pairs = [
            (" ".join(draw.choices(words, k=12)), " ".join(draw.choices(words, k=length)))
            for length in lengths
        ]
    tokenizer = load_tokenizer(Base("model", str(folder / "model")))
    system = ""
    while len(tokenizer(system)["input_ids"]) < options.system_tokens:
        system += (" " if system else "") + draw.choice(words)
    template, _ = build_template(tokenizer, None, None)
    path = folder / "text.jsonl"
    records = [
        {"system": system, "instruction": question, "output": answer} for question, answer in pairs if answer
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    rows = encode_conversations(read_data_file(path).conversations, template, text_encoder(tokenizer))
    most = options.most_tokens + options.system_tokens
    kept = [place for place, row in enumerate(rows) if row.num_tokens <= most][: options.rows]
    path.write_text("".join(json.dumps(records[place]) + "\n" for place in kept), encoding="utf-8")
    with (folder / "rows.jsonl").open("w") as file:
        for row in (rows[place] for place in kept):
            # Nothing predicts the first token.
            marks = [False, *row.is_supervised_T[1:].tolist()]
            file.write(json.dumps({"token_ids": row.token_ids_T.tolist(), "is_supervised": marks}) + "\n")


def run_ours(folder: Path, *, shares_prefixes: bool = True) -> dict[str, Any]:
    """Train as `train` does, in this process."""
    import resource

    from llamafarm.strategy.load import load_strategy
    from llamafarm.training import session
    from llamafarm.training.run import run_training

    settings = json.loads((folder / "settings.json").read_text())
    strategy = {
        "base_model": {"huggingface_id": str(folder / "model")},
        "dataset": {"train_file": str(folder / "text.jsonl"), "allow": ["untrained_control_tokens"]},
        "data_preprocessing": {"shuffle": False},
        "hardware": {"device": "cpu", "optimization": {"mixed_precision": settings["precision"]}},
        "method": {
            "type": "lora",
            "r": _RANK,
            "alpha": 2 * _RANK,
            "dropout": 0.0,
            "target_modules": _TARGETS,
        },
        "training_args": {
            "output_dir": str(folder / "ours"),
            "num_train_epochs": 1,
            "learning_rate": _LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": settings["batch_size"],
            "gradient_accumulation_steps": _ROWS_PER_STEP // settings["batch_size"],
        },
        "monitoring": {"save_checkpoints": False},
    }
    (folder / "strategy.yaml").write_text(json.dumps({"s": strategy}))
    sizes: list[tuple[int, int]] = []
    pack = session.pack_rows

    def remember(*args: Any, **kwargs: Any) -> Any:
        if not shares_prefixes:
            kwargs["shares_prefixes"] = False
        packs = pack(*args, **kwargs)
        sizes.extend(size[:2] for size in packs.sizes())
        return packs

    session.pack_rows = remember  # type: ignore[attr-defined]
    result = run_training(load_strategy("s", file=folder / "strategy.yaml"), overwrite=True)
    losses = [json.loads(line)["train_loss"] for line in (folder / "ours" / "metrics.jsonl").open()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    told = f"{settings['precision']}, packs of {max(size for size, _ in sizes)} tokens at most"
    return {
        "seconds": result.train_seconds,
        "losses": losses,
        "peak_bytes": peak,
        "told": told,
        "packs": sizes,
    }


def run_tool(tool: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a tool in a process of its own and return what it printed last."""
    here = Path(__file__)
    if tool.startswith("ours"):
        command = [sys.executable, str(here), "--run-ours", str(folder), "--tools", tool]
    else:
        pythons = dict(one.split("=") if "=" in one else ("", one) for one in options.peer_python)
        python = pythons.get(tool) or pythons.get("") or sys.executable
        command = [python, str(here.with_name("throughput_peers.py")), tool, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"{tool} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(
    found: dict[str, list[dict[str, Any]]], folder: Path, options: argparse.Namespace, peak_before: float
) -> None:
    """Print a line for each tool, and what ours is of the floor."""
    import torch
    from transformers import LlamaConfig

    from benchmarks.gemm_floor import floor_seconds, measure_peak

    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    num_tokens = sum(len(row["token_ids"]) for row in rows)
    num_supervised = sum(sum(row["is_supervised"]) for row in rows)
    terminal.result(
        f"\n{options.shape}, {len(rows)} rows, {num_tokens:,} tokens, {num_supervised:,} of them trained on, "
        f"{options.threads} threads"
    )
    ours = statistics.median(one["seconds"] for one in found["ours"]) if "ours" in found else None
    for tool, runs in found.items():
        seconds = statistics.median(one["seconds"] for one in runs)
        peak = max(one["peak_bytes"] for one in runs) / _MIB
        times = f"{seconds / ours:.2f} x ours" if ours else ""
        terminal.result(
            f"{tool:<11}{seconds:8.1f} s  {num_tokens / seconds:7,.0f} tokens/s  "
            f"{num_supervised / seconds:7,.0f} trained/s  {peak:7,.0f} MiB  {times}  "
            f"last loss {runs[0]['losses'][-1]:.4f}  ({runs[0]['told']})"
        )
    if ours:
        dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
        config = LlamaConfig.from_pretrained(folder / "model")
        packs = [tuple(size) for size in found["ours"][0]["packs"]]
        floor, operations = floor_seconds(config, packs, _RANK, _TARGETS, dtype)
        peak_after = measure_peak(dtype)
        peak_flops = max(peak_before, peak_after)
        terminal.result(
            f"GEMM floor of ours {floor:.1f} s: {floor / ours:.0%} of its time; "
            f"{operations / ours / 1e9:,.0f} GFLOP/s, {operations / ours / peak_flops:.0%} of the peak, "
            f"{peak_before / 1e9:,.0f} before and {peak_after / 1e9:,.0f} after"
        )


def main() -> None:
    """Make the work, let the tools take turns, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=_SHAPES, default="135m")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tools", default="ours,plain-bf16")
    parser.add_argument("--peer-python", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--system-tokens", type=int, default=0)
    parser.add_argument("--most-tokens", type=int, default=500)
    parser.add_argument("--run-ours", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_ours is not None:
        found = run_ours(options.run_ours, shares_prefixes=options.tools != "ours-unshared")
        sys.stdout.write("\n" + json.dumps(found) + "\n")
        return
    import torch

    from benchmarks.gemm_floor import measure_peak

    tools = options.tools.split(",")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_model(folder / "model", options.shape)
        settings = {
            "rank": _RANK,
            "target_modules": _TARGETS,
            "learning_rate": _LEARNING_RATE,
            "rows_per_step": _ROWS_PER_STEP,
            "batch_size": options.batch_size,
            "precision": options.precision,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        make_rows(folder, options)
        torch.set_num_threads(options.threads)
        peak_before = measure_peak(torch.bfloat16 if options.precision == "bf16" else torch.float32)
        results: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
        for _ in range(options.rounds):
            for tool in tools:
                results[tool].append(run_tool(tool, folder, options))
                terminal.say(f"{tool} {results[tool][-1]['seconds']:.1f} s")
        show(results, folder, options, peak_before)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
