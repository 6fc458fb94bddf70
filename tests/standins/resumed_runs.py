"""What tests compare of two runs: the final adapter, the metrics, and after which steps a run went on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from llamafarm.training.result import RunResult


def digest(result: RunResult) -> str:
    """Return the hash of a run's final adapter."""
    return hashlib.sha256((result.final_model / "adapter_model.safetensors").read_bytes()).hexdigest()


def record_of(folder: Path) -> dict[str, Any]:
    """Return a run's `run.json`."""
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`, without what differs from run to run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "tokens_per_second", "memory_bytes", "gpu_utilization")
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


def resumed_after(folder: Path) -> list[int]:
    """Return the steps after which a run went on."""
    return [entry["after_step"] for entry in record_of(folder)["resumed"]]
