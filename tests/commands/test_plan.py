"""`plan`: memory, packs, time and disk of a run, and what to change; nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafarm import terminal
from llamafarm.commands.plan import plan
from llamafarm.errors import MachineError
from llamafarm.training import probe
from llamafarm.training.preparation import memory

MIB = 2**20


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "mode", terminal.Mode())
    # What this process holds grows from test to test; and its allocator stays as it is.
    monkeypatch.setattr(memory, "resident_memory_bytes", lambda: 300 * MIB)
    monkeypatch.setattr(probe, "return_freed_memory", lambda: True)


@pytest.fixture
def strategy_file(tmp_path: Path, tiny_base: Path) -> Path:
    rows = [{"instruction": f"What is {number}?", "output": f"It is {number}."} for number in range(12)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    strategy = {
        "base_model": {"huggingface_id": str(tiny_base)},
        "method": {"type": "lora", "r": 64, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"},
        "training_args": {"output_dir": str(tmp_path / "run"), "num_train_epochs": 2},
        "hardware": {"device": "cpu", "optimization": {"mixed_precision": "no"}},
        "dataset": {"train_file": str(data)},
        "prompt_template": {"format": "Question: {input}\nAnswer: {output}"},
    }
    path = tmp_path / "strategies.yaml"
    path.write_text(json.dumps({"s": strategy}), encoding="utf-8")
    return path


@pytest.fixture
def record_of(strategy_file: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(**options: Any) -> dict[str, Any]:
        try:
            plan(strategy_file=strategy_file, prints_json=True, **options)
        except MachineError as error:
            return error.as_record()
        record: dict[str, Any] = json.loads(capsys.readouterr().out)
        return record

    return run


def test_the_plan_as_json(record_of: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    record = record_of(settings=["hardware.memory_gb=4"])
    parts = record["memory"]["parts_bytes"]
    assert sum(parts.values()) == record["memory"]["total_bytes"]
    assert record["memory"]["available_bytes"] == 4 * 2**30
    assert record["memory"]["fits"] and record["proposal"] is None and record["probe"] is None
    assert (record["num_rows"], record["rows_per_step"], record["num_steps"]) == (12, 4, 6)
    assert (record["pack_tokens"], record["checkpointed_blocks"]) == (2048, 0)
    assert record["seconds"] > 0 and record["flops"] > 0
    assert record["disk_bytes"]["total"] == sum(
        record["disk_bytes"][part] for part in ("checkpoints", "final_model", "export")
    )
    assert sorted(tmp_path.rglob("*")) == before, "plan writes nothing"


def test_the_plan_for_people(strategy_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(strategy_file=strategy_file)
    said = capsys.readouterr().out
    for word in ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "in all"):
        assert f"\n  {word} " in said
    assert "it fits" in said
    assert "6 of 4 rows" in said
    assert "GFLOP/s of a matrix product" in said


def test_a_probe_takes_real_steps_and_measures_them(
    record_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    record = record_of(probes=True)
    assert record["probe"]["num_steps"] == 3
    assert record["probe"]["tokens_per_second"] > 0
    assert record["probe"]["peak_memory_bytes"] > 100 * MIB
    assert record["time_basis"] == "a probe of 3 steps"
    assert record["seconds"] == pytest.approx(record["flops"] / record["probe"]["flops_per_second"])
    assert sorted(tmp_path.rglob("*")) == before


def test_what_would_make_it_fit_is_proposed(
    record_of: Callable[..., dict[str, Any]], strategy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # One step sees all rows; what is needed at least leaves no room for the activations of a whole layer.
    fixed = ["hardware.optimization.gradient_checkpointing=false"]
    least = record_of(settings=[*fixed, "hardware.memory_gb=0.01"])["memory"]["total_bytes"]
    gb = (least - 1000) / 2**30
    record = record_of(settings=[*fixed, f"hardware.memory_gb={gb}"], probes=True)
    assert not record["memory"]["fits"] and record["probe"] is None
    assert record["proposal"]["missing_bytes"] == 0
    (change,) = record["proposal"]["changes"]
    assert change["saved_bytes"] >= 1000
    with pytest.raises(MachineError, match=f"Set {change['setting']}: {change['value']}"):
        plan(strategy_file=strategy_file, settings=[*fixed, f"hardware.memory_gb={gb}"])
    said = capsys.readouterr().out
    assert "it does not fit" in said
    assert f"{change['setting']}: {change['value']}" in said


@pytest.mark.parametrize(
    ("spare_mib", "remedy"),
    [(-1, "Find more memory: Python and its libraries alone take"), (1, "Use a smaller base model")],
)
def test_a_run_that_no_change_makes_fit_says_what_is_missing(
    record_of: Callable[..., dict[str, Any]], spare_mib: int, remedy: str
) -> None:
    process = record_of(settings=["hardware.memory_gb=0.01"])["memory"]["parts_bytes"]["process"]
    record = record_of(settings=[f"hardware.memory_gb={(process + spare_mib * MIB) / 2**30}"])
    assert record["exit_code"] == 3
    assert not record["memory"]["fits"]
    assert remedy in record["remedy"]
