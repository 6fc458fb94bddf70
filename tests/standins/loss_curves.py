"""Made-up lines of `metrics.jsonl`: a loss that falls as far as its learning rate has gone, with noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llamafarm.findings.history import Settings

Line = dict[str, Any]
# A loss without noise at (part of the way gone, epochs gone). The way is the learning rate summed up.
Loss = Callable[[float, float], float]


@dataclass(frozen=True, slots=True)
class Curve:
    """How a run goes. `spikes` are losses of single steps; 0 for `num_evaluations` means none at all."""

    loss: Loss
    eval_loss: Loss | None = None
    num_steps: int = 200
    num_epochs: float = 2.0
    learning_rate: float = 2e-4
    schedule: str = "cosine"
    warmup_ratio: float = 0.05
    noise: float = 0.1
    num_evaluations: int = 8
    evaluates_first: bool = True
    logging_steps: int = 1
    seed: int = 0
    spikes: dict[int, float] = field(default_factory=dict)
    grad_norms: Callable[[int], float] | None = None


def falls(start: float, end: float, bend: float = 0.05, power: float = 0.5) -> Loss:
    """Return a power law from `start` to `end`; the smaller `bend` is, the earlier it bends."""

    def shape(way: float) -> float:
        return (1 + way / bend) ** -power

    def loss(way: float, epoch: float) -> float:
        return end + (start - end) * (shape(way) - shape(1.0)) / (1 - shape(1.0))

    return loss


def goes_straight(start: float, end: float) -> Loss:
    """Return a loss that falls as fast at the end of its way as in the beginning."""
    return lambda way, epoch: start + (end - start) * way


def with_steps_down(loss: Loss, each: float) -> Loss:
    """Return a loss that is lower by `each` from one epoch to the next: the rows come again."""
    return lambda way, epoch: loss(way, epoch) - each * max(0, math.ceil(epoch - 1e-9) - 1)


def make_lines(curve: Curve) -> list[Line]:
    """Return the lines that a run would write."""
    draw = np.random.default_rng(curve.seed)
    rates = _learning_rates(curve)
    ways = np.append(0.0, np.cumsum(rates) / np.sum(rates))
    steps_per_epoch = curve.num_steps / curve.num_epochs
    every = max(1, curve.num_steps // max(curve.num_evaluations, 1))
    eval_loss = curve.eval_loss if curve.num_evaluations else None
    eval_noise = draw.normal(0, curve.noise / 20, curve.num_steps + 1)
    lines = []
    if eval_loss is not None and curve.evaluates_first:
        lines.append(_line(0, 0.0, eval_loss(0.0, 0.0)))
    pending: list[float] = []
    for step in range(1, curve.num_steps + 1):
        epoch = step / steps_per_epoch
        # The loss of a step is that of the weights before it, and an evaluation comes after it.
        loss = curve.loss(float(ways[step - 1]), epoch) + draw.normal(0, curve.noise)
        pending.append(curve.spikes.get(step, max(loss, 0.001)))
        is_evaluated = eval_loss is not None and (step % every == 0 or step == curve.num_steps)
        if step % curve.logging_steps and not is_evaluated and step != curve.num_steps:
            continue
        measured = None
        if is_evaluated and eval_loss is not None:
            measured = eval_loss(float(ways[step]), epoch) + float(eval_noise[step])
        norm = curve.grad_norms(step) if curve.grad_norms else _usual_norm(draw, step)
        lines.append(
            _line(step, epoch, measured)
            | {
                "train_loss": float(np.mean(pending)),
                "learning_rate": float(rates[step - 1]),
                "grad_norm": norm,
                "supervised_tokens": int(draw.integers(300, 900)) * len(pending),
            }
        )
        pending = []
    return lines


def settings_of(curve: Curve, **others: Any) -> Settings:
    """Return what the run was set to."""
    chosen = {
        "num_steps": curve.num_steps,
        "steps_per_epoch": max(1, round(curve.num_steps / curve.num_epochs)),
        "learning_rate": curve.learning_rate,
        "num_epochs": curve.num_epochs,
        "max_grad_norm": 1.0,
        "num_eval_rows": 50,
    }
    return Settings(**chosen | others)


def random_healthy(seed: int) -> Curve:
    """Return a run as many go: sizes, rates, schedules, noise and evaluations drawn by `seed`."""
    draw = np.random.default_rng([seed, 1])
    num_steps = int(np.exp(draw.uniform(np.log(30), np.log(5000))))
    num_epochs = float(draw.choice([1, 2, 3, 5]))
    start = float(draw.choice([1.35, draw.uniform(0.9, 4.0)]))
    fall = 0.2 if start == 1.35 else start * draw.uniform(0.1, 0.6)
    # It bends within the first third of its way, most often much earlier.
    bend, power = float(np.exp(draw.uniform(np.log(0.003), np.log(0.12)))), float(draw.uniform(0.3, 1.0))
    base = falls(start, start - fall, bend, power)
    # Until the guide's gap there is room for that many steps down.
    down = float(draw.uniform(0, 0.3)) / max(num_epochs - 1, 1)
    offset = float(draw.normal(0, 0.05))
    has_evaluation = draw.random() < 0.7
    return Curve(
        with_steps_down(base, min(down, 0.1 * (start - fall))),
        (lambda way, epoch: base(way, epoch) + offset) if has_evaluation else None,
        num_steps,
        num_epochs,
        learning_rate=float(np.exp(draw.uniform(np.log(1e-5), np.log(5e-4)))),
        schedule=str(draw.choice(["cosine", "linear", "constant"])),
        warmup_ratio=float(draw.choice([0.0, 0.03, 0.1])),
        noise=float(draw.choice([0.15, draw.uniform(0.02, 0.25)])),
        num_evaluations=int(draw.choice([num_epochs, draw.integers(3, 30)])),
        evaluates_first=bool(draw.random() < 0.8),
        logging_steps=int(draw.choice([1, 1, 1, 10])) if num_steps > 300 else 1,
        seed=seed,
    )


def _learning_rates(curve: Curve) -> np.ndarray:
    num_warmup = round(curve.num_steps * curve.warmup_ratio)
    steps = np.arange(curve.num_steps)
    gone = np.clip((steps - num_warmup) / max(curve.num_steps - num_warmup, 1), 0, 1)
    after = {"cosine": (1 + np.cos(np.pi * gone)) / 2, "linear": 1 - gone, "constant": np.ones_like(gone)}
    return curve.learning_rate * np.where(
        steps < num_warmup, steps / max(num_warmup, 1), after[curve.schedule]
    )


def _usual_norm(draw: np.random.Generator, step: int) -> float:
    return float(np.exp(draw.normal(0, 0.3))) * (0.5 + 3 / step)


def _line(step: int, epoch: float, eval_loss: float | None) -> Line:
    return {
        "step": step,
        "epoch": round(epoch, 6),
        "train_loss": None,
        "eval_loss": eval_loss,
        "learning_rate": None,
        "grad_norm": None,
        "supervised_tokens": None,
    }
