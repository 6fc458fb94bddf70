"""The list that `setup` prints: what is needed, and whether this machine has it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafarm.hardware.libraries import Tool
from llamafarm.model.hub import ModelSource
from llamafarm.model.load import Base
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training.preparation import checks
from llamafarm.training.preparation.checks import (
    are_met,
    check_disk,
    check_memory,
    check_output_folder,
    check_preparation,
    check_source,
    check_tool,
    show_bytes,
)
from llamafarm.training.preparation.prepare import prepare

Load = Callable[..., LoadedStrategy]


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [(0, "0 KiB"), (2**20, "1.0 MiB"), (3 * 2**29, "1.5 GiB"), (2**20 - 1, "1024 KiB")],
)
def test_bytes_are_shown_in_their_unit(num_bytes: int, shown: str) -> None:
    assert show_bytes(num_bytes) == shown


def test_a_gated_model_is_shown_with_its_licence() -> None:
    source = ModelSource("the Hugging Face Hub", 2**30, is_local=False, licence="llama3.2", is_gated=True)
    check = check_source(Base("o/m", "o/m"), source)
    assert check.state == "ready"
    assert (
        check.finding
        == "o/m: 1.0 GiB in the Hugging Face Hub, licence llama3.2, gated, and open to this account"
    )


def test_memory_that_is_short_is_missing_and_has_its_remedy() -> None:
    assert check_memory(2**30, 2**30, "").state == "ready"
    check = check_memory(2**30 + 1, 2**30, "Set hardware.optimization.gradient_checkpointing: true.")
    assert (check.state, check.remedy) == (
        "missing",
        "Set hardware.optimization.gradient_checkpointing: true.",
    )
    assert not are_met([check])


def test_folders_on_one_disk_share_what_is_free(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    run, cache = tmp_path / "not" / "made" / "yet", tmp_path / "cache"
    (ready,) = check_disk({run: free // 4, cache: free // 4})
    assert ready.state == "ready"
    assert str(run) in ready.finding
    assert str(cache) in ready.finding
    (short,) = check_disk({run: free, cache: free})
    assert short.state == "missing"
    assert "Make room" in short.remedy


def test_the_output_folder_is_free_taken_or_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "mine"
    assert check_output_folder(folder).state == "ready"
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("")
    taken = check_output_folder(folder)
    assert (taken.state, "metrics.jsonl" in taken.finding) == ("warning", True)
    assert are_met([taken])
    # root may write everywhere, so that a folder that is closed has to be described.
    monkeypatch.setattr(checks.os, "access", lambda path, mode: False)
    assert check_output_folder(tmp_path / "other").state == "missing"


def test_a_tool_is_there_or_asked_for_or_not_needed() -> None:
    absent = Tool("Ollama", None, "export.to_ollama", "Start the Ollama server.")
    assert check_tool(Tool("Ollama", "0.12", "", ""), is_wanted=True).state == "ready"
    optional, wanted = (check_tool(absent, is_wanted=wants) for wants in (False, True))
    assert (optional.state, optional.remedy) == ("optional", "")
    assert (wanted.state, wanted.remedy) == ("warning", "Start the Ollama server.")
    assert are_met([optional, wanted])


def states(load: Load, rows: list[dict[str, Any]], **settings: Any) -> dict[str, str]:
    loaded = load(rows, **settings)
    return {check.subject: check.state for check in check_preparation(prepare(loaded), loaded.strategy)}


def test_all_that_a_run_needs_is_looked_at(
    load: Load, make_rows: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tuple(Tool(name, None, "", "") for name in ("bitsandbytes", "xllamacpp", "Ollama"))
    monkeypatch.setattr(checks, "find_tools", lambda: tools)
    found = states(load, make_rows(8))
    assert list(found) == [
        "data", "base model", "precision", "memory", "disk", "output folder", "bitsandbytes", "xllamacpp",
        "Ollama",
    ]  # fmt: skip
    assert [found[tool.name] for tool in tools] == ["optional"] * 3
    exported = states(load, make_rows(8), export__to_gguf=True)
    assert [exported[tool.name] for tool in tools] == ["optional", "warning", "optional"]
    exported = states(load, make_rows(8), export__to_ollama=True)
    assert [exported[tool.name] for tool in tools] == ["optional", "warning", "warning"]
    answered = states(load, make_rows(8), model_app__type="ollama")
    assert [answered[tool.name] for tool in tools] == ["optional", "optional", "warning"]


def test_a_disk_that_is_full_and_memory_that_is_short_are_missing(
    load: Load, make_rows: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**10))
    found = states(load, make_rows(8), hardware__memory_gb=0.01)
    assert (found["disk"], found["memory"]) == ("missing", "missing")
