"""What watching a run costs of its steps: the live view, the metrics file, the findings.

    python benchmarks/watching_cost.py [--shape 135m] [--rows 256] [--columns 120]

A random model of the shape (as in `throughput.py`) is trained on made-up rows in this process, with standard
error on a terminal of so many columns, so that the live view draws as it does for a person. What is spent in
the journal of the run is timed from the inside and set beside the time of the steps. Then the findings are
asked for after each of 20,000 made-up lines.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from throughput_work import make_model

from llamafarm import terminal
from llamafarm.findings.history import Settings
from llamafarm.findings.speed import Seconds
from llamafarm.strategy.load import load_strategy
from llamafarm.training import journal
from llamafarm.training.run import run_training
from llamafarm.training.watch import Watch

_WORDS = ("pain", "fever", "heart", "person", "causes", "rest", "often", "helps", "in", "the", "doctor")


def main() -> None:
    """Print the share of the steps' time that watching takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="135m")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--columns", type=int, default=120)
    options = parser.parse_args()
    spent = {"seconds": 0.0, "calls": 0.0}
    _time_methods(spent, "take_in_step", "write", "write_baseline")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", options.shape)
        _put_stderr_on_a_terminal(options.columns)
        result = run_training(_load(folder, options.rows))
    per_step = spent["seconds"] / result.num_steps
    share = spent["seconds"] / result.train_seconds
    terminal.result(
        f"{options.shape}: {result.num_steps} steps of {result.train_seconds / result.num_steps:.3f} s; "
        f"watching {per_step * 1e3:.2f} ms a step, {share:.3%}"
    )
    terminal.result(f"findings over 20,000 lines: {_time_watch(20_000):.2f} s in all")


def _time_methods(spent: dict[str, float], *names: str) -> None:
    """Let the journal's methods add to `spent` what they take."""

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                spent["seconds"] += time.perf_counter() - started
                spent["calls"] += 1

        return call

    for name in names:
        setattr(journal.Journal, name, timed(getattr(journal.Journal, name)))


def _put_stderr_on_a_terminal(num_columns: int) -> None:
    """Let file descriptor 2 be a terminal whose other end is read and thrown away."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, num_columns, 0, 0))
    os.dup2(theirs, sys.stderr.fileno())
    threading.Thread(target=_drain, args=(ours,), daemon=True).start()


def _drain(descriptor: int) -> None:
    while os.read(descriptor, 65536):
        pass


def _load(folder: Path, num_rows: int) -> Any:
    """Return a strategy over made-up rows that evaluates and saves now and then."""
    rows = [
        {"instruction": f"{number}: {_WORDS[number % 9]}?", "output": " ".join(_WORDS * (1 + number % 5))}
        for number in range(num_rows + 16)
    ]
    for name, part in (("train", rows[16:]), ("eval", rows[:16])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    strategy = {
        "base_model": {"huggingface_id": str(folder / "model")},
        "method": {"r": 8, "alpha": 16},
        "training_args": {
            "output_dir": str(folder / "run"),
            "num_train_epochs": 1,
            "per_device_train_batch_size": 16,
            "eval_steps": 8,
        },
        "dataset": {"train_file": str(folder / "train.jsonl"), "eval_file": str(folder / "eval.jsonl")},
        "monitoring": {"sample_rows": 0},
    }
    (folder / "strategies.yaml").write_text(json.dumps({"s": strategy}), encoding="utf-8")
    return load_strategy("s", file=folder / "strategies.yaml")


def _time_watch(num_lines: int) -> float:
    """Return the seconds that the findings take over so many lines, evaluations among them."""
    watch = Watch(Settings(num_lines, num_lines // 3, 2e-4, 3.0, 1.0), lambda finding: None)
    seconds = Seconds(1.0, 0.0, 0.0, 0.0, 0, 0, 1)
    started = time.perf_counter()
    for step in range(1, num_lines + 1):
        loss = 1.0 + 2.0 / step**0.5 + 0.01 * (step % 7)
        watch.observe(
            {
                "step": step,
                "epoch": step / (num_lines // 3),
                "train_loss": loss,
                "eval_loss": loss if step % 500 == 0 else None,
                "learning_rate": 2e-4,
                "grad_norm": 1.0,
                "supervised_tokens": 500,
            },
            seconds,
            (None, 0),
        )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
