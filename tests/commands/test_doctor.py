"""`doctor`: what is on this machine, for people and as JSON."""

from __future__ import annotations

import json

import pytest

from llamafarm import terminal
from llamafarm.commands.doctor import doctor


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "mode", terminal.Mode())
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")


def test_every_part_is_told_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    said = capsys.readouterr().out
    for part in ("machine", "device CPU", "versions", "tools", "environment"):
        assert f"\n{part}" in said
    assert "CPU-Only Configuration" in said
    assert "GFLOP/s" in said
    assert "hf_secret" not in said


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    doctor(prints_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["environment"]["HF_TOKEN"] == "set"
    assert record["devices"][-1]["device"].startswith("CPU")
    assert record["machine"]["memory_bytes"] > 0
    assert {tool["name"] for tool in record["tools"]} == {"bitsandbytes", "xllamacpp", "Ollama"}
