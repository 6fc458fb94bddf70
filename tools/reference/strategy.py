"""The page of strategy keys: every setting with its type, range, unit, default, effect and cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llamafarm.strategy.schema import Section, Strategy
from llamafarm.strategy.spelling import MOVED, section_at
from tools.reference.markdown import anchor, paragraph

_HEAD = """# Strategy keys

Every setting of a strategy, by its one place. `--set` takes these paths, such as `--set method.r=8`.

In a file the sections may stand under `components.fine_tuner.config`, as the guide has `hardware`, `method`
and `training_args`, or at the strategy's top level; a strategy may begin with `extends: <another>`. Keys of
earlier versions and of other tools are in [other-keys.md](other-keys.md).
"""

_UNITS = {
    "memory_gb": "GB",
    "num_train_epochs": "passes over the rows",
    "per_device_train_batch_size": "rows",
    "per_device_eval_batch_size": "rows",
    "sample_rows": "rows",
    "gradient_accumulation_steps": "micro-batches",
    "eval_accumulation_steps": "batches",
    "save_total_limit": "checkpoints",
    "early_stopping_patience": "evaluations",
    "dataloader_num_workers": "processes",
    "timeout": "seconds",
    "gpu_layers": "layers",
    "num_thread": "threads",
    "num_predict": "tokens",
    "num_ctx": "tokens",
    "top_k": "tokens",
    "max_length": "tokens",
    "max_input_length": "tokens",
    "max_output_length": "tokens",
    "max_new_tokens": "tokens",
    "eval_split": "part of the rows",
    "warmup_ratio": "part of the steps",
    "dropout": "part of the inputs",
    "max_steps": "optimizer steps",
    "warmup_steps": "optimizer steps",
    "eval_steps": "optimizer steps",
    "save_steps": "optimizer steps",
    "logging_steps": "optimizer steps",
}
"""By the key's own name; a number that is not here has none, such as a rank, a rate or a seed."""

WITHOUT_UNIT = {
    "r", "alpha", "seed", "learning_rate", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2",
    "adam_epsilon", "early_stopping_threshold", "temperature", "top_p", "repetition_penalty",
    "repeat_penalty", "loraplus_lr_ratio", "near_duplicate_threshold",
}  # fmt: skip


def write_strategy() -> str:
    """Return the page."""
    parts = [_HEAD, *_top_level()]
    for path in sections():
        parts += _section(path)
    return "\n".join(parts)


def sections(section: type[Section] = Strategy, prefix: str = "") -> list[str]:
    """Return the dotted paths of all sections, each before those in it."""
    found = []
    for name in section.model_fields:
        if (below := section_at((*prefix.split("."), name) if prefix else (name,))) is not None:
            path = f"{prefix}.{name}".lstrip(".")
            found += [path, *sections(below, path)]
    return found


def _top_level() -> Iterator[str]:
    listed = ", ".join(f"[{path}](#{anchor(path)})" for path in sections() if "." not in path)
    yield f"Sections: {listed}.\n"
    for name in Strategy.model_fields:
        if section_at((name,)) is None:
            yield from _setting(Strategy, name, name)


def _section(path: str) -> Iterator[str]:
    section = section_at(tuple(path.split(".")))
    assert section is not None
    yield f"## `{path}`\n"
    yield f"{paragraph(section.__doc__ or '')}\n"
    yield from _also_written(path)
    for name in section.model_fields:
        if section_at((*path.split("."), name)) is None:
            yield from _setting(section, name, f"{path}.{name}")


def _setting(section: type[Section], name: str, path: str) -> Iterator[str]:
    field = section.model_fields[name]
    unit = f" Unit: {_UNITS[name]}." if name in _UNITS else ""
    default = "unset" if field.default is None else f"`{show_value(field.default)}`"
    yield f"### `{path}`\n"
    yield f"{describe_type(_schema_of(section, name))}. Default: {default}.{unit}\n"
    yield f"{paragraph(field.description or '')}\n"
    yield from _also_written(path)


def _also_written(path: str) -> Iterator[str]:
    if others := [f"`{written}`" for written, place in MOVED.items() if place == path]:
        yield f"Also written as {', '.join(others)}.\n"


def numbers() -> list[str]:
    """Return the names of all settings that may be numbers."""
    found = []
    for path in ("", *sections()):
        section = section_at(tuple(path.split("."))) if path else Strategy
        assert section is not None
        for name in section.model_fields:
            if "number" in describe_type(_schema_of(section, name)):
                found.append(name)
    return found


def has_unit(name: str) -> bool:
    """Return whether a key's unit is known here, or that it has none."""
    return name in _UNITS or name in WITHOUT_UNIT


def _schema_of(section: type[Section], name: str) -> dict[str, Any]:
    schema = section.model_json_schema()["properties"][name]
    assert isinstance(schema, dict)
    return schema


def show_value(value: Any) -> str:
    """Return a default as a file would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return '""' if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def describe_type(schema: dict[str, Any]) -> str:
    """Return what a value may be, from its JSON schema: `A whole number, at least 1, or auto`."""
    kinds = [_kind(one) for one in schema.get("anyOf", [schema])]
    text = ", or ".join(kind for kind in kinds if kind)
    return text[:1].upper() + text[1:]


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return ", or ".join(kind for kind in map(_kind, schema["anyOf"]) if kind)
    if "$ref" in schema:
        return "a mapping"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{word}`" for word in schema["enum"])
    kind = schema.get("type")
    if kind == "null":
        return ""
    if kind == "object":
        return f"a mapping of {' and '.join(f'`{name}`' for name in schema['properties'])}"
    if kind == "array" and "anyOf" in schema["items"]:
        return f"a list with entries that are {_kind(schema['items'])}"
    if kind == "array":
        return f"a list of {_kind(schema['items']).removeprefix('a ')}s"
    names = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
    return ", ".join([names[str(kind)], *_limits(schema)])


def _limits(schema: dict[str, Any]) -> Iterator[str]:
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "greater than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    for key, word in words.items():
        if key in schema:
            yield f"{word} {schema[key]:g}" if isinstance(schema[key], float) else f"{word} {schema[key]}"
    if "pattern" in schema:
        yield f"of the form `{schema['pattern']}`"
