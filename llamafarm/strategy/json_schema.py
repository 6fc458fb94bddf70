"""The shapes that a strategy file may have, as a JSON Schema (draft 2020-12) for editors.

It is made of the models in `sections/` and of the tables of second places and retired keys, as `layout.py`
and `flatten.py` read a file: what it accepts loads, but for what only code can check (two keys that exclude
each other, a key in two places, the placeholders of a template).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llamafarm.strategy.flatten import TOP_LEVEL_ONLY
from llamafarm.strategy.layout import VERSIONS
from llamafarm.strategy.retired import REFUSED, RETIRED, Refused
from llamafarm.strategy.schema import Strategy
from llamafarm.strategy.spelling import MOVED, section_at

Schema = dict[str, Any]

_WRITTEN_BOTH_WAYS = ("export.quantization", "monitoring.log_level")
_STRATEGY_KEY = r"^([A-Za-z0-9]|[^\x00-\x7f])([\w.-]|[^\x00-\x7f]){0,99}$"
"""As `layout.py` has it, for editors in whose expressions only English letters are."""
_COMPONENTS = "What makes up the strategy: the fine-tuner, and what serves the model."
_SHORTHANDS: dict[str, Schema] = {
    "base_model": {"type": "string", "minLength": 1},
    "method": {"enum": ["lora", "qlora", "full_finetune", "auto"]},
}


def strategy_json_schema() -> Schema:
    """Return the schema of a strategy file."""
    sections = _top_level_sections()
    below_config = {key: _ref(key) for key in sections if key not in (*TOP_LEVEL_ONLY, "components")}
    strategy = {
        **{key: _ref(key) for key in sections if key != "components"},
        "extends": _described({"type": ["string", "null"]}, "Strategy or preset to start from."),
        "components": _ref("components"),
    }
    components = sections["components"]
    components["description"] = _COMPONENTS
    components["properties"] = {
        "fine_tuner": _mapping(
            "What trains the model, and its settings.",
            {
                "type": _described({"const": "pytorch"}, "Always pytorch."),
                "config": _mapping("The settings of training.", below_config),
            },
        ),
        "model_app": _ref("model_app"),
        **components["properties"],
    }
    name = {"pattern": _STRATEGY_KEY}
    named = {"type": "object", "propertyNames": name, "additionalProperties": {"$ref": "#/$defs/strategy"}}
    listed = {"allOf": [{"$ref": "#/$defs/strategy"}, {"required": ["name"], "properties": {"name": name}}]}
    version = _described(
        {"enum": [*VERSIONS, *sorted(set(map(float, VERSIONS)))]},
        "Version of the strategy language; may be left out.",
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "LlamaFarm strategies",
        "description": "A file of fine-tuning strategies.",
        "type": "object",
        "if": {"required": ["strategies"]},
        "then": {
            "properties": {
                "version": version,
                "strategies": {"anyOf": [named, {"type": "array", "items": listed}]},
            },
            "additionalProperties": False,
        },
        "else": {**named, "properties": {"version": {"anyOf": [version, {"$ref": "#/$defs/strategy"}]}}},
        "$defs": {
            "strategy": _mapping("What to train, on what, and how.", strategy, may_be_empty=False),
            **{f"section.{key}": section for key, section in sections.items()},
        },
    }


def _ref(key: str) -> Schema:
    return {"$ref": f"#/$defs/section.{key}"}


def _described(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def _mapping(description: str, properties: Schema, *, may_be_empty: bool = True) -> Schema:
    return {
        "type": ["object", "null"] if may_be_empty else "object",
        "description": description,
        "properties": properties,
        "additionalProperties": False,
    }


def _top_level_sections() -> Schema:
    """Return the schema of each key of a strategy, with second places and retired keys among the settings."""
    models = Strategy.model_json_schema()
    root = _section_schema(models, models["$defs"], ())
    for written, target in MOVED.items():
        schema = _find(root, tuple(target.split(".")))
        if section_at(tuple(target.split("."))) is None:
            schema = _described(schema, f"Another name of {target}. {schema['description']}")
            _insert(root, written, schema)
    for path, schema in _retired_schemas():
        _insert(root, path, schema)
    for written, target in MOVED.items():
        if section_at(tuple(target.split("."))) is not None:
            own = _find(root, (written,)) if written in root["properties"] else {"properties": {}}
            whole = _find(root, tuple(target.split(".")))
            root["properties"][written] = {
                **whole,
                "description": f"Another name of {target}.",
                "properties": {**whole["properties"], **own["properties"]},
            }
    for key, short in _SHORTHANDS.items():
        section = root["properties"][key]
        root["properties"][key] = _described({"anyOf": [section, short]}, section["description"])
    return dict(root["properties"])


def _section_schema(schema: Schema, models: Schema, path: tuple[str, ...]) -> Schema:
    properties: Schema = {}
    for name, field in schema["properties"].items():
        if "$ref" in field:
            model = models[field["$ref"].rpartition("/")[2]]
            described = _described(model, field.get("description", model["description"]))
            properties[name] = _section_schema(described, models, (*path, name))
        else:
            properties[name] = _setting_schema(field, ".".join((*path, name)))
    return _mapping(_one_line(schema["description"]), properties)


def _setting_schema(field: Schema, path: str) -> Schema:
    schema = {key: value for key, value in field.items() if key != "title"}
    schema["description"] = _one_line(schema["description"])
    for option in schema.get("anyOf", [schema]):
        words = option.get("enum", [])
        if "no" in words:  # YAML 1.1 editors read an unquoted no as false
            del option["type"]
            option["enum"] = [*words, False]
        elif path in _WRITTEN_BOTH_WAYS:
            option["enum"] = [*words, *(word.upper() for word in words)]
    return schema


def _one_line(description: str) -> str:
    return " ".join(description.split())


def _retired_schemas() -> Iterator[tuple[str, Schema]]:
    for path, why in RETIRED.items():
        yield path, {"description": f"Changes nothing: {why}.", "deprecated": True}
    for path, refused in REFUSED.items():
        schema: Schema = {"enum": _harmless_values(refused), "deprecated": True}
        yield path, _described(schema, f"No place here: {refused.why}. {refused.remedy}")


def _harmless_values(refused: Refused) -> list[Any]:
    off = [] if any(value is True for value in refused.harmless) else [False]
    return [*refused.harmless, *off, None, "", [], {}]


def _find(schema: Schema, path: tuple[str, ...]) -> Schema:
    for name in path:
        schema = schema["properties"][name]
    return schema


def _insert(root: Schema, path: str, schema: Schema) -> None:
    """Put a schema at a dotted path; `*` stands for every key that is not named."""
    *sections, key = path.split(".")
    for name in sections:
        root = root["properties"].setdefault(name, _mapping("Settings that have moved or retired.", {}))
    if key == "*":
        root["additionalProperties"] = schema
    else:
        root["properties"].setdefault(key, schema)
