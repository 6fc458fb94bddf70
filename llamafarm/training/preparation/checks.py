"""What a strategy needs of this machine, one by one: the list that `setup` prints.

`prepare` has settled everything by then. What is missing is listed here and not raised, so that one look
shows all of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llamafarm.hardware.libraries import Tool, find_tools
from llamafarm.model.hub import ModelSource, hub_cache
from llamafarm.model.load import Base
from llamafarm.strategy.schema import Strategy
from llamafarm.training.preparation.disk import plan_disk_of
from llamafarm.training.preparation.memory import describe_remedy
from llamafarm.training.preparation.prepare import Preparation
from llamafarm.training.record import earlier_run_in

State = Literal["ready", "optional", "warning", "missing"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is needed: whether it is there, what was found, and what to do if it is not."""

    subject: str
    state: State
    finding: str
    remedy: str = ""


def check_preparation(preparation: Preparation, strategy: Strategy) -> list[Check]:
    """Return everything that a prepared run needs of this machine."""
    num_train, num_eval = len(preparation.train_rows), len(preparation.eval_rows)
    source = preparation.source
    on_disk = {preparation.output_dir: plan_disk_of(preparation, strategy).total_bytes}
    if not source.is_local:
        cache = hub_cache(preparation.base.cache_dir)
        on_disk[cache] = on_disk.get(cache, 0) + source.num_bytes
    return [
        Check("data", "ready", f"{num_train} training rows, {num_eval} evaluation rows"),
        check_source(preparation.base, source),
        Check("precision", "ready", f"{preparation.precision.name} on {preparation.device.description}"),
        check_memory(
            preparation.memory.plan.total_bytes,
            preparation.memory.available_bytes,
            describe_remedy(preparation.memory),
        ),
        *check_disk(on_disk),
        check_output_folder(preparation.output_dir),
        *(check_tool(tool, is_wanted=tool.name in _tools_of(strategy)) for tool in find_tools()),
    ]


def check_source(base: Base, source: ModelSource) -> Check:
    """Say where the base model is, how large it is, and under which licence."""
    place = "the package" if base.is_embedded else source.place
    facts = [f"{base.name}: {show_bytes(source.num_bytes)} in {place}"]
    if source.licence:
        facts.append(f"licence {source.licence}")
    if source.is_gated:
        facts.append("gated, and open to this account")
    return Check("base model", "ready", ", ".join(facts))


def check_memory(needed_bytes: int, available_bytes: int, proposal: str) -> Check:
    """Compare the peak that is predicted with what there is; `proposal` says what would fit."""
    finding = f"{show_bytes(needed_bytes)} predicted at the peak, {show_bytes(available_bytes)} to be had"
    if needed_bytes <= available_bytes:
        return Check("memory", "ready", finding)
    return Check("memory", "missing", finding, proposal)


def check_disk(needed_bytes: Mapping[Path, int]) -> list[Check]:
    """Compare what each folder will take with what is free there; folders on one disk share it."""
    needed_on: dict[int, int] = {}
    shown_on: dict[int, list[Path]] = {}
    for folder, num_bytes in needed_bytes.items():
        disk = _existing_parent(folder).stat().st_dev
        needed_on[disk] = needed_on.get(disk, 0) + num_bytes
        shown_on.setdefault(disk, []).append(folder)
    checks = []
    for disk, num_bytes in needed_on.items():
        free = shutil.disk_usage(_existing_parent(shown_on[disk][0])).free
        places = " and ".join(str(folder) for folder in shown_on[disk])
        finding = f"{show_bytes(num_bytes)} needed for {places}, {show_bytes(free)} free"
        is_enough = num_bytes <= free
        remedy = "" if is_enough else "Make room, or choose another training_args.output_dir."
        checks.append(Check("disk", "ready" if is_enough else "missing", finding, remedy))
    return checks


def check_output_folder(folder: Path) -> Check:
    """Say whether the run's folder can be written to, and whether an earlier run is in it."""
    parent = _existing_parent(folder)
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        return Check(
            "output folder",
            "missing",
            f"{parent} cannot be written to",
            "Choose another training_args.output_dir.",
        )
    if taken := earlier_run_in(folder):
        return Check(
            "output folder",
            "warning",
            f"{folder} holds an earlier run ({', '.join(taken)})",
            "train needs --overwrite, or another --output-dir.",
        )
    return Check("output folder", "ready", f"{folder} is free")


def check_tool(tool: Tool, *, is_wanted: bool) -> Check:
    """Say whether an optional tool is there. No training waits for one, so that none is missing."""
    if tool.version is not None:
        return Check(tool.name, "ready", f"{tool.version}: {tool.purpose}")
    if is_wanted:
        return Check(tool.name, "warning", f"not there, and asked for: {tool.purpose}", tool.remedy)
    return Check(tool.name, "optional", f"not there, and not needed here: {tool.purpose}")


def _tools_of(strategy: Strategy) -> set[str]:
    """Return the names of the optional tools that a strategy uses; qlora's was looked for before."""
    app, export = strategy.model_app.type, strategy.export
    wanted = set()
    if export.to_gguf or export.to_ollama or app == "llamacpp":
        wanted.add("xllamacpp")
    if export.to_ollama or app == "ollama":
        wanted.add("Ollama")
    return wanted


def are_met(checks: Iterable[Check]) -> bool:
    """Return whether nothing that is needed is missing."""
    return all(check.state != "missing" for check in checks)


def show_bytes(num_bytes: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 2**10:.0f} KiB"


def _existing_parent(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
