"""The JSON Schema for editors: it takes what loads, refuses what does not, and describes every key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from llamafarm.strategy.document import read_document
from llamafarm.strategy.foreign import TOOLS
from llamafarm.strategy.json_schema import strategy_json_schema
from llamafarm.strategy.places import PRESETS_FOLDER
from llamafarm.strategy.retired import REFUSED, RETIRED
from llamafarm.strategy.schema import Strategy
from llamafarm.strategy.spelling import MOVED, all_paths, section_at

REPOSITORY = Path(__file__).parents[2]
SCHEMA = json.loads(json.dumps(strategy_json_schema()))
SHIPPED = [REPOSITORY / "demos" / "strategies.yaml", *sorted(PRESETS_FOLDER.glob("*.yaml"))]


def find(path: str, start: str = "strategy") -> dict[str, Any]:
    """Return what the schema says of a dotted path in a strategy."""
    schema = SCHEMA["$defs"][start]
    for name in path.split("."):
        schema = resolve(schema)["properties"][name]
    return resolve(schema)


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    # A section that may be written as a single word, or a mapping.
    options = schema.get("anyOf", [])
    return next((option for option in options if "properties" in option), schema)


def every_mapping(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield schema
        for child in schema.values():
            yield from every_mapping(child)
    elif isinstance(schema, list):
        for child in schema:
            yield from every_mapping(child)


@pytest.mark.parametrize("path", [*all_paths(), *MOVED, *RETIRED, *REFUSED])
def test_every_key_is_in_it_with_what_it_does(path: str) -> None:
    if path.endswith(".*"):
        assert "Changes nothing" in find(path[:-2])["additionalProperties"]["description"]
        return
    described = find(path)["description"]
    assert described and "\n" not in described
    assert ("No place here" in described) == (path in REFUSED)
    assert bool(find(path).get("deprecated")) == (path in REFUSED or path in RETIRED)


@pytest.mark.parametrize("key", [key for key in Strategy.model_fields if section_at((key,))])
def test_a_section_may_stand_in_two_places(key: str) -> None:
    if key == "model_app":
        assert find("components.model_app") == find("model_app")
        return
    assert find(f"components.fine_tuner.config.{key}") == find(key)


def test_nothing_else_is_accepted_anywhere() -> None:
    mappings = list(every_mapping(SCHEMA["$defs"]))
    assert len(mappings) > 20
    open_ones = [mapping for mapping in mappings if mapping.get("additionalProperties") is not False]
    assert open_ones == [find("data_preprocessing.augmentation")]
    references = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(SCHEMA)))
    assert references == set(SCHEMA["$defs"])


def test_defaults_are_those_of_the_strategy() -> None:
    assert find("method.r")["default"] == 16
    assert find("training.learning_rate")["default"] == 2e-4
    assert find("training_args.temperature")["default"] == 0.7


@pytest.fixture(scope="module")
def accepts() -> Callable[[object], bool]:
    """Validate with the library that most editors' plugins agree with."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA).is_valid  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_file_is_valid(accepts: Callable[[object], bool], path: Path) -> None:
    assert accepts(read_document(path, "", "").plain())


GOOD = [
    {},
    {"s": {}},
    {"version": "2.0", "strategies": {"s": {"method": "auto"}}},
    {"version": 2.0, "strategies": [{"name": "s", "base_model": "owner/model"}]},
    {"version": {"method": {"r": 3}}, "s": {"extends": "version"}},
    {"s": {"components": {"fine_tuner": {"type": "pytorch", "config": {"method": None}}}}},
    {"s": {"components": {"model_app": {"type": "ollama"}}}},
    {"s": {"optimization": {"mixed_precision": False, "gradient_checkpointing": "auto"}}},
    {"s": {"training": {"batch_size": "auto", "epochs": "5-10", "fp16_backend": "apex"}}},
    {"s": {"training_args": {"eval_strategy": False, "fp16": False, "report_to": "none"}}},
    {"s": {"monitoring": {"report_to": ["wandb", "mlflow"], "project": "Asthma"}}},
    {"s": {"monitoring": {"report_to": None}, "training_args": {"project": "huggingface"}}},
    {"s": {"training_args": {"report_to": ["none"]}}},
    {"s": {"monitoring": {"report_to": "no"}}},
    {"s": {"monitoring": {"report_to": False}}},
    {"s": {"monitoring": {"report_to": []}}},
    {"s": {"export": {"quantization": "Q4_K_M"}, "monitoring": {"log_level": "WARNING"}}},
    {"s": {"method": {"r": "auto", "target_modules": ["q_proj"]}}},
    {"s": {"data_preprocessing": {"augmentation": {"enabled": False, "whatever": 3}}}},
    {"s": {"framework": {"gradient_checkpointing": True, "use_fast_tokenizer": True}}},
    {"größe": {"name": "x"}},
]
BAD = [
    [],
    "text",
    {"s": None},
    {"s": {"learning_rate": 1}},
    {"s": {"method": "dora"}},
    {"s": {"method": {"r": 0}}},
    {"s": {"method": {"r": "many"}}},
    {"s": {"training_args": {"learning_rate": 2}}},
    {"s": {"training_args": {"fp16": True}}},
    {"s": {"training_args": {"report_to": "all"}}},
    {"s": {"monitoring": {"report_to": ["wandb", "none"]}}},
    {"s": {"monitoring": {"report_to": "comet_ml"}}},
    {"s": {"monitoring": {"project": "team/asthma"}}},
    {"s": {"framework": {"use_fast_tokenizer": False}}},
    {"s": {"components": {"cloud_api": {"type": "openai"}}}},
    {"s": {"components": {"fine_tuner": {"type": "llamafactory"}}}},
    {"s": {"components": {"fine_tuner": {"config": {"name": "x"}}}}},
    {"strategies": {}, "s": {}},
    {"strategies": [{"method": {"r": 3}}]},
    {"version": "3.0"},
    {"../s": {}},
]


@pytest.mark.parametrize("content", GOOD, ids=str)
def test_what_loads_is_accepted(
    accepts: Callable[[object], bool], content: dict[str, Any], tmp_path: Path
) -> None:
    assert accepts(content)
    assert faults_in(content, tmp_path) == []


@pytest.mark.parametrize("content", BAD, ids=str)
def test_what_does_not_load_is_refused(
    accepts: Callable[[object], bool], content: dict[str, Any], tmp_path: Path
) -> None:
    assert not accepts(content)
    assert faults_in(content, tmp_path)


def faults_in(content: object, folder: Path) -> list[object]:
    """Return what loading says is wrong; JSON is YAML."""
    from llamafarm.errors import StrategyError
    from llamafarm.strategy.load import find_faults

    (folder / "f.yaml").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    try:
        return [fault for faults in find_faults(file=folder / "f.yaml").values() for fault in faults]
    except StrategyError as error:
        return [error]


def test_editors_offer_no_other_tools_keys() -> None:
    text = json.dumps(SCHEMA)
    assert not [key for key in TOOLS["Axolotl"] if key.startswith("wandb") and f'"{key}"' in text]
