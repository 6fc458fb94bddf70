"""Strategy files made in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from llamafarm.errors import StrategyError
from llamafarm.strategy import places
from llamafarm.strategy.load import LoadedStrategy, load_strategy

Load = Callable[..., LoadedStrategy]
Refuse = Callable[..., StrategyError]


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Write a file `f.yaml` into the working directory and load a strategy of it, `s` unless named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "PRESETS_FOLDER", tmp_path / "presets")

    def load_text(text: str, key: str | None = "s", **overrides: str) -> LoadedStrategy:
        Path("f.yaml").write_text(dedent(text))
        pairs = [(path.replace("__", "."), value) for path, value in overrides.items()]
        return load_strategy(key, file=Path("f.yaml"), overrides=pairs)

    return load_text


@pytest.fixture
def refused(loaded: Load) -> Refuse:
    """Do the same with a file that must be refused, and return the error."""

    def refuse_text(text: str, key: str | None = "s", **overrides: str) -> StrategyError:
        with pytest.raises(StrategyError) as caught:
            loaded(text, key, **overrides)
        error = caught.value
        assert all(part and "\n" not in part for part in (error.problem, error.where, error.remedy))
        return error

    return refuse_text
