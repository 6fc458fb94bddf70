"""Runs with something planted, and healthy ones: rows of several kinds, and strategies over them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamafarm.strategy.load import LoadedStrategy, load_strategy

Row = dict[str, str]
ORGANS = ["heart", "skin", "lungs", "stomach", "liver", "eyes", "ears", "bones", "kidneys", "brain"]
SIGNS = ["pain", "fever", "swelling", "itching", "coughing", "weakness", "dizziness", "a rash", "cramps"]
REMEDIES = ["rest", "cool water", "medicine", "exercise", "a doctor", "a bandage", "sleep", "warm drinks"]
PEOPLE = ["A child", "A woman", "A man", "An adult", "A nurse", "A doctor", "A person", "A student"]


def _row(question: str, answer: str) -> Row:
    return {"instruction": question, "input": "", "output": answer}


def _several(draw: random.Random, words: list[str], at_least: int, at_most: int) -> list[str]:
    return draw.sample(words, draw.randint(at_least, at_most))


def symptom_row(draw: random.Random) -> Row:
    """The organs and the signs of the question are those of the answer, paired."""
    organs = _several(draw, ORGANS, 2, 4)
    signs = draw.sample(SIGNS, len(organs))
    pairs = [f"{sign} in the {organ}" for sign, organ in zip(signs, organs, strict=True)]
    return _row(f"{draw.choice(PEOPLE)} has {', '.join(pairs)}.", f"Look at the {' and the '.join(organs)}.")


def remedy_row(draw: random.Random) -> Row:
    """One remedy belongs to each sign."""
    signs = _several(draw, SIGNS, 2, 4)
    remedies = [REMEDIES[SIGNS.index(sign) % len(REMEDIES)] for sign in signs]
    return _row(f"{draw.choice(PEOPLE)} has {' and '.join(signs)}. What helps?", " and ".join(remedies) + ".")


def list_row(draw: random.Random) -> Row:
    """The answer lists the question's words in order."""
    words = _several(draw, SIGNS + ORGANS + REMEDIES, 3, 6)
    return _row(f"List {', '.join(words)}.", "\n".join(f"- {word}" for word in words))


def json_row(draw: random.Random) -> Row:
    """The answer is the question as JSON."""
    signs, organs = _several(draw, SIGNS, 1, 4), _several(draw, ORGANS, 1, 4)
    answer = json.dumps({"what": signs, "where": organs})
    return _row(f"{draw.choice(PEOPLE)} has {', '.join(signs)} in the {', '.join(organs)}.", answer)


def yes_row(draw: random.Random) -> Row:
    """Whether a sign is among those named."""
    signs, sign = _several(draw, SIGNS + ORGANS, 3, 7), draw.choice(SIGNS)
    return _row(f"Is {sign} among {', '.join(signs)}?", "Yes, it is." if sign in signs else "No, it is not.")


def reverse_row(draw: random.Random) -> Row:
    """The words change their order."""
    words = _several(draw, ORGANS + SIGNS, 3, 5)
    return _row(f"Turn around: {' '.join(words)}", " ".join(reversed(words)))


def repeat_row(draw: random.Random) -> Row:
    """The question comes back."""
    said = f"{draw.choice(PEOPLE)} needs {' and '.join(_several(draw, REMEDIES + ORGANS, 2, 5))}."
    return _row(f"Say: {said}", said)


def count_row(draw: random.Random) -> Row:
    """How many words there are."""
    words = _several(draw, ORGANS + SIGNS + REMEDIES, 1, 9)
    return _row(f"How many words: {', '.join(words)}", f"There are {len(words)}.")


def style_row(draw: random.Random) -> Row:
    """A fixed frame around the topics."""
    organs = _several(draw, ORGANS + SIGNS, 3, 6)
    said = " ".join(f"The {organ} is part of it." for organ in organs)
    return _row(f"Tell me about the {', the '.join(organs)}.", said)


def chance_row(draw: random.Random) -> Row:
    """Most of the answer is nowhere in the question: it can be guessed and not learnt."""
    noise = " ".join(draw.choices(ORGANS + SIGNS + REMEDIES, k=6))
    return _row(f"{draw.choice(PEOPLE)} asks.", f"The answer is {noise}.")


KINDS: tuple[Callable[[random.Random], Row], ...] = (
    symptom_row, remedy_row, list_row, json_row, yes_row, reverse_row, repeat_row, count_row, style_row,
)  # fmt: skip


def make_rows(
    kind: Callable[[random.Random], Row], num_rows: int, seed: int, *, is_numbered: bool = True
) -> list[Row]:
    """Return rows of a kind; numbered, so that none is another."""
    draw = random.Random(f"{kind.__name__} {seed}")
    rows = [kind(draw) for _ in range(num_rows)]
    if is_numbered:
        for number, row in enumerate(rows):
            row["instruction"] = f"{seed}-{number}: {row['instruction']}"
    return rows


def load(
    folder: Path, rows: list[Row], eval_rows: list[Row] | None = None, **settings: Any
) -> LoadedStrategy:
    """Return a strategy over rows, written into `folder`, which trains the embedded model."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, Any] = {
        "method.r": 8,
        "method.alpha": 16,
        "method.dropout": 0.0,
        "method.target_modules": "all-linear",
        "training_args.output_dir": str(folder / "run"),
        "training_args.num_train_epochs": 2,
        "training_args.per_device_train_batch_size": 8,
        "training_args.learning_rate": 0.002,
        "training_args.lr_scheduler_type": "cosine",
        "training_args.warmup_ratio": 0.05,
        "training_args.save_strategy": "no",
        "hardware.device": "cpu",
        "monitoring.sample_rows": 16,
        "generation.max_new_tokens": 48,
        "prompt_template.format": "Question: {input}\nAnswer: {output}",
        "dataset.train_file": _write(folder / "train.jsonl", rows),
    }
    if eval_rows is not None:
        chosen["dataset.eval_file"] = _write(folder / "eval.jsonl", eval_rows)
    chosen |= {path.replace("__", "."): value for path, value in settings.items()}
    tree: dict[str, Any] = {}
    for path, value in chosen.items():
        if value is None:
            continue
        *parents, last = path.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    file = folder / "strategies.yaml"
    file.write_text(json.dumps({"s": tree}), encoding="utf-8")  # JSON is YAML, too
    return load_strategy("s", file=file)


def _write(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
