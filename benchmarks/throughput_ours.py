"""The training of this package as `throughput.py` measures it, in a process of its own.

    python benchmarks/throughput_ours.py FOLDER [--unshared] [--profile PATH]

FOLDER has `text.jsonl` and `settings.json`. Prints one JSON line, as `throughput_peers.py` does. With
`--profile` it takes five steps, the last three under torch's profiler, whose table goes to PATH.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from throughput_peers import peak_memory

from llamafarm.strategy.load import load_strategy
from llamafarm.training import run, session
from llamafarm.training.preparation import memory

_PROFILED_STEPS = (3, 5)
_EVENTS_SHOWN = 60


class TimedSession(session.Session):
    """A session that remembers its steps: seconds from end to end, tokens, and what was computed."""

    latest: TimedSession
    profiler: Any = None
    # Of the step that is being taken.
    laid_out: Sequence[tuple[int, int, int]] = ()
    pack_tokens = 0

    def run(self) -> Any:
        """Run the loop between two moments at which the device has nothing left to do."""
        TimedSession.latest = self
        self.steps: list[dict[str, Any]] = []
        self.packs: list[tuple[int, int, int]] = []
        self.loop_seconds = 0.0
        started = self._ended = moment()
        try:
            return super().run()
        finally:
            self.loop_seconds = moment() - started

    def take_step(self, step: int, row_indices: Sequence[int]) -> Any:
        """Take a step and note what it was."""
        if self.profiler is not None and step == _PROFILED_STEPS[0]:
            self.profiler.start()
            self._ended = moment()
        result = super().take_step(step, row_indices)
        ended = moment()
        self.packs += self.laid_out
        self.steps.append(
            {
                "seconds": ended - self._ended,
                "tokens": result.num_tokens,
                "supervised": result.num_supervised_tokens,
                "computed": [sum(column) for column in zip(*self.laid_out, strict=True)],
            }
        )
        self._ended = ended
        if self.profiler is not None and step == _PROFILED_STEPS[1]:
            self.profiler.stop()
        return result


def moment() -> float:
    """Return the time once the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def strategy_of(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the strategy of the run."""
    return {
        "base_model": {"huggingface_id": settings["model"]},
        "dataset": {"train_file": str(folder / "text.jsonl"), "allow": ["untrained_control_tokens"]},
        "data_preprocessing": {"shuffle": False},
        "hardware": {
            "device": settings["device"],
            "optimization": {
                "mixed_precision": "no" if settings["precision"] == "fp32" else settings["precision"]
            },
        },
        "method": {
            "type": settings["method"],
            "r": settings["rank"],
            "alpha": 2 * settings["rank"],
            "dropout": 0.0,
            "target_modules": settings["target_modules"],
        },
        "training_args": {
            "output_dir": str(folder / "ours"),
            "num_train_epochs": 1,
            "learning_rate": settings["learning_rate"],
            "lr_scheduler_type": "constant",
            # How rows are cut into packs is the memory's business: only the product counts.
            "per_device_train_batch_size": settings["rows_per_step"],
            "gradient_accumulation_steps": 1,
            "eval_strategy": "no",
        },
        "monitoring": {"save_checkpoints": False, "sample_rows": 0},
    }


def observe(*, shares_prefixes: bool, pack_tokens: int | None) -> None:
    """Let runs of this process be timed, and their packs be remembered."""
    lay_out = session.pack_rows

    def remember(rows: Any, indices: Any, most_tokens: int, *args: Any, **kwargs: Any) -> Any:
        if not shares_prefixes:
            kwargs["shares_prefixes"] = False
        packs = lay_out(rows, indices, most_tokens, *args, **kwargs)
        # Where memory ran out a step is laid out anew: the last one counts.
        TimedSession.laid_out, TimedSession.pack_tokens = packs.sizes(), most_tokens
        return packs

    session.pack_rows = remember  # type: ignore[attr-defined]
    run.Session = TimedSession  # type: ignore[attr-defined]
    if pack_tokens is not None:
        memory.choose_pack_tokens = lambda _: pack_tokens  # type: ignore[assignment]


def run_ours(folder: Path, *, profiles: Path | None = None) -> dict[str, Any]:
    """Train as `train` does, in this process."""
    settings = json.loads((folder / "settings.json").read_text())
    strategy = strategy_of(folder, settings)
    if profiles is not None:
        strategy["training_args"] |= {"max_steps": _PROFILED_STEPS[1], "num_train_epochs": _PROFILED_STEPS[1]}
        TimedSession.profiler = make_profiler()
    (folder / "strategy.yaml").write_text(json.dumps({"s": strategy}))
    run.run_training(load_strategy("s", file=folder / "strategy.yaml"), overwrite=True)
    timed = TimedSession.latest
    if profiles is not None:
        write_profile(timed, profiles)
    losses = [json.loads(line)["train_loss"] for line in (folder / "ours" / "metrics.jsonl").open()]
    return {
        "seconds": timed.loop_seconds,
        "steps": timed.steps,
        "losses": losses,
        "packs": timed.packs,
        "told": tell(folder / "ours" / "run.json", settings, timed),
        **peak_memory(settings["device"]),
    }


def tell(record_file: Path, settings: dict[str, Any], timed: TimedSession) -> str:
    """Return how the run was cut to fit the memory, and what came in its way."""
    record = json.loads(record_file.read_text())
    fullest = max(size[0] for size in timed.packs)
    told = f"{settings['precision']}, packs of {timed.pack_tokens} tokens, the fullest of {fullest}"
    for choice in record["choices"]:
        if choice["setting"] in ("pack", "checkpointing", "memory", "kernels", "allocator"):
            told += f"; {choice['setting']} {choice['value']}"
    if events := record["out_of_memory"]:
        told += f"; out of memory {len(events)} times"
    return told


def make_profiler() -> Any:
    """Return torch's profiler, of the processor and of a GPU where there is one."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities)


def write_profile(timed: TimedSession, path: Path) -> None:
    """Write what the profiled steps spent their time on, longest first, and how long they took."""
    first, last = _PROFILED_STEPS
    steps = timed.steps[first - 1 : last]
    seconds, num_tokens = (sum(step[name] for step in steps) for name in ("seconds", "tokens"))
    events = [one for one in timed.profiler.key_averages() if not getattr(one, "is_user_annotation", False)]
    # A kernel counts for itself, and once more for the operation that launched it.
    operations = [one for one in events if one.device_type == torch.autograd.DeviceType.CPU]
    kernels = [one for one in events if one.device_type == torch.autograd.DeviceType.CUDA]
    lines = [f"steps {first} to {last}: {seconds:.3f} s under the profiler, {num_tokens:,} tokens"]
    if kernels:
        lines += ["", "kernels", *describe_events(kernels, device_microseconds)]
        lines += ["", "operations, by their own kernels", *describe_events(operations, device_microseconds)]
    lines += ["", "operations, on the processor"]
    lines += describe_events(operations, lambda event: event.self_cpu_time_total)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def device_microseconds(event: Any) -> float:
    """Return the time of an event on the device, by the name that this version of torch has for it."""
    found = getattr(event, "self_device_time_total", None)
    return float(event.self_cuda_time_total if found is None else found)


def describe_events(events: Sequence[Any], microseconds_of: Callable[[Any], float]) -> list[str]:
    """Return a line for each of the longest events, and one for all."""
    total = sum(map(microseconds_of, events)) or 1.0
    lines = [f"{total / 1e3:11.2f} ms in all"]
    for event in sorted(events, key=microseconds_of, reverse=True)[:_EVENTS_SHOWN]:
        taken = microseconds_of(event)
        if taken:
            lines.append(f"{taken / 1e3:11.2f} ms {taken / total:6.1%} {event.count:7,} x  {event.key[:140]}")
    return lines


def main() -> None:
    """Run, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unshared", action="store_true")
    parser.add_argument("--pack-tokens", type=int)
    parser.add_argument("--profile", type=Path)
    options = parser.parse_args()
    observe(shares_prefixes=not options.unshared, pack_tokens=options.pack_tokens)
    found = run_ours(options.folder, profiles=options.profile)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
