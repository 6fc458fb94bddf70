"""`report`, through the command line itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llamafarm import terminal
from llamafarm.cli import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "one"
    (folder / "final_model").mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps({"strategy": "s", "result": {"num_steps": 1, "train_loss": 2.0}})
    )
    (folder / "metrics.jsonl").write_text('{"step": 1, "train_loss": 2.0}\n')
    return folder


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run the command line; return its exit code and what is on stdout."""
    monkeypatch.setattr(terminal, "mode", terminal.Mode())
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cli.py", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return call


def test_one_run_gets_its_report_and_its_card(say: Any, run: Path) -> None:
    assert say(run) == (0, f"{run / 'report.html'}\n")
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert (run / "final_model" / "README.md").is_file()


def test_the_report_goes_where_it_is_asked_to(say: Any, run: Path, tmp_path: Path) -> None:
    assert say(run, "--output", tmp_path / "new" / "x.html") == (0, f"{tmp_path / 'new' / 'x.html'}\n")
    assert not (run / "report.html").exists()


def test_several_runs_are_compared_here(say: Any, run: Path, tmp_path: Path) -> None:
    assert say(run, run) == (0, "report.html\n")
    assert "2 runs side by side" in (tmp_path / "report.html").read_text()


def test_json_is_one_object(say: Any, run: Path) -> None:
    code, text = say(run, "--json")
    record = json.loads(text)
    assert (code, record["report"], record["model_card"]) == (
        0,
        str(run / "report.html"),
        str(run / "final_model" / "README.md"),
    )
    assert record["runs"][0]["verdict"] == "not evaluated"


def test_a_folder_that_is_no_run_is_the_users_fault(say: Any, tmp_path: Path) -> None:
    code, text = say(tmp_path, "--json")
    assert (code, json.loads(text)["problem"][:15]) == (2, "there is no run")
