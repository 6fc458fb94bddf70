"""Folders of runs as training leaves them, and worse ones."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NASTY = (
    "<script>alert('x')</script> & \"quotes\" </style> {{ 7*7 }} `tick` | bar 🦙 שלום عالم "
    "\x1b[31m\x07 \u202e"
)
LONG_LINE = "w" * 10_000

MakeRun = Callable[..., Path]


def lines_of(num_steps: int, eval_every: int, seed: int = 0, start: float = 3.0) -> list[dict[str, Any]]:
    """Return lines of metrics that look like a run's: noisy, falling, with a baseline."""
    draw = random.Random(seed)

    def loss(step: int) -> float:
        return 0.35 + (start - 0.35) * math.exp(-step / (num_steps / 5))

    names = ("train_loss", "learning_rate", "grad_norm", "tokens", "supervised_tokens", "tokens_per_second")
    lines: list[dict[str, Any]] = [
        dict.fromkeys(names)
        | {"step": 0, "epoch": 0.0, "eval_loss": loss(0), "eval_perplexity": 20.1, "seconds": 0}
    ]
    for step in range(1, num_steps + 1):
        is_evaluated = step % eval_every == 0
        held_out = loss(step) + 0.06 + 0.15 * (step / num_steps) ** 3
        lines.append(
            {
                "step": step,
                "epoch": step / 64,
                "train_loss": loss(step) * draw.uniform(0.8, 1.2),
                "eval_loss": held_out if is_evaluated else None,
                "eval_perplexity": math.exp(held_out) if is_evaluated else None,
                "learning_rate": 0.002 * min(step / 10, 1) * (1 + math.cos(math.pi * step / num_steps)) / 2,
                "grad_norm": draw.uniform(0.5, 1.5) * (1 + 4 * math.exp(-step / 20)),
                "tokens": 690,
                "supervised_tokens": 160,
                "tokens_per_second": draw.uniform(4500, 5600),
                "memory_bytes": int(6e8 + 4e7 * min(step, 20) / 20),
                "gpu_utilization": draw.uniform(0.82, 0.97),
                "seconds": step * 0.14,
            }
        )
    return lines


def run_record(text: str = "", num_steps: int = 128) -> dict[str, Any]:
    """Return a `run.json`; `text` stands in every free text of it."""
    return {
        "strategy": f"medical_demo{text}",
        "base_model": f"owner/base-1b{text}",
        "strategy_file": f"demos/strategies.yaml{text}",
        "started": "2026-11-26T07:00:12+00:00",
        "finished": "2026-11-26T07:03:40+00:00",
        "settings": {
            "name": f"Medical{text}",
            "method": {"type": "lora", "r": 8, "alpha": 16, "dropout": 0.05, "target_modules": "all-linear"},
            "training_args": {
                "output_dir": "/home/somebody/runs/one",
                "learning_rate": 0.002,
                "num_train_epochs": 2,
                "max_grad_norm": 1.0,
                "load_best_model_at_end": True,
                "max_steps": None,
            },
            "dataset": {"eval_file": "eval.jsonl", "allow": []},
            "prompt_template": {"format": f"Question: {{input}}\nAnswer: {{output}}\n{text}"},
            "generation": {"max_new_tokens": 200},
        },
        "origins": {
            "method.r": "strategy file demos/strategies.yaml:96",
            "method.type": "default",
            "method.alpha": "strategy file demos/strategies.yaml:97",
            "method.dropout": "preset lora.yaml:4",
            "method.target_modules": "default",
            "name": "strategy file demos/strategies.yaml:87",
            "training_args.output_dir": "command line --output-dir",
            "training_args.learning_rate": "strategy file demos/strategies.yaml:105",
            "training_args.num_train_epochs": "strategy file demos/strategies.yaml:103",
            "training_args.max_grad_norm": "default",
            "training_args.max_steps": "default",
            "training_args.load_best_model_at_end": "strategy file demos/strategies.yaml:109",
            "dataset.eval_file": "strategy file demos/strategies.yaml:114",
            "dataset.allow": "default",
            "prompt_template.format": "strategy file demos/strategies.yaml:121",
            "generation.max_new_tokens": "default",
        },
        "retired": [
            {"path": f"training_args.fp16_backend{text}", "why": f"it is old{text}", "where": "a.yaml:3"}
        ],
        "choices": [
            {"setting": "device", "value": f"NVIDIA H100{text}", "why": "what this machine has"},
            {
                "setting": "memory",
                "value": "0.55 GiB at the peak",
                "why": "predicted; 22.82 GiB free on the device",
            },
            {"setting": "kernels", "value": "67 modules", "why": f"held equal to the model's own{text}"},
        ],
        "warnings": [f"12 rows are longer than 512 tokens: left out{text}"],
        "data": [
            {
                "file": f"/home/somebody/data/medical_train.jsonl{text}",
                "rows": 1012,
                "sha256": "694a943a" * 8,
            },
            {"file": f"/home/somebody/data/medical_eval.jsonl{text}", "rows": 113, "sha256": "94408cc2" * 8},
        ],
        "predicted_memory_bytes": {"process": 488398848, "weights": 11016704, "activations": 42453792},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "peft": f"0.21.2{text}"},
        "findings": [
            {
                "name": "evaluation-degradation",
                "level": "warning",
                "seen": f"eval_loss rose from 0.402 at step 96 to 0.431{text}",
                "meaning": "The model began to memorise after that step",
                "remedy": f"training_args.num_train_epochs: 1.5{text}",
                "step": 96,
            },
            {
                "name": "plateau",
                "level": "note",
                "seen": "it stands",
                "meaning": "m",
                "remedy": "r",
                "step": None,
            },
        ],
        "plan": {"num_steps": num_steps, "steps_per_epoch": 64, "rows_per_step": 16, "num_epochs": 2},
        "data_facts": {
            "train_rows": 1000,
            "eval_rows": 113,
            "train_tokens": 43439,
            "train_supervised_tokens": 10411,
            "eval_tokens": 4900,
            "longest_row_tokens": 212,
            "max_length": 512,
            "leaked_rows": 3,
        },
        "mask_samples": [
            {
                "row": row,
                "num_tokens": 31,
                "num_supervised_tokens": 11,
                "is_cut": row == 2,
                "pieces": [
                    {"text": "<|start|>", "is_trained": False, "is_special": True},
                    {"text": f"Question: why does the\nheart beat?{text}\nAnswer: ", "is_trained": False},
                    {"text": f"It pumps blood.{text}", "is_trained": True, "is_special": False},
                    {"text": "<|end|>", "is_trained": True, "is_special": True},
                ],
            }
            for row in (1, 2)
        ],
        "seconds": {"steps": 180.0, "data": 3.0, "evaluations": 12.5, "saves": 4.25},
        "template": {
            "source": "{{ messages[0]['content'] }}",
            "origin": "prompt_template.format",
            "end_of_turn": f"<|end|>{text}",
        },
        "machine": {"device": "NVIDIA H100", "memory_bytes": 85899345920, "system": f"Linux{text}"},
        "export": {
            "path": "model.gguf",
            "format": "gguf",
            "bytes": 5_900_000,
            "verified": {"agreement": 0.998},
        },
        "result": {
            "final_model": "/home/somebody/runs/one/final_model",
            "num_steps": num_steps,
            "num_epochs": num_steps / 64,
            "train_loss": 0.3512,
            "eval_loss": 0.431,
            "eval_perplexity": 1.539,
            "best_step": 96,
            "stopped_early": False,
            "num_tokens": 690 * num_steps,
            "num_supervised_tokens": 160 * num_steps,
            "train_seconds": 0.14 * num_steps,
            "peak_memory_bytes": 647233536,
        },
    }


def evaluation_record(text: str = "", num_answers: int = 9) -> dict[str, Any]:
    """Return an `evaluation.json` in which tuned is better; `text` stands in every free text of it."""
    shares = {
        "exact_match": 0.0,
        "token_f1": 0.12,
        "rouge_l": 0.1,
        "chrf": 0.2,
        "stop_rate": 0.4,
        "loop_rate": 0.3,
    }
    tuned_shares = {
        "exact_match": 0.31,
        "token_f1": 0.62,
        "rouge_l": 0.6,
        "chrf": 0.63,
        "stop_rate": 1,
        "loop_rate": 0,
    }

    def model(name: str, loss: float, figures: dict[str, float]) -> dict[str, Any]:
        return {
            "name": name,
            "eval_loss": loss,
            "eval_perplexity": math.exp(loss),
            "rows": 113,
            **figures,
            "bleu": 41.2,
            "mean_tokens": 12.25,
            "answer_tokens_per_second": 812.3,
            "general_loss": 4.1 + loss / 100,
        }

    answer = "It is a long illness of the blood in which sugar stays too high. Drink water and see a doctor."
    return {
        "file": f"/home/somebody/data/medical_eval.jsonl{text}",
        "sha256": "94408cc2" * 8,
        "is_held_out": True,
        "general": {"name": f"built-in text{text}", "num_words": 2400},
        "max_new_tokens": 200,
        "num_left_out": 2,
        "models": [model("base", 2.91, shares), model("tuned", 0.42, tuned_shares)],
        "changes": {
            "eval_loss": {"estimate": -2.49, "low": -2.71, "high": -2.24},
            "token_f1": {"estimate": 0.5, "low": 0.44, "high": 0.55},
            "exact_match": {"estimate": 0.31, "low": 0.2, "high": 0.41},
            "stop_rate": {"estimate": 0.6, "low": None, "high": None},
            "loop_rate": {"estimate": -0.3, "low": -0.4, "high": -0.2},
            "general_loss": {"estimate": 0.025, "low": -0.01, "high": 0.06},
        },
        "findings": [
            {"name": "forgot", "level": "note", "seen": f"the loss rose{text}", "meaning": "m", "remedy": "r"}
        ],
        "answers": [
            {
                "row": row,
                "prompt": f"What is diabetes, and what helps against it?{text}",
                "expected": answer,
                "base": {"text": "diabetes " * 30 + text, "ended_by": "max-new-tokens"},
                "tuned": {"text": answer + text, "ended_by": "end-of-turn"},
            }
            for row in range(1, num_answers + 1)
        ],
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run's folder; a part given as None is not there, `text` stands in every free text."""

    def make(
        name: str = "run",
        *,
        text: str = "",
        run: dict[str, Any] | None = {},  # noqa: B006 - told apart from None, never changed
        lines: list[dict[str, Any]] | None = None,
        evaluation: dict[str, Any] | None = {},  # noqa: B006
        has_model: bool = True,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        if run is not None:
            (folder / "run.json").write_text(json.dumps(run or run_record(text)))
        if evaluation is not None:
            (folder / "evaluation.json").write_text(json.dumps(evaluation or evaluation_record(text)))
        kept = lines_of(128, 32) if lines is None else lines
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
        if has_model:
            (folder / "final_model").mkdir()
            bundle = {
                "base_model": f"owner/base-1b{text}",
                "kind": "adapter",
                "end_of_turn": f"<|end|>{text}",
            }
            (folder / "final_model" / "llamafarm.json").write_text(json.dumps(bundle))
        (folder / "checkpoints" / "step-00000096").mkdir(parents=True)
        return folder

    return make


@pytest.fixture
def nasty_text() -> str:
    """Text that would break a page that took it for more than text."""
    return NASTY + LONG_LINE
