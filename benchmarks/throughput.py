"""Training speed beside other tools on the same work, and beside the matrix products that it needs.

    python benchmarks/throughput.py [--device cpu|cuda] [--shape 135m|500m|1b|8b|…] [--rows 64] [--rounds 3]
        [--text FILE] [--exact-tokens N | --mean-tokens N] [--most-tokens N] [--system-tokens N]
        [--method lora|qlora] [--rank 8] [--targets qkvo|all] [--rows-per-step 16]
        [--tools ours,ours-unshared,plain-bf16,trl,trl-tuned,trl-padded,trl-liger,unsloth,llamafactory]
        [--peer-python PYTHON] [--folder FOLDER] [--record FILE] [--profile-ours FILE]

Random weights of the shape are made on the spot, and kept in `--folder` if it is given. Rows are questions
and answers of `--text` (instruction and output), else made-up ones: of very different lengths, of exactly
`--exact-tokens`, or of lengths around `--mean-tokens` (on cuda 700); none longer than `--most-tokens`. Each
tool trains one epoch in a process of its own, and they take turns; `--peer-python` says by which Python, for
one of them as llamafactory=PYTHON. A tool that fails is left out. What is printed: `throughput_table.py`.

Held equal: the weights, the rows as token ids with what is trained on, their order where a tool lets it be,
the rows of a step (for packs: as many packs as they fill in the mean), LoRA without dropout and its rank and
layers, AdamW, its constant rate, and the threads. `--system-tokens` begins every row with the same text;
`ours-unshared` computes it for each row. `trl` is TRL as it comes on a processor, `trl-padded` in bf16 and
padded, which on a GPU both are. `--profile-ours` writes where the time of three more steps of ours went.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from throughput_work import FEWEST_TOKENS, SHAPES, TARGETS, keep_model, make_rows

from llamafarm import terminal

_LEARNING_RATE = 1e-4
_ERROR_LINES = 15


class ToolFailedError(Exception):
    """A tool's process ended with an error, or took too long."""


def command_of(tool: str, folder: Path, options: argparse.Namespace, profile: Path | None) -> list[str]:
    """Return what runs a tool."""
    here = Path(__file__)
    if not tool.startswith("ours"):
        pythons = dict(one.split("=") if "=" in one else ("", one) for one in options.peer_python)
        python = pythons.get(tool) or pythons.get("") or sys.executable
        return [python, str(here.with_name("throughput_peers.py")), tool, str(folder)]
    command = [sys.executable, str(here.with_name("throughput_ours.py")), str(folder)]
    command += ["--unshared"] if tool == "ours-unshared" else []
    command += ["--pack-tokens", str(options.pack_tokens)] if options.pack_tokens else []
    command += ["--profile", str(profile.resolve())] if profile else []
    return command


def run_tool(
    tool: str, folder: Path, options: argparse.Namespace, profile: Path | None = None
) -> dict[str, Any]:
    """Run a tool in a process of its own and return what it printed last. Raises `ToolFailedError`."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
    }
    try:
        done = subprocess.run(  # noqa: S603 - the user's own Python
            command_of(tool, folder, options, profile),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=options.most_seconds,
        )
    except subprocess.TimeoutExpired:
        raise ToolFailedError(f"it took more than {options.most_seconds:.0f} s") from None
    if done.returncode:
        raise ToolFailedError("\n".join(done.stderr.strip().splitlines()[-_ERROR_LINES:]))
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def take_turns(folder: Path, options: argparse.Namespace) -> tuple[dict[str, list[dict[str, Any]]], bool]:
    """Return what each tool took in each round, and whether one failed: it has no further turn."""
    from throughput_table import floor_of

    settings = json.loads((folder / "settings.json").read_text())
    results: dict[str, list[dict[str, Any]]] = {tool: [] for tool in options.tools.split(",")}
    failed: set[str] = set()
    for _ in range(options.rounds):
        for tool in [one for one in results if one not in failed]:
            try:
                found = run_tool(tool, folder, options)
            except ToolFailedError as error:
                failed.add(tool)
                terminal.result(f"{tool} failed:\n{error}")
            else:
                if tool == "ours" and options.device == "cpu":
                    found["floor"] = floor_of(found, settings, options)
                results[tool].append(found)
                terminal.say(f"{tool} {found['seconds']:.1f} s")
                keep_record(results, options)
    if options.profile_ours is not None:
        try:
            run_tool("ours", folder, options, options.profile_ours)
        except ToolFailedError as error:
            failed.add("ours")
            terminal.result(f"the profile of ours failed:\n{error}")
    return {tool: runs for tool, runs in results.items() if runs}, bool(failed)


def keep_record(results: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """Write all that was measured so far, if that is asked for."""
    if options.record is not None:
        options.record.write_text(json.dumps(results, indent=1) + "\n")


def read_options() -> argparse.Namespace:
    """Return the options, with what a device has by default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tools", default="ours,plain-bf16")
    parser.add_argument("--peer-python", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--method", choices=("lora", "qlora"), default="lora")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", choices=TARGETS, default="qkvo")
    parser.add_argument("--rows-per-step", type=int, default=16)
    parser.add_argument("--batch-size", "--peer-batch", type=int, help="of peers that pad")
    parser.add_argument("--pack-tokens", type=int, help="of ours, instead of what the device prefers")
    parser.add_argument("--system-tokens", type=int, default=0)
    parser.add_argument("--most-tokens", type=int)
    parser.add_argument("--exact-tokens", type=int)
    parser.add_argument("--mean-tokens", type=int)
    parser.add_argument("--folder", type=Path, help="where weights are kept for the next call")
    parser.add_argument("--record", type=Path, help="a file for all that was measured, as JSON")
    parser.add_argument("--profile-ours", type=Path, help="a file for the profile of three steps")
    parser.add_argument("--most-seconds", type=float, default=3600.0, help="of a tool's process")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    options.batch_size = options.batch_size or (2 if on_gpu else 4)
    options.most_tokens = options.most_tokens or (4096 if on_gpu else 500)
    if on_gpu and options.text is None and options.exact_tokens is None:
        options.mean_tokens = options.mean_tokens or 700
    if options.exact_tokens and options.exact_tokens < FEWEST_TOKENS + options.system_tokens:
        parser.error(f"a row has {FEWEST_TOKENS} tokens at least beside --system-tokens")
    return options


def main() -> None:
    """Make the work, let the tools take turns, and print the table."""
    from throughput_table import measure_device_peak, show

    options = read_options()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = keep_model(options.folder or folder, options.shape, options.device)
        settings = {
            "model": str(model),
            "device": options.device,
            "method": options.method,
            "rank": options.rank,
            "target_modules": TARGETS[options.targets],
            "learning_rate": _LEARNING_RATE,
            "rows_per_step": options.rows_per_step,
            "batch_size": options.batch_size,
            "precision": options.precision,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        make_rows(folder, model, options)
        peak_before = measure_device_peak(options)
        results, has_failed = take_turns(folder, options)
        if results:
            show(results, folder, options, (peak_before, measure_device_peak(options)))
    sys.exit(has_failed)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
