"""The strategies that come with the repository and with the package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from llamafarm.strategy.load import find_faults, list_strategies, load_strategy
from llamafarm.strategy.places import PRESETS_FOLDER

DEMOS = Path(__file__).parents[2] / "demos" / "strategies.yaml"

PRESETS = {"demo3_training_optimized", "demo3_finetuned_model", "demo_minimal", "demo_production"}
PRESETS |= {"training_cuda_datacenter", "training_cuda_consumer", "training_mps_apple", "training_cpu_only"}
PRESETS |= {"quick_experiment", "production", "small_dataset", "large_dataset"}
PRESETS |= {"domain_adaptation", "conversational"}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where there is no strategy file, so that presets are what is found."""
    monkeypatch.chdir(tmp_path)


def test_all_demos_load_and_say_how_they_are_run() -> None:
    text = DEMOS.read_text()
    keys = {summary.key for summary in list_strategies(DEMOS)}
    assert keys == PRESETS | {"demo3_training"}
    assert find_faults(file=DEMOS) == {key: [] for key in keys}
    for key in keys:
        found = load_strategy(key, file=DEMOS)
        assert found.strategy.name and found.strategy.description
        assert found.strategy.dataset.train_file
        assert not found.retired
        assert re.search(
            rf"# .*\n(#.*\n)*#.*--strategy {key} (#.*|.*)\n(#.*\n)*# Use it .*\n(# .*\n)*{key}:", text
        )


def test_all_presets_load_and_say_how_they_are_run(elsewhere: None) -> None:
    text = "".join(path.read_text() for path in sorted(PRESETS_FOLDER.glob("*.yaml")))
    assert {summary.key for summary in list_strategies()} == PRESETS
    for key in PRESETS:
        found = load_strategy(key)
        assert found.file is None
        assert found.strategy.name and found.strategy.description
        assert re.search(
            rf"# .*\n(#.*\n)*#.*--strategy {key}\b.*\n(#.*\n)*# Use it .*\n(# .*\n)*{key}:", text
        )


@pytest.mark.parametrize("key", sorted(PRESETS))
def test_a_demo_is_the_preset_with_data(elsewhere: None, key: str) -> None:
    demo, preset = load_strategy(key, file=DEMOS).strategy, load_strategy(key).strategy
    same = {"dataset": preset.dataset}
    if key == "demo_production":
        same["prompt_template"] = preset.prompt_template  # type: ignore[assignment]
    assert demo.model_copy(update=same) == preset


def test_presets_need_no_more_than_data(elsewhere: None) -> None:
    """Each that evaluates has rows to set aside, so that --train-dataset is all it takes."""
    for key in PRESETS:
        strategy = load_strategy(key, overrides=[("dataset.train_file", "rows.jsonl")]).strategy
        if strategy.training_args.eval_strategy not in (None, "no"):
            assert strategy.dataset.eval_split or strategy.dataset.eval_file


def test_presets_are_in_the_wheel() -> None:
    packages = tomllib.loads((DEMOS.parents[1] / "pyproject.toml").read_text())
    assert packages["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["llamafarm"]}
    ignored = (DEMOS.parents[1] / ".gitignore").read_text()
    assert ".yaml" not in ignored and "presets" not in ignored  # hatchling leaves out what git ignores


def test_the_guides_demonstration() -> None:
    strategy = load_strategy("demo3_training_optimized", file=DEMOS).strategy
    assert strategy.base_model.huggingface_id is None
    assert (strategy.method.r, strategy.method.alpha) == (4, 8)
    assert strategy.training_args.gradient_accumulation_steps == 4
    assert strategy.training_args.learning_rate == 5e-5
    assert strategy.export.model_name == "medical-llama3.2-optimized"


def test_the_finetuned_model_is_the_one_that_was_trained() -> None:
    trained = load_strategy("demo3_training_optimized", file=DEMOS).strategy
    used = load_strategy("demo3_finetuned_model", file=DEMOS).strategy
    assert used.name != trained.name
    same = trained.model_copy(update={"name": used.name, "description": used.description})
    assert used == same


def test_the_shortest_demo_neither_evaluates_nor_saves() -> None:
    arguments = load_strategy("demo_minimal", file=DEMOS).strategy.training_args
    assert (arguments.eval_strategy, arguments.save_strategy) == ("no", "no")
    assert arguments.num_train_epochs == 1
