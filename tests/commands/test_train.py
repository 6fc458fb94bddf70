"""What `train` says at its end."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from llamafarm.commands.train import _finish
from llamafarm.strategy.load import Override, load_strategy
from llamafarm.training.result import RunResult

STRATEGY = 'mine:\n  dataset: {train_file: rows.jsonl}\n  training_args: {output_dir: "out put"}\n'


@pytest.mark.parametrize("is_overridden", [False, True])
def test_the_command_that_it_names_finds_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_overridden: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my strategies.yaml").write_text(STRATEGY)
    overrides = [Override("training_args.output_dir", "else where", "--output-dir")] if is_overridden else []
    loaded = load_strategy("mine", file=Path("my strategies.yaml"), overrides=overrides)
    model = Path(loaded.strategy.training_args.output_dir) / "final_model"
    fields = dict.fromkeys(RunResult.__dataclass_fields__, 1) | {"final_model": model}
    _finish(loaded, RunResult(**fields), None)
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("next: ")]
    words = shlex.split(line)
    if is_overridden:
        assert words[-2:] == ["--model", "else where/final_model"]
    else:
        assert words[-4:] == ["--strategy", "mine", "--strategy-file", "my strategies.yaml"]
