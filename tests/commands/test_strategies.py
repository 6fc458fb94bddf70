"""`strategies list|show|validate|schema`, through the command line itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm import terminal
from llamafarm.cli import main
from llamafarm.strategy.document import Origin, parse_value
from llamafarm.strategy.json_schema import strategy_json_schema
from llamafarm.strategy.load import list_strategies, load_strategy
from llamafarm.strategy.schema import walk_leaves
from llamafarm.strategy.writing import write_value

DEMOS = Path(__file__).parents[2] / "demos" / "strategies.yaml"

FILE = """\
good:
  name: "First: with a colon"
  base_model: owner/model
  hardware: {optimization: {mixed_precision: no}}
  training_args:
    num_train_epochs: 5-10
    learning_rate: 2e-5
    eval_split: 0.1
    fp16_backend: auto
  method: {target_modules: [q_proj, "no"]}
  prompt_template:
    format: "Q: {input}\\nA: {output}"
    stop_sequences: ["\\nUser:", "5", " é\\u2028"]
bare: {}
"""
BROKEN = """\
one:
  method:
    r: 0
    alhpa: 3
two:
  extends: one
  training_args: {learning_rate: 7}
three: {name: fine}
four: {extends: nobody}
"""


@dataclass(frozen=True)
class Spoken:
    code: int
    out: str
    err: str


@pytest.fixture
def speak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Spoken]:
    """Run `strategies ...` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "mode", terminal.Mode())

    def run(*arguments: str) -> Spoken:
        monkeypatch.setattr(sys, "argv", ["cli.py", "strategies", *arguments])
        terminal.console.cache_clear()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return Spoken(int(left.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "f.yaml").write_text(FILE, encoding="utf-8")
    return "f.yaml"


def test_list_names_each_strategy_with_its_place(speak: Callable[..., Spoken]) -> None:
    said = speak("list", "--strategy-file", str(DEMOS))
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    summaries = list_strategies(DEMOS)
    assert len(lines) == len(summaries)
    for line, summary in zip(lines, summaries, strict=True):
        cells = (summary.key, summary.name, summary.where, summary.description)
        assert all(cell and cell in line for cell in cells)
    assert len({line.index("strategies.yaml:") for line in lines}) == 1, "columns are aligned"


def test_list_without_a_file_has_the_presets(speak: Callable[..., Spoken]) -> None:
    record = json.loads(speak("list", "--json").out)
    assert {one["key"] for one in record["strategies"]} >= {"production", "training_cpu_only"}
    assert all(one["where"].startswith("presets/") for one in record["strategies"])


def test_show_has_every_setting_with_its_origin(speak: Callable[..., Spoken], file: str) -> None:
    said = speak("show", "good", "--strategy-file", file, "--set", "method.r=3")
    assert said.code == 0
    rows = {line.split()[0]: line for line in said.out.splitlines()}
    loaded = load_strategy("good", file=Path(file))
    assert list(rows) == [path for path, _ in walk_leaves(loaded.strategy)]
    assert rows["method.r"].split() == ["method.r", "3", "command", "line", "--set", "method.r"]
    assert rows["dataset.eval_split"].split() == ["dataset.eval_split", "0.1", "strategy", "file", "f.yaml:8"]
    assert rows["method.alpha"].split() == ["method.alpha", "32", "default"]
    assert "warning: training_args.fp16_backend (f.yaml:9) changes nothing: PyTorch has one" in said.err


def test_show_as_json_is_one_object(speak: Callable[..., Spoken], file: str) -> None:
    said = speak("show", "good", "--strategy-file", file, "--json")
    assert said.err == ""
    record = json.loads(said.out)
    assert (record["strategy"], record["file"]) == ("good", file)
    assert record["settings"]["training_args"]["num_train_epochs"] == "5-10"
    assert record["origins"]["base_model.huggingface_id"] == "strategy file f.yaml:3"
    assert [one["path"] for one in record["retired"]] == ["training_args.fp16_backend"]


@pytest.mark.parametrize("key", ["good", "bare"])
def test_what_show_writes_loads_to_the_same(speak: Callable[..., Spoken], file: str, key: str) -> None:
    said = speak("show", key, "--strategy-file", file, "--yaml")
    Path("again.yaml").write_text(said.out, encoding="utf-8")
    again, first = load_strategy(None, file=Path("again.yaml")), load_strategy(key, file=Path(file))
    assert again.key == key
    assert again.strategy == first.strategy
    chosen = {path for path, origin in first.origins.items() if origin.kind != "default"}
    assert {path for path, origin in again.origins.items() if origin.kind != "default"} == chosen


@pytest.mark.parametrize("key", [summary.key for summary in list_strategies(DEMOS)])
def test_each_demo_can_be_written_flat(speak: Callable[..., Spoken], key: str) -> None:
    said = speak("show", key, "--strategy-file", str(DEMOS), "--yaml")
    Path("again.yaml").write_text(said.out, encoding="utf-8")
    assert load_strategy(key, file=Path("again.yaml")).strategy == load_strategy(key, file=DEMOS).strategy
    assert "extends" not in said.out and "components" not in said.out


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**17), 10**17),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(["no", "No", "null", "~", "5", "1e3", "0x1f", "a: b", "a #b", "- a", "[a", ".", "", "é"]),
)


@given(st.one_of(SCALARS, st.lists(SCALARS)))
def test_a_value_is_read_as_it_was_written(value: object) -> None:
    assert parse_value(write_value(value), Origin("", "")).plain() == value


@pytest.mark.parametrize("word", ["no", "yes", "on", "Off", "y", "null", "2024", "1e5", "5-10"])
def test_what_older_readers_take_for_something_else_is_quoted(word: str) -> None:
    assert write_value(word) == f'"{word}"'


def test_validate_says_that_all_is_well(speak: Callable[..., Spoken], file: str) -> None:
    said = speak("validate", "--strategy-file", file)
    assert (said.code, said.out, said.err) == (0, "good is valid\nbare is valid\n", "")
    assert speak("validate", "bare", "--strategy-file", file).out == "bare is valid\n"
    record = json.loads(speak("validate", "--strategy-file", file, "--json").out)
    assert record == {"strategies": ["good", "bare"], "faults": []}


def test_validate_tells_every_fault_once_and_exits_with_2(speak: Callable[..., Spoken]) -> None:
    Path("f.yaml").write_text(BROKEN, encoding="utf-8")
    said = speak("validate", "--strategy-file", "f.yaml")
    assert (said.code, said.out) == (2, "")
    problems = [line.removeprefix("error:").strip() for line in said.err.splitlines() if "error:" in line]
    assert problems == [
        "method.r must be at least 1 (got 0)",
        "unknown key method.alhpa",
        "training_args.learning_rate must be less than 1 (got 7)",
        "extends names the strategy nobody, which is not there",
        "3 of 4 strategies cannot be loaded: one, two, four",
    ]
    assert "try:   Did you mean alpha?" in said.err
    assert speak("validate", "three", "--strategy-file", "f.yaml").code == 0


def test_validate_as_json_has_every_fault_of_every_strategy(speak: Callable[..., Spoken]) -> None:
    Path("f.yaml").write_text(BROKEN, encoding="utf-8")
    said = speak("validate", "--strategy-file", "f.yaml", "--json")
    assert (said.code, said.err) == (2, "")
    record = json.loads(said.out)
    assert record["exit_code"] == 2
    assert [(one["strategy"], one["where"]) for one in record["faults"]] == [
        ("one", "f.yaml:3"),
        ("one", "f.yaml:4"),
        ("two", "f.yaml:3"),
        ("two", "f.yaml:4"),
        ("two", "f.yaml:7"),
        ("four", "f.yaml:9"),
    ]
    assert all(one["remedy"] for one in record["faults"])


def test_of_very_many_faults_the_first_are_told(speak: Callable[..., Spoken]) -> None:
    Path("f.yaml").write_text("s:\n" + "".join(f"  key{number}: 1\n" for number in range(2000)))
    record = json.loads(speak("validate", "--strategy-file", "f.yaml", "--json").out)
    assert (len(record["faults"]), record["num_faults"]) == (100, 2000)
    assert "2000 faults, of which the first are told" in record["problem"]


@pytest.mark.parametrize("verb", ["list", "validate"])
def test_a_file_that_is_no_strategy_file_exits_with_2(speak: Callable[..., Spoken], verb: str) -> None:
    Path("f.yaml").write_text("a: [", encoding="utf-8")
    said = speak(verb, "--strategy-file", "f.yaml")
    assert said.code == 2 and "f.yaml:1" in said.err


def test_an_unknown_name_exits_with_2(speak: Callable[..., Spoken]) -> None:
    for verb in ("show", "validate"):
        said = speak(verb, "small_datasets")
        assert said.code == 2 and "Did you mean small_dataset?" in said.err


def test_schema_prints_the_schema_and_nothing_else(speak: Callable[..., Spoken]) -> None:
    said = speak("schema")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out) == json.loads(json.dumps(strategy_json_schema()))
