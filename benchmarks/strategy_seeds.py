"""Valid strategies to break: the guide's, the demos', the presets', and random ones made from the schema.

`strategy_mutations.py` plants a defect in one and knows where; `strategy_fuzz.py` judges what is said of it.
What a setting takes is read from the JSON schema, so that a new setting is mutated without a word here.
"""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamafarm.errors import LlamaFarmError
from llamafarm.strategy.load import load_strategy
from llamafarm.strategy.schema import Strategy
from llamafarm.strategy.spelling import MOVED

ROOT = Path(__file__).parent.parent
CONFIG = ("components", "fine_tuner", "config")
TOP_LEVEL_ONLY = ("name", "description", "model_app")
INFINITE = float("inf")


@dataclass(frozen=True)
class Leaf:
    """What a setting takes, by its JSON schema."""

    types: frozenset[str]
    words: tuple[str, ...] = ()
    """The only texts that it takes, if `takes_any_text` is false."""
    takes_any_text: bool = False
    has_pattern: bool = False
    is_never_empty: bool = False
    """Of a text or a list."""
    minimum: float = -INFINITE
    is_minimum_allowed: bool = True
    maximum: float = INFINITE
    is_maximum_allowed: bool = True

    @property
    def is_number(self) -> bool:
        """Whether it takes a number of any kind."""
        return bool(self.types & {"integer", "number"})


def _read_leaf(schema: Mapping[str, Any]) -> Leaf:
    options = schema.get("anyOf", [schema])
    texts = [option for option in options if option.get("type") == "string" or "const" in option]
    words = [word for text in texts for word in text.get("enum", [text["const"]] if "const" in text else [])]
    free = [text for text in texts if not {"enum", "const"} & set(text)]
    number: Mapping[str, Any] = next((o for o in options if o.get("type") in ("integer", "number")), {})
    return Leaf(
        types=frozenset("string" if "const" in option else option["type"] for option in options),
        words=tuple(words),
        takes_any_text=any("pattern" not in text for text in free),
        has_pattern=any("pattern" in text for text in free),
        is_never_empty=any(option.get("minLength") or option.get("minItems") for option in options),
        minimum=number.get("minimum", number.get("exclusiveMinimum", -INFINITE)),
        is_minimum_allowed="exclusiveMinimum" not in number,
        maximum=number.get("maximum", number.get("exclusiveMaximum", INFINITE)),
        is_maximum_allowed="exclusiveMaximum" not in number,
    )


def _read_leaves() -> dict[tuple[str, ...], Leaf]:
    root = Strategy.model_json_schema()

    def walk(schema: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Leaf]]:
        for name, child in schema["properties"].items():
            if "$ref" in child:
                yield from walk(root["$defs"][child["$ref"].rpartition("/")[2]], (*path, name))
            else:
                yield (*path, name), _read_leaf(child)

    return dict(walk(root, ()))


LEAVES = _read_leaves()
SECTIONS = {path[:depth] for path in LEAVES for depth in range(1, len(path))}
_MOVED = {tuple(written.split(".")): tuple(place.split(".")) for written, place in MOVED.items()}

KNOWN_NAMES = {
    *(name for path in LEAVES for name in path),
    *(name for written in MOVED for name in written.split(".")),
    *CONFIG,
    *("extends", "strategies", "version"),
}
"""What no slip of the hand may happen to be."""


def settle_path(written: tuple[str, ...]) -> tuple[str, ...]:
    """Return the place in the schema of a key such as `components.fine_tuner.config.method.r`."""
    path = written[3:] if written[:3] == CONFIG else written
    for depth in range(len(path), 0, -1):
        if path[:depth] in _MOVED:
            return (*_MOVED[path[:depth]], *path[depth:])
    return path[1:] if path[:1] == CONFIG[:1] else path


@dataclass(frozen=True)
class Key:
    """A key as it stands in a text."""

    path: tuple[str, ...]
    """From the strategy down, as it is written."""
    line: int
    """Counted from 0."""
    end: int
    """The line after the last of its block."""
    indent: int
    value: str
    """What follows the colon, without its comment; empty above a section."""

    @property
    def name(self) -> str:
        """The key itself."""
        return self.path[-1]

    @property
    def place(self) -> tuple[str, ...]:
        """Where the schema has it."""
        return settle_path(self.path)

    @property
    def leaf(self) -> Leaf | None:
        """What the schema says of it, if it is a setting."""
        return LEAVES.get(self.place)


@dataclass(frozen=True)
class Seed:
    """A text that holds a valid strategy, and the keys of that strategy."""

    text: str
    strategy: str
    keys: tuple[Key, ...] = field(repr=False)
    depth: int = 1
    """How many keys lead to the strategy's first one."""

    @property
    def lines(self) -> list[str]:
        """A fresh list of its lines."""
        return self.text.split("\n")


_KEY = re.compile(r"^( *)(- )?([A-Za-z_][\w.-]*):(?:\s+(.*))?$")
_COMMENT = re.compile(r"(^|\s+)#.*$")


def scan(text: str, strategy: str, depth: int = 1) -> Seed:
    """Find the keys of a strategy in block style; `depth` keys lead to its first one."""
    lines = text.split("\n")
    found: list[tuple[tuple[str, ...], int, int, str]] = []
    above: list[tuple[int, str]] = []
    block_indent = -1
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if block_indent >= 0 and (not line.strip() or indent > block_indent):
            continue
        block_indent = -1
        match = _KEY.match(line)
        if match is None:
            continue
        indent = len(match[1] + (match[2] or ""))
        above = [(column, name) for column, name in above if column < indent] + [(indent, match[3])]
        value = match[4] or ""
        value = value if "'" in value or '"' in value else _COMMENT.sub("", value)
        block_indent = indent if value[:1] in ("|", ">") else -1
        found.append((tuple(name for _, name in above), number, indent, value.strip()))
    keys = []
    is_listed = depth == 1 and strategy not in {path[0] for path, *_ in found}
    for index, (path, number, indent, value) in enumerate(found):
        if len(path) <= depth or not (is_listed or path[depth - 1] == strategy):
            continue
        end = next((other[1] for other in found[index + 1 :] if other[2] <= indent), len(lines))
        while not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#"):
            end -= 1
        keys.append(Key(path[depth:], number, end, indent, value))
    return Seed(text, strategy, tuple(keys), depth)


def valid_value(name: str, leaf: Leaf, rng: random.Random) -> str:
    """Return a value that the setting takes, as it is written."""
    if name == "format":
        return "auto" if leaf.words else '"Q: {input}\\nA: {output}"'
    if name == "trust_remote_code":
        return "false"
    if name == "use_fast_tokenizer" or leaf.types == {"boolean"} or "boolean" in leaf.types:
        return "true" if name == "use_fast_tokenizer" else rng.choice(("true", "false"))
    if leaf.is_number:
        low = max(leaf.minimum, 0.0)
        if "integer" in leaf.types:
            return str(int(low) + rng.randrange(1, 100))
        return f"{low + (min(leaf.maximum, low + 2) - low) * rng.uniform(0.05, 0.9):.4f}"
    if leaf.words:
        return rng.choice(leaf.words)
    if "array" in leaf.types:
        return rng.choice(("[q_proj, v_proj]", '["###", "User:"]', "[one]"))
    fitting = {"base_url": "http://127.0.0.1:11434", "model_name": "medical-1"}
    return fitting.get(name, f"text-{rng.randrange(99)}")


def write_strategy(rng: random.Random) -> tuple[str, str, int]:
    """Return a random strategy as text, its name, and the depth of its first key."""
    chosen = [path for path in LEAVES if rng.random() < 0.35]
    tree: dict[str, Any] = {}
    uses_config = rng.random() < 0.6
    in_config = {
        path[0]: uses_config and rng.random() < 0.8 for path in LEAVES if path[0] not in TOP_LEVEL_ONLY
    }
    for place in chosen:
        path = place
        spellings = [written for written, settled in _MOVED.items() if settled == place]
        if spellings and rng.random() < 0.3:
            path = rng.choice(spellings)
        if in_config.get(path[0]):
            path = (*CONFIG, *path)
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = valid_value(place[-1], LEAVES[place], rng)
    strategy = f"strategy_{rng.randrange(100)}"
    form = rng.choice(("top", "top", "mapping", "list"))
    if form == "list":
        tree = {"name": strategy} | {name: child for name, child in tree.items() if name != "name"}
        text = "strategies:\n" + "\n".join(_write(tree, 4, rng)).replace("    ", "  - ", 1)
        return text + "\n", strategy, 1
    depth = 1 if form == "top" else 2
    lines = [*["strategies:"][: depth - 1], "  " * (depth - 1) + f"{strategy}:"]
    lines += _write(tree or {"name": "x"}, 2 * depth, rng)
    return "\n".join(lines) + "\n", strategy, depth


def _write(tree: Mapping[str, Any], indent: int, rng: random.Random) -> list[str]:
    lines = []
    for number, (name, value) in enumerate(tree.items()):
        if number and rng.random() < 0.1:
            lines += rng.choice(([""], [" " * indent + "# what follows is chosen by chance"]))
        if isinstance(value, dict):
            lines += [" " * indent + f"{name}:", *_write(value, indent + 2, rng)]
        else:
            lines.append(" " * indent + f"{name}: {value}" + "  # by chance" * (rng.random() < 0.1))
    return lines


def _is_valid(seed: Seed, folder: Path) -> bool:
    file = folder / "seed.yaml"
    file.write_text(seed.text, encoding="utf-8")
    try:
        load_strategy(seed.strategy, file=file)
    except LlamaFarmError:
        return False
    return True


def written_seeds() -> list[Seed]:
    """Return the strategies of the guide, its fragments each in a strategy, the demos and the presets."""
    guide = (ROOT / "tests" / "guide" / "pytorch-fine-tuning-guide.md").read_text(encoding="utf-8")
    seeds = []
    for block in re.findall(r"^```yaml\n(.*?)^```", guide, re.MULTILINE | re.DOTALL):
        first = block.split(":", 1)[0]
        is_fragment = (first,) in SECTIONS or (first,) in _MOVED
        if is_fragment:
            block = "fragment:\n" + re.sub(r"^(?=.*\S)", "  ", block, flags=re.MULTILINE)
        seeds.append(scan(block, "fragment" if is_fragment else first))
    files = [ROOT / "demos" / "strategies.yaml", *(ROOT / "llamafarm/strategy/presets").glob("*.yaml")]
    for file in files:
        text = file.read_text(encoding="utf-8")
        for block in re.findall(r"^[\w.-]+:\n(?:(?:[ #].*)?\n)*", text, re.MULTILINE):
            name = block.partition(":")[0]
            # Cut out, which loads faster, unless it needs the rest of its file; a preset's name does not.
            needs_file = "extends:" in block and f"extends: {name}" not in block
            seeds.append(scan(text if needs_file else block, name))
    return seeds


def make_seeds(rng: random.Random, num_random: int) -> Sequence[Seed]:
    """Return all written seeds and as many random ones; each loads."""
    with tempfile.TemporaryDirectory() as folder:
        written = [seed for seed in written_seeds() if _is_valid(seed, Path(folder))]
        made: list[Seed] = []
        while len(made) < num_random:
            seed = scan(*write_strategy(rng))
            if seed.keys and _is_valid(seed, Path(folder)):
                made.append(seed)
    return [*written, *made]
