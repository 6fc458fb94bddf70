"""Steps and seconds to a held-out loss on a real small model: ours in bf16 and fp32 beside a plain loop.

    python benchmarks/time_to_loss.py MODEL FILE [--rows 2000] [--steps 125] [--learning-rate 2e-3]

MODEL is a folder of a Llama, FILE has instruction and output. All start from the same adapter, see the same
rows in the same order and take the same steps. The plain loop is transformers and peft in fp32 over padded
batches of 4, the loss summed over the step's supervised tokens. One evaluator judges them all: the loss of
the held-out rows in fp32, one by one without padding, by stock transformers, outside the times.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from llamafarm import terminal

_ROWS_PER_STEP, _BATCH, _HELD_OUT = 16, 4, 200
_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Curve = list[tuple[int, float, float]]


def strategy_of(options: argparse.Namespace, folder: Path, precision: str) -> dict[str, Any]:
    """Return the strategy that every run is of."""
    return {
        "base_model": {"huggingface_id": str(options.model)},
        "dataset": {"train_file": str(folder / "train.jsonl"), "allow": ["untrained_control_tokens"]},
        "data_preprocessing": {"shuffle": False},
        "prompt_template": {"format": "{input} = {output}"},
        "hardware": {"device": "cpu", "optimization": {"mixed_precision": precision}},
        "method": {"type": "lora", "r": 16, "alpha": 32, "dropout": 0.0, "target_modules": _TARGETS},
        "training_args": {
            "output_dir": str(folder / precision),
            "num_train_epochs": 1,
            "max_steps": options.steps,
            "learning_rate": options.learning_rate,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": _ROWS_PER_STEP,
            "gradient_accumulation_steps": 1,
            "save_strategy": "steps",
            "save_steps": options.every,
            "save_total_limit": options.steps,
            "logging_steps": 1,
        },
    }


def run_ours(options: argparse.Namespace, folder: Path, precision: str, judge: Any) -> Curve:
    """Train as `train` does and judge every checkpoint."""
    from llamafarm.strategy.load import load_strategy
    from llamafarm.training.checkpoint import read_checkpoint
    from llamafarm.training.run import run_training

    path = folder / "strategy.yaml"
    path.write_text(json.dumps({"s": strategy_of(options, folder, precision)}))
    run_training(load_strategy("s", file=path), overwrite=True)
    lines = (folder / precision / "metrics.jsonl").read_text().splitlines()
    seconds = {record["step"]: record["seconds"] for record in map(json.loads, lines)}
    steps = range(options.every, options.steps + 1, options.every)
    checkpoints = folder / precision / "checkpoints"
    return [(step, seconds[step], judge(read_checkpoint(checkpoints, step))) for step in steps]


def run_plain(options: argparse.Namespace, rows: Any, judge: Any) -> Curve:
    """Train by a loop that pads."""
    from benchmarks.throughput_peers import pad

    model = judge.fresh_model()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.0)
    curve: Curve = []
    seconds = 0.0
    for step in range(1, options.steps + 1):
        started = time.perf_counter()
        model.train()
        of_step = rows[(step - 1) * _ROWS_PER_STEP : step * _ROWS_PER_STEP]
        num_supervised = sum(sum(row["is_supervised"]) for row in of_step)
        for first in range(0, _ROWS_PER_STEP, _BATCH):
            batch = pad(of_step[first : first + _BATCH])
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
            )
            (loss / num_supervised).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - started
        if step % options.every == 0:
            curve.append((step, seconds, judge.loss_of(model)))
    return curve


class Judge:
    """The held-out rows, and their loss in fp32, one by one."""

    def __init__(self, options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
        self._options, self._rows = options, rows

    def fresh_model(self) -> Any:
        """Return the base in fp32 with the adapter that every run starts from."""
        from llamafarm.model.adapter import AdapterSettings, attach_adapter
        from llamafarm.model.load import find_base, load_model

        base = load_model(
            find_base(str(self._options.model)), dtype=torch.float32, device=torch.device("cpu")
        )
        model, _ = attach_adapter(base, AdapterSettings(16, 32, 0.0, _TARGETS), base_name="base", seed=42)
        return model

    def __call__(self, tensors: Any) -> float:
        """Return the loss of a saved adapter."""
        from llamafarm.model.adapter import restore_adapter

        model = self.fresh_model()
        restore_adapter(model, tensors)
        return self.loss_of(model)

    def loss_of(self, model: Any) -> float:
        """Return the mean loss over the supervised tokens of the held-out rows."""
        model.eval()
        summed, num_supervised = 0.0, 0
        with torch.inference_mode():
            for row in self._rows:
                ids_1T = torch.tensor(row["token_ids"])[None]
                marks_T = torch.tensor(row["is_supervised"])[1:]
                logits_TV = model(input_ids=ids_1T).logits[0, :-1]
                losses_T = torch.nn.functional.cross_entropy(logits_TV, ids_1T[0, 1:], reduction="none")
                summed += float(losses_T[marks_T].sum())
                num_supervised += int(marks_T.sum())
        return summed / num_supervised


def encode(options: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write the training rows as text; return them and the held-out ones as ids and marks."""
    from llamafarm.strategy.load import load_strategy
    from llamafarm.training.preparation.prepare import prepare

    lines = options.file.read_text(encoding="utf-8").splitlines()
    encoded = []
    for name, chosen in (
        ("held-out", lines[:_HELD_OUT]),
        ("train", lines[_HELD_OUT : _HELD_OUT + options.rows]),
    ):
        strategy = strategy_of(options, folder, "no")
        strategy["dataset"]["train_file"] = str(folder / f"{name}.jsonl")
        (folder / f"{name}.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
        (folder / "strategy.yaml").write_text(json.dumps({"s": strategy}))
        rows = prepare(load_strategy("s", file=folder / "strategy.yaml")).train_rows
        encoded.append(
            [
                {
                    "token_ids": row.token_ids_T.tolist(),
                    "is_supervised": [False, *row.is_supervised_T[1:].tolist()],
                }
                for row in rows
            ]
        )
    return encoded[1], encoded[0]


def main() -> None:
    """Run the three, and print their curves and when each reached the plain loop's last loss."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=125)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    options.model = options.model.resolve()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        train_rows, held_out = encode(options, folder)
        judge = Judge(options, held_out)
        curves = {
            "plain fp32": run_plain(options, train_rows, judge),
            "ours fp32": run_ours(options, folder, "no", judge),
            "ours bf16": run_ours(options, folder, "bf16", judge),
        }
    target = curves["plain fp32"][-1][2]
    terminal.result(f"{len(train_rows)} rows, {len(held_out)} held out; held-out loss by step:")
    for name, curve in curves.items():
        shown = "  ".join(
            f"{step}: {loss:.4f}" for step, _, loss in curve if step % (options.steps // 5) == 0
        )
        reached = next(((step, seconds) for step, seconds, loss in curve if loss <= target * 1.001), None)
        when = f"step {reached[0]}, {reached[1]:.1f} s" if reached else "not reached"
        terminal.result(f"{name:<11}{shown}   to {target:.4f}: {when}; all steps {curve[-1][1]:.1f} s")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
