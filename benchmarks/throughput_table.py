"""What `throughput.py` found, as a table: a line for each tool, of medians over its rounds.

`steady` leaves the first two steps out, in which kernels are compiled, chosen and given their memory, unless
there are no others. Of the peak counts what the model's mathematics takes (`gemm_floor.model_flops`): what a
tool computes twice, or for padding, is not in it, and of ours a shared prefix counts once. The peak is
measured before and after; beside it stands what the datasheet of the GPU says. Memory is that of the process,
on a GPU what was allocated there, and reserved.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from benchmarks.gemm_floor import floor_seconds, measure_gpu_peak, measure_peak, model_flops
from llamafarm import terminal
from llamafarm.data.encoding.pack import MULTIPLE

_MIB = 2**20
_FIRST_STEPS = 2
# Dense bf16 of the SXM modules, in operations a second.
_DATASHEET = {"H100": 989e12, "H200": 989e12}

Runs = list[dict[str, Any]]
FlopsOf = Callable[[list[int]], float]


def measure_device_peak(options: argparse.Namespace) -> float:
    """Return the operations a second of the device's matrix products, in the numbers of the run."""
    if options.device == "cuda":
        return measure_gpu_peak()
    torch.set_num_threads(options.threads)
    return measure_peak(dtype_of(options))


def dtype_of(options: argparse.Namespace) -> torch.dtype:
    """Return the numbers of the run."""
    return torch.bfloat16 if options.precision == "bf16" else torch.float32


def datasheet_peak(device: str) -> float | None:
    """Return what the datasheet of this GPU says, if it is known here."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    slower = any(form in name for form in ("PCIe", "NVL"))
    return next((peak for known, peak in _DATASHEET.items() if known in name and not slower), None)


def steady_speed(run: dict[str, Any], flops_of: FlopsOf) -> dict[str, float]:
    """Return tokens, supervised tokens and operations a second of all but the first steps.

    Of all steps where there are no others; nothing where a tool does not tell them.
    """
    steps = run["steps"][_FIRST_STEPS:] or run["steps"]
    if not steps:
        return {}
    seconds = sum(step["seconds"] for step in steps)
    computed = [sum(column) for column in zip(*(step["computed"] for step in steps), strict=True)]
    sums = {name: sum(step[name] for step in steps) for name in ("tokens", "supervised")}
    return {**{name: total / seconds for name, total in sums.items()}, "flops": flops_of(computed) / seconds}


def show(
    found: dict[str, Runs], folder: Path, options: argparse.Namespace, peaks: tuple[float, float]
) -> None:
    """Print what the work was, a line for each tool, and what ours is of the floor."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    num_tokens = sum(len(row["token_ids"]) for row in rows)
    num_supervised = sum(sum(row["is_supervised"]) for row in rows)
    settings = json.loads((folder / "settings.json").read_text())
    config = LlamaConfig.from_pretrained(settings["model"])
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} threads"
    terminal.result(
        f"\n{options.shape}, {options.method} r={options.rank} on {options.targets}, {len(rows)} rows, "
        f"{options.rows_per_step} a step, {num_tokens:,} tokens, {num_supervised:,} of them trained on; "
        f"{where}, peak {peaks[0] / 1e12:,.2f} TFLOP/s before and {peaks[1] / 1e12:,.2f} after"
    )

    def flops_of(computed: list[int]) -> float:
        return model_flops(config, computed, options.rank, settings["target_modules"])

    sheet = datasheet_peak(options.device)
    header = ["tool", "loop s", "tokens/s", "x ours", "steady/s", "trained/s", "x ours", "of peak"]
    header += ["of datasheet"] if sheet else []
    header += ["MiB", "reserved"] if options.device == "cuda" else ["MiB"]
    table = [[*header, "last loss"]]
    against = [peak for peak in (max(peaks), sheet) if peak]
    medians = {tool: median_of(runs, num_tokens, flops_of) for tool, runs in found.items()}
    for tool, runs in found.items():
        table.append([tool, *cells(medians[tool], medians.get("ours"), against, runs)])
    for line in align(table):
        terminal.result(line)
    for tool, runs in found.items():
        terminal.result(f"{tool}: {runs[0]['told']}")
    if "ours" in found and options.device == "cpu":
        show_floor(found["ours"], peaks)


def median_of(runs: Runs, num_tokens: int, flops_of: FlopsOf) -> dict[str, float]:
    """Return the medians of a tool's rounds: of the whole loop, and steady."""
    speeds = [speed for run in runs if (speed := steady_speed(run, flops_of))]
    medians = {name: statistics.median(speed[name] for speed in speeds) for name in (speeds or [{}])[0]}
    seconds = statistics.median(run["seconds"] for run in runs)
    return {**medians, "seconds": seconds, "of_loop": num_tokens / seconds}


def cells(
    median: dict[str, float], ours: dict[str, float] | None, peaks: list[float], runs: Runs
) -> list[str]:
    """Return what a tool's line says, a dash where nothing is known."""

    def times(name: str) -> str:
        return f"{ours[name] / median[name]:.2f}" if ours and name in ours and name in median else "-"

    def number(name: str) -> str:
        return f"{median[name]:,.0f}" if name in median else "-"

    line = [f"{median['seconds']:.2f}", number("of_loop"), times("of_loop")]
    line += [number("tokens"), number("supervised"), times("tokens")]
    line += [f"{median['flops'] / peak:.1%}" if "flops" in median else "-" for peak in peaks]
    for name in ("peak_bytes", "reserved_bytes"):
        if name in runs[0]:
            line.append(f"{max(run[name] for run in runs) / _MIB:,.0f}")
    return [*line, f"{runs[0]['losses'][-1]:.4f}"]


def align(table: list[list[str]]) -> list[str]:
    """Return the lines of a table: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]


def floor_of(
    run: dict[str, Any], settings: dict[str, Any], options: argparse.Namespace
) -> tuple[float, float]:
    """Return the seconds and the operations of the products of a run of ours, timed now.

    At the shapes that it has: packs and the head's positions are filled up to what products like best.
    """
    packs = [(up_to(tokens), up_to(supervised)) for tokens, supervised, _ in run["packs"]]
    config = LlamaConfig.from_pretrained(settings["model"])
    return floor_seconds(config, packs, options.rank, settings["target_modules"], dtype_of(options))


def up_to(count: int) -> int:
    """Return a count of rows as it is multiplied."""
    return -(-count // MULTIPLE) * MULTIPLE


def show_floor(runs: Runs, peaks: tuple[float, float]) -> None:
    """Print what part of the time of ours its matrix products take alone, each timed beside its run."""
    floors = [run["floor"] for run in runs]
    parts = sorted(floor / run["seconds"] for run, (floor, _) in zip(runs, floors, strict=True))
    seconds = statistics.median(run["seconds"] for run in runs)
    operations = floors[0][1]
    terminal.result(
        f"GEMM floor of ours {statistics.median(floor for floor, _ in floors):.1f} s: "
        f"{statistics.median(parts):.0%} of its time ({parts[0]:.0%} to {parts[-1]:.0%}); "
        f"{operations / seconds / 1e9:,.0f} GFLOP/s, {operations / seconds / max(peaks):.0%} of the peak, "
        f"{peaks[0] / 1e9:,.0f} before and {peaks[1] / 1e9:,.0f} after"
    )
