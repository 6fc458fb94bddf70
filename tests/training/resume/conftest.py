"""A run of six steps, to be trained, and to die on the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training.result import RunResult
from llamafarm.training.run import run_training
from llamafarm.training.session import Session

Load = Callable[..., LoadedStrategy]
MakeRows = Callable[..., list[dict[str, Any]]]
Train = Callable[..., RunResult]


class Killed(BaseException):
    """The end of a process, as far as one process can act it."""


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the base, to be changed."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def train(load: Load, make_rows: MakeRows, base: Path) -> Train:
    """Train on twelve rows in steps of four, with dropout, six steps, saved after each second one."""

    def train_rows(
        output: str = "run", *, seed: int = 0, resume: str = "auto", overwrite: bool = False, **settings: Any
    ) -> RunResult:
        given = {
            "base_model__huggingface_id": str(base),
            "method__dropout": 0.2,
            "training_args__num_train_epochs": 2,
            "training_args__save_strategy": "steps",
            "training_args__save_steps": 2,
            "training_args__eval_steps": 3,
        }
        loaded = load(make_rows(12, seed), make_rows(3, 9), output=output, **(given | settings))
        return run_training(loaded, resume=resume, overwrite=overwrite)

    return train_rows


@pytest.fixture
def die(train: Train, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Train, and die before the step `before`, with every save on the disk."""

    def die_there(before: int, output: str = "run", **settings: Any) -> None:
        take_step = Session.take_step

        def dying(self: Session, step: int, rows: Any) -> Any:
            if step == before:
                raise Killed
            return take_step(self, step, rows)

        with monkeypatch.context() as patch:
            patch.setattr(Session, "take_step", dying)
            with pytest.raises(Killed):
                train(output, **settings)

    return die_there
