"""Whether cost grows with tokens and nothing else: 1, 4 and 16 times the rows, packs of 512 to 8,192.

    python benchmarks/linear_cost.py [--rows 48] [--shape small]

Random weights and rows of 20 to 400 tokens; LoRA r=8 on attention. Printed are microseconds for a token of a
training step, and the largest memory, each from a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from llamafarm import terminal

_STEP_ROWS = 16


def measure(folder: Path, num_rows: int, pack_tokens: int) -> None:
    """Train once over the first rows, in packs of one size, and print seconds, tokens and memory as JSON."""
    from llamafarm.strategy.load import load_strategy
    from llamafarm.training.preparation import memory
    from llamafarm.training.run import run_training

    memory.choose_pack_tokens = lambda _: pack_tokens  # type: ignore[assignment]
    lines = (folder / "rows.jsonl").read_text().splitlines()[:num_rows]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    strategy = {
        "base_model": {"huggingface_id": str(folder / "model")},
        "dataset": {"train_file": str(folder / "train.jsonl"), "allow": ["untrained_control_tokens"]},
        "hardware": {"device": "cpu"},
        "method": {
            "type": "lora",
            "r": 8,
            "alpha": 16,
            "dropout": 0.0,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        },
        "training_args": {
            "output_dir": str(folder / "run"),
            "num_train_epochs": 1,
            "per_device_train_batch_size": max(_STEP_ROWS, num_rows // 8),
            "gradient_accumulation_steps": 1,
        },
        "monitoring": {"save_checkpoints": False},
    }
    (folder / "strategy.yaml").write_text(json.dumps({"s": strategy}))
    result = run_training(load_strategy("s", file=folder / "strategy.yaml"), overwrite=True)
    sys.stdout.write(
        "\n" + json.dumps([result.train_seconds, result.num_tokens, result.peak_memory_bytes]) + "\n"
    )


def main() -> None:
    """Make the work, measure each size, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--shape", default="small")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, num_rows, pack_tokens = options.measure
        measure(Path(folder), int(num_rows), int(pack_tokens))
        return
    from benchmarks.throughput_work import make_model, make_rows

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_model(folder / "model", options.shape)
        work = argparse.Namespace(
            rows=16 * options.rows,
            text=None,
            system_tokens=0,
            most_tokens=400,
            exact_tokens=None,
            mean_tokens=None,
        )
        make_rows(folder, folder / "model", work)
        (folder / "text.jsonl").rename(folder / "rows.jsonl")
        sizes = [(times * options.rows, 1024) for times in (1, 4, 16)]
        sizes += [(4 * options.rows, pack_tokens) for pack_tokens in (512, 2048, 4096, 8192)]
        for num_rows, pack_tokens in sizes:
            command = [sys.executable, __file__, "--measure", str(folder), str(num_rows), str(pack_tokens)]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode:
                sys.exit(done.stderr[-2000:])
            seconds, num_tokens, peak_bytes = json.loads(done.stdout.strip().splitlines()[-1])
            terminal.result(
                f"{num_rows:6,} rows  {num_tokens:9,} tokens  packs of {pack_tokens:5,}  {seconds:7.2f} s  "
                f"{seconds / num_tokens * 1e6:7.1f} us/token  {peak_bytes / 2**20:7,.0f} MiB"
            )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
