"""Strategies over a few made-up rows, loaded or trained in a moment."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llamafarm.strategy.load import LoadedStrategy, load_strategy

Row = dict[str, Any]
Load = Callable[..., LoadedStrategy]

WORDS = ["pain", "fever", "the heart", "a person", "causes", "rest", "of", "in", "is", "why", "how", "can"]


def _nest(settings: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in settings.items():
        *parents, last = path.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return tree


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., list[Row]]:
    """Return distinct rows of random words, the same ones for the same seed."""

    def make(num_rows: int, seed: int = 0, *, words: tuple[int, int] = (3, 15)) -> list[Row]:
        draw = random.Random(seed)

        def sentence() -> str:
            return " ".join(draw.choices(WORDS, k=draw.randint(*words)))

        return [
            {"instruction": f"{sentence()} {seed}-{index}?", "input": "", "output": f"{sentence()}."}
            for index in range(num_rows)
        ]

    return make


@pytest.fixture
def load(tmp_path: Path, tiny_base: Path) -> Load:
    """Write rows and a strategy over them to files, and return it loaded; settings by dotted path."""

    def write_rows(name: str, rows: Sequence[Row]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    def load_strategy_over(
        rows: Sequence[Row],
        eval_rows: Sequence[Row] | None = None,
        *,
        output: str = "run",
        **settings: Any,
    ) -> LoadedStrategy:
        chosen: dict[str, Any] = {
            "base_model.huggingface_id": str(tiny_base),
            "method.r": 4,
            "method.alpha": 8,
            "method.dropout": 0.0,
            "method.target_modules": ["q_proj", "v_proj"],
            "training_args.output_dir": str(tmp_path / output),
            "training_args.num_train_epochs": 1,
            "training_args.learning_rate": 0.005,
            # What is asked and compared at the end has tests of its own.
            "monitoring.sample_rows": 0,
            "hardware.device": "cpu",
            # What a processor computes in by itself depends on the processor; None leaves it to it.
            "hardware.optimization.mixed_precision": "no",
            "dataset.train_file": write_rows("train.jsonl", rows),
            "prompt_template.format": "Question: {input}\nAnswer: {output}",
        }
        if eval_rows is not None:
            chosen["dataset.eval_file"] = write_rows("eval.jsonl", eval_rows)
        chosen |= {path.replace("__", "."): value for path, value in settings.items()}
        given = {path: value for path, value in chosen.items() if value is not None}
        # JSON is YAML, too.
        (tmp_path / "strategies.yaml").write_text(json.dumps({"s": _nest(given)}, indent=1), encoding="utf-8")
        return load_strategy("s", file=tmp_path / "strategies.yaml")

    return load_strategy_over
