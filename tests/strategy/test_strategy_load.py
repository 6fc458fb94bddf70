"""Finding a strategy, extending it, overriding it, and saying where each setting came from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llamafarm.errors import DataError, StrategyError
from llamafarm.strategy import places
from llamafarm.strategy.document import Node, read_document
from llamafarm.strategy.load import (
    LoadedStrategy,
    Origin,
    Override,
    list_strategies,
    load_strategy,
    resolve_path,
)
from llamafarm.strategy.places import MAX_ANCESTORS
from llamafarm.strategy.schema import Strategy, walk_leaves

Load = Callable[..., LoadedStrategy]
Refuse = Callable[..., StrategyError]

FAMILY = """\
base:
  method:
    r: 4
    target_modules: [q_proj, v_proj]
  training_args:
    learning_rate: 0.001
s:
  extends: base
  training_args:
    weight_decay: 0.01
  components:
    fine_tuner:
      config:
        method:
          target_modules: [o_proj]
"""


def test_extending_merges_mappings_and_replaces_the_rest(loaded: Load) -> None:
    strategy = loaded(FAMILY).strategy
    assert (strategy.method.r, strategy.method.target_modules) == (4, ("o_proj",))
    assert strategy.training_args.learning_rate == 0.001
    assert strategy.training_args.weight_decay == 0.01


def test_every_setting_has_its_origin(loaded: Load) -> None:
    found = loaded(FAMILY, training_args__temperature="0.2")
    leaves = dict(walk_leaves(found.strategy))
    assert set(found.origins) == set(leaves)
    assert len(leaves) > 80
    expected = {
        "method.r": "strategy file f.yaml:3",
        "training_args.learning_rate": "strategy file f.yaml:6",
        "training_args.weight_decay": "strategy file f.yaml:10",
        "method.target_modules": "strategy file f.yaml:15",
        "generation.temperature": "command line --set training_args.temperature",
    }
    for path, origin in found.origins.items():
        assert str(origin) == expected.get(path, "default")
        if origin.kind == "default":
            assert leaves[path] == dict(walk_leaves(Strategy()))[path]


def test_a_later_override_wins_and_an_option_is_named(loaded: Load) -> None:
    loaded("s: {training_args: {num_train_epochs: 4}}")
    found = load_strategy(
        "s",
        file=Path("f.yaml"),
        overrides=[
            ("training_args.num_train_epochs", "5-10"),
            Override("training_args.num_train_epochs", "2", "--epochs"),
            Override("dataset.train_file", "2024", "--train-dataset", is_literal=True),
            ("method.target_modules", "[q_proj, k_proj]"),
            ("prompt_template.system", "Answer: briefly"),
            ("components.fine_tuner.config.method.r", "2"),
        ],
    )
    assert found.strategy.training_args.num_train_epochs == 2
    assert found.origins["training_args.num_train_epochs"] == Origin("command line", "--epochs")
    assert found.strategy.dataset.train_file == "2024"
    assert found.strategy.method.target_modules == ("q_proj", "k_proj")
    assert found.strategy.method.r == 2
    assert found.strategy.prompt_template.system == "Answer: briefly"


@pytest.mark.parametrize("path", ["", ".", "method.", "method..r", "extends"])
def test_an_override_of_nothing_is_refused(loaded: Load, path: str) -> None:
    loaded("s: {name: x}")
    with pytest.raises(StrategyError, match="is not the path of a setting"):
        load_strategy("s", file=Path("f.yaml"), overrides=[(path, "1")])


@pytest.mark.parametrize(("path", "text"), [("name", "\udc80"), ("na\udc80me", "x")])
@pytest.mark.parametrize("is_literal", [True, False])
def test_an_argument_that_is_no_text_is_refused(loaded: Load, path: str, text: str, is_literal: bool) -> None:
    loaded("s: {name: x}")
    with pytest.raises(StrategyError, match="not UTF-8"):
        load_strategy("s", file=Path("f.yaml"), overrides=[Override(path, text, "", is_literal)])


def test_circles_are_refused(refused: Refuse) -> None:
    error = refused("s:\n  extends: t\nt:\n  name: x\n  extends: s\n")
    assert "s -> t -> s" in error.problem
    assert error.where == "f.yaml:5"
    assert "s -> s" in refused("s: {extends: s}").problem


def test_a_chain_of_extends_has_an_end(loaded: Load, refused: Refuse) -> None:
    def chain(num_steps: int) -> str:
        steps = [f"s{number}: {{extends: s{number + 1}}}\n" for number in range(num_steps)]
        return "".join(steps) + f"s{num_steps}: {{name: last}}\n"

    assert loaded(chain(MAX_ANCESTORS), "s0").strategy.name == "last"
    error = refused(chain(MAX_ANCESTORS + 1), "s0")
    assert error.where == "f.yaml:1" and "s0 extends" in error.problem


def test_a_chain_of_extends_reads_its_file_once(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Path] = []

    def read(path: Path, *options: str) -> Node:
        paths.append(path)
        return read_document(path, *options)

    monkeypatch.setattr(places, "read_document", read)
    loaded("s: {extends: t}\nt: {extends: u}\nu: {extends: v}\nv: {name: last}\n")
    assert len(paths) == 1


@pytest.mark.parametrize(
    ("extends", "problem"), [("[a]", "must be the name"), ("bas", "strategy bas, which is not there")]
)
def test_extending_what_is_not_there_is_refused(refused: Refuse, extends: str, problem: str) -> None:
    error = refused(f"base: {{}}\ns:\n  extends: {extends}\n")
    assert problem in error.problem
    assert error.where == "f.yaml:3"


def test_faults_of_a_parent_have_the_parents_line(refused: Refuse) -> None:
    assert refused("base:\n  method: {r: 0}\ns: {extends: base}\n").where == "f.yaml:2"


def test_an_unknown_strategy_names_those_there_are(refused: Refuse) -> None:
    error = refused("demo_one: {}\ndemo_two: {}\n", "demo_on")
    assert error.problem == "there is no strategy demo_on"
    assert error.where == "f.yaml"
    assert error.remedy == "Did you mean demo_one? There are: demo_one, demo_two."
    many = refused("".join(f"s{number}: {{}}\n" for number in range(300)), "demo")
    assert many.remedy.endswith("and 270 more.")


def test_a_single_strategy_needs_no_name(loaded: Load, refused: Refuse) -> None:
    assert loaded("only: {}\n", None).key == "only"
    error = refused("one: {}\ntwo: {}\n", None)
    assert "one, two" in error.problem and "--strategy" in error.remedy


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "package" / "presets"
    folder.mkdir(parents=True)
    monkeypatch.setattr(places, "PRESETS_FOLDER", folder)
    Path("demos").mkdir()
    Path("strategies.yaml").write_text(
        "both: {description: mine}\nchild:\n  extends: gpu\n  method: {r: 3}\n"
    )
    Path("demos/strategies.yaml").write_text("both: {description: demo}\ndemo: {method: {r: 2}}\n")
    (folder / "gpu.yaml").write_text("gpu:\n  name: GPU\n  method:\n    alpha: 7\n")
    return folder


def test_the_places_are_searched_in_order(presets: Path) -> None:
    assert load_strategy("both").strategy.description == "mine"
    demo = load_strategy("demo")
    assert (demo.file, demo.strategy.method.r) == (Path("demos/strategies.yaml"), 2)
    preset = load_strategy("gpu")
    assert preset.file is None
    assert str(preset.origins["method.alpha"]) == "preset presets/gpu.yaml:4"
    with pytest.raises(StrategyError) as caught:
        load_strategy("gpuu")
    assert caught.value.remedy == "Did you mean gpu? There are: both, child, demo, gpu."


def test_a_strategy_may_extend_a_preset(presets: Path) -> None:
    child = load_strategy("child")
    assert (child.strategy.method.alpha, child.strategy.method.r) == (7, 3)
    assert child.origins["method.alpha"].kind == "preset"
    assert child.origins["method.r"] == Origin("strategy file", "strategies.yaml:4")


def test_a_named_file_is_the_only_place(presets: Path) -> None:
    with pytest.raises(StrategyError, match="no strategy gpu"):
        load_strategy("gpu", file=Path("demos/strategies.yaml"))


def test_without_a_name_only_the_first_place_is_looked_at(presets: Path) -> None:
    with pytest.raises(StrategyError, match="not exactly one: both, child"):
        load_strategy(None)
    Path("strategies.yaml").write_text("mine: {}\n")
    assert load_strategy(None).key == "mine"


def test_the_list_shows_the_first_of_a_key(presets: Path) -> None:
    assert [(line.key, line.name, line.description, line.where) for line in list_strategies()] == [
        ("both", "", "mine", "strategies.yaml:1"),
        ("child", "GPU", "", "strategies.yaml:2"),
        ("demo", "", "", "demos/strategies.yaml:2"),
        ("gpu", "GPU", "", "presets/gpu.yaml:1"),
    ]
    assert [line.key for line in list_strategies(Path("demos/strategies.yaml"))] == ["both", "demo"]


def test_nothing_anywhere_is_an_error_too(tmp_path: Path, loaded: Load) -> None:
    with pytest.raises(StrategyError, match="no strategy x"):
        load_strategy("x")
    assert list_strategies() == []


def test_paths_are_tried_in_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    (home / "data").mkdir(parents=True)
    work.mkdir()
    (home / "s.yaml").write_text("s: {dataset: {train_file: data/train.jsonl}}\n")
    monkeypatch.chdir(work)
    override = Override("dataset.train_file", "other.jsonl", "--train-dataset", is_literal=True)
    found = load_strategy("s", file=home / "s.yaml", overrides=[override])

    with pytest.raises(DataError) as caught:
        resolve_path("x.jsonl", found)
    for folder in (work, home, work / "data", home / "data"):
        assert str(folder / "x.jsonl") in caught.value.where

    (home / "data" / "x.jsonl").touch()
    assert resolve_path("x.jsonl", found) == home / "data" / "x.jsonl"
    (home / "x.jsonl").touch()
    assert resolve_path("x.jsonl", found) == home / "x.jsonl"
    (work / "x.jsonl").touch()
    assert resolve_path("x.jsonl", found) == Path("x.jsonl")
    assert resolve_path(str(home / "x.jsonl"), found) == home / "x.jsonl"


@pytest.mark.parametrize("path", ["nul\0", "x" * 5000, "~nobody-here/x", "/absent/file"])
def test_a_path_that_cannot_be_is_a_data_error(loaded: Load, path: str) -> None:
    with pytest.raises(DataError):
        resolve_path(path, loaded("s: {name: x}"))


def test_loading_a_strategy_needs_no_torch() -> None:
    heavy = {"torch", "transformers", "numpy", "rich"}
    code = f"import sys, llamafarm.strategy.load; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
