"""A short run of everything that a run does, made over and over in processes that share one start.

A process is forked from this one, which has imported torch and the package: it takes a hundredth of the time
that a new interpreter takes, and goes through the same command line.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import planted_runs as plant
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llamafarm import cli, terminal
from llamafarm.hardware.speed import measure_peak_flops
from llamafarm.training import rehearsal  # noqa: F401 - all that a run imports is imported once

ROOT = Path(__file__).parents[3]
# Of a line of metrics, what no two runs share.
_TIMES = ("seconds", "tokens_per_second", "memory_bytes", "gpu_utilization")
_PATIENCE_SECONDS = 240.0
SAVE_STEPS = 2

Disturbance = Callable[[], None]


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended: `exit_code` is negative for the signal that killed it; `said` is its stderr."""

    exit_code: int
    said: str

    def __str__(self) -> str:
        return f"exit code {self.exit_code}: {self.said[-600:]}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left: the SHA-256 of its adapter, and its metrics but for times."""

    adapter: str
    metrics: tuple[str, ...]


@dataclass(slots=True)
class Findings:
    """What a part of the campaign found: `num_tried` of `wanted`, each failure in a line, figures by name."""

    name: str
    num_tried: int = 0
    failures: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, amount: float = 1) -> None:
        """Add to a figure."""
        self.figures[name] = self.figures.get(name, 0) + amount


class Worker:
    """A process that trains."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self._log = log
        self._status: int | None = None

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if not self.has_ended():
            os.kill(self.pid, number)

    def has_ended(self) -> bool:
        """Return whether the process is over; does not wait."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def wait(self, seconds: float = _PATIENCE_SECONDS) -> bool:
        """Wait so long for the end; return whether it came."""
        until = time.monotonic() + seconds
        while not self.has_ended() and time.monotonic() < until:
            time.sleep(0.002)
        return self._status is not None

    def end(self) -> End:
        """Wait for the end and return it; a process that hangs is killed, which is a failure."""
        hangs = not self.wait()
        if hangs:
            self.signal(signal.SIGKILL)
            self.wait()
        assert self._status is not None
        said = self._log.read_text(encoding="utf-8", errors="replace")
        return End(os.waitstatus_to_exitcode(self._status), ("it hung\n" if hangs else "") + said)


class Arena:
    """A base, its data, and how long the undisturbed run takes and what it leaves."""

    def __init__(self, folder: Path, seed: int, *, num_rows: int = 101) -> None:
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.folder = folder
        self.draw = random.Random(seed)
        self._base = folder / "base"
        self._rows = plant.make_rows(plant.repeat_row, num_rows, 1)
        # Of another kind than what is learnt: the best evaluation is in the middle of the run.
        self._eval_rows = plant.make_rows(plant.chance_row, 9, 2)
        self._num_made = 0
        _make_base(self._base)
        # Measured once here, as each process would measure it again.
        for name in ("fp32", "bf16"):
            measure_peak_flops("cpu", name)
        # What is here already need not be looked at by each process's garbage collector, nor be copied.
        gc.collect()
        gc.freeze()
        taken = []
        for name in ("undisturbed", "again", "once more"):
            run = self.make(name)
            started = time.monotonic()
            end = self.start(run).end()
            taken.append(time.monotonic() - started)
            assert end.exit_code == 0, end
        # Of the fastest, as what else runs on the machine only slows one down.
        self.seconds = min(taken)
        self.undisturbed = outcome_of(run)

    def make(self, name: str = "", **settings: Any) -> Path:
        """Write a strategy into a new folder, and return the folder that its run will have."""
        self._num_made += 1
        folder = self.folder / (name or f"r{self._num_made}")
        return self.make_at(folder, **settings)

    def make_at(self, folder: Path, **settings: Any) -> Path:
        """Write a strategy into `folder`, and return the folder that its run will have."""
        chosen: dict[str, Any] = {
            "base_model__huggingface_id": str(self._base),
            "method__r": 4,
            "method__alpha": 8,
            "method__dropout": 0.1,
            "method__target_modules": ["q_proj", "v_proj"],
            "training_args__num_train_epochs": 3,
            "training_args__per_device_train_batch_size": 4,
            "training_args__gradient_accumulation_steps": 2,
            "training_args__learning_rate": 0.1,
            "training_args__save_strategy": "steps",
            "training_args__save_steps": SAVE_STEPS,
            "training_args__eval_steps": 5,
            "training_args__load_best_model_at_end": True,
            "monitoring__sample_rows": 0,
            "hardware__optimization__mixed_precision": "no",
        }
        plant.load(folder, self._rows, self._eval_rows, **(chosen | settings))
        return folder / "run"

    def start(self, run: Path, *arguments: str, disturbance: Disturbance | None = None) -> Worker:
        """Start training into `run` as the command line does, with whatever `disturbance` puts in its way."""
        # Beside all runs: theirs may be on a disk that is full.
        log = self.folder / f"{time.monotonic_ns()}.log"
        log.touch()  # here: a process that is killed in its first moment does not come to it
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = _train(run, log, arguments, disturbance)
            except KeyboardInterrupt as interrupt:  # once more, when the command had ended
                code = _exit_code_of(interrupt)
            finally:
                os._exit(code)
        return Worker(pid, log)

    def finish(self, run: Path, *arguments: str) -> End:
        """Train into `run` without a disturbance, to the end."""
        return self.start(run, *arguments).end()

    def forget(self, run: Path) -> None:
        """Remove a run and its strategy."""
        shutil.rmtree(run.parent, ignore_errors=True)

    def copy(self, run: Path) -> Path:
        """Return a copy of a run, as another of the same strategy."""
        copied = self.make()
        shutil.copytree(run, copied)
        return copied

    def difference(self, run: Path) -> str | None:
        """Return how what `run` left is other than what the undisturbed run did."""
        found = outcome_of(run)
        if found.adapter != self.undisturbed.adapter:
            return "the adapter has other bytes"
        if found.metrics != self.undisturbed.metrics:
            return f"other metrics: {len(found.metrics)} lines of {len(self.undisturbed.metrics)}"
        return None


def outcome_of(run: Path) -> Outcome:
    """Return what a run left."""
    adapter = hashlib.sha256((run / "final_model" / "adapter_model.safetensors").read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = ({name: value for name, value in line.items() if name not in _TIMES} for line in lines)
    return Outcome(adapter, tuple(json.dumps(line) for line in kept))


def record_of(run: Path) -> dict[str, Any]:
    """Return a run's `run.json`; empty where there is none."""
    try:
        record: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return record


def steps_of(run: Path) -> list[int]:
    """Return the steps in a run's metrics, whole lines only, in the order in which they were written."""
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line)["step"] for line in text.split("\n")[:-1]]


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for a campaign, gone at its end."""
    return tempfile.TemporaryDirectory(prefix="llamafarm-survival-")


def _train(run: Path, log: Path, arguments: tuple[str, ...], disturbance: Disturbance | None) -> int:
    """Train in this process, which is a copy, as the command line would; return its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, cli._terminate)
    try:
        written = os.open(log, os.O_WRONLY)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        terminal.console.cache_clear()
        if disturbance is not None:
            disturbance()
        strategies = str(run.parent / "strategies.yaml")
        sys.argv = ["cli.py", "train", "--strategy", "s", "--strategy-file", strategies, *arguments]
        cli.main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 0
    except KeyboardInterrupt as interrupt:  # before the command had begun, or after it had ended
        return _exit_code_of(interrupt)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _exit_code_of(interrupt: KeyboardInterrupt) -> int:
    return 143 if isinstance(interrupt, cli._Terminated) else 130


def _make_base(folder: Path) -> None:
    """Write a random Llama of two layers with the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "llamafarm" / "assets" / "cria-5m")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
