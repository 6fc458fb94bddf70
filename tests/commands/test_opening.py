"""Which model a verb means, and with which settings it answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafarm.commands.opening import open_model
from llamafarm.errors import InputError
from llamafarm.inference.generate import GenerationSettings


@pytest.fixture
def strategy_file(tmp_path: Path, tiny_base: Path) -> Path:
    """A strategy that names the tiny base, and a template of its own."""
    strategy = {
        "base_model": {"huggingface_id": str(tiny_base)},
        "hardware": {"device": "cpu"},
        "prompt_template": {"format": "Q: {input}\nA: {output}"},
    }
    path = tmp_path / "strategies.yaml"
    path.write_text(json.dumps({"s": strategy}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("setting", "value", "field"),
    [
        ("generation.max_new_tokens", 7, "max_new_tokens"),
        ("generation.temperature", 0.25, "temperature"),
        ("generation.top_p", 0.5, "top_p"),
        ("generation.top_k", 3, "top_k"),
        ("generation.repetition_penalty", 1.3, "repetition_penalty"),
        ("prompt_template.stop_sequences", ("###",), "stop_sequences"),
    ],
)
def test_a_strategys_generation_settings_are_those_of_the_answers(
    strategy_file: Path, setting: str, value: Any, field: str
) -> None:
    text = json.dumps(list(value) if isinstance(value, tuple) else value)
    opened = open_model(None, "s", strategy_file, [f"{setting}={text}"], uses_base=True)
    unset = open_model(None, "s", strategy_file, None, uses_base=True)
    assert isinstance(opened.settings, GenerationSettings)
    assert getattr(opened.settings, field) == value != getattr(unset.settings, field)


def test_what_a_folder_decides_cannot_be_set_beside_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_model(tmp_path, None, None, ["generation.top_k=1"], uses_base=False)
    assert caught.value.where == "--set"


def test_cache_dir_is_where_a_model_from_the_hub_is_looked_for(
    strategy_file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "cache" / "models--owner--tiny" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny_base, target_is_directory=True)
    refs = tmp_path / "cache" / "models--owner--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    named = ["base_model.huggingface_id=owner/tiny"]
    with pytest.raises(InputError, match="owner/tiny"):
        open_model(None, "s", strategy_file, named, uses_base=True)
    opened = open_model(
        None, "s", strategy_file, [*named, f"base_model.cache_dir={tmp_path / 'cache'}"], uses_base=True
    )
    assert opened.base_name == "owner/tiny"
