"""Defects of a strategy's keys: misspelt, unknown, misplaced, doubled, no text.

Importing this module adds its kinds to `MUTATIONS`; `strategy_mutations.py` says what is expected of each.
"""

from __future__ import annotations

import random

from strategy_mutations import (
    Case,
    Expected,
    is_one_line,
    is_section,
    make_named,
    misspell,
    mutation,
    pick,
    plant,
)
from strategy_seeds import KNOWN_NAMES, LEAVES, SECTIONS, Seed, settle_path, valid_value

from llamafarm.strategy.spelling import MOVED

_FOREIGN = (
    *("adapter_rank", "cutoff_len", "finetuning_type", "lora_rank", "lora_target_linear", "micro_batch_size"),
    *("model_name_or_path", "quantization_bit", "sequence_len", "special_tokens", "val_set_size"),
)
"""Keys of Axolotl and LLaMA-Factory."""


@mutation("misspelt key")
def _misspelt(rng: random.Random, seed: Seed) -> Case | None:
    key = pick(rng, seed, lambda key: bool(key.leaf) or is_section(key))
    if key is None:
        return None
    slip = rng.choice((misspell(rng, key.name), misspell(rng, key.name), key.name.upper(), key.name.title()))
    if slip in KNOWN_NAMES or not slip[:1].isalpha():
        return None
    lines = seed.lines
    lines[key.line] = lines[key.line].replace(key.name, slip, 1)
    return plant(seed, lines, make_named(slip, key.line + 1), key.place)


def _insert_beside(rng: random.Random, seed: Seed, entry: str, expected_name: str) -> Case | None:
    """Insert an entry before or after a one-line key, at its indent."""
    key = pick(rng, seed, lambda key: is_one_line(key) and "- " not in seed.lines[key.line][: key.indent])
    if key is None:
        return None
    at = key.line + rng.randrange(2)
    lines = seed.lines
    lines[at:at] = [" " * key.indent + entry]
    return plant(seed, lines, make_named(expected_name, at + 1))


@mutation("unknown key")
def _unknown(rng: random.Random, seed: Seed) -> Case | None:
    name = "zz_" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz_", k=rng.randrange(1, 30)))
    return _insert_beside(rng, seed, f"{name}: {rng.choice(('1', '', '{a: 1}', '[1]', 'x'))}", name)


@mutation("key of another tool")
def _foreign(rng: random.Random, seed: Seed) -> Case | None:
    name = rng.choice(_FOREIGN)
    return _insert_beside(rng, seed, f"{name}: 1", name)


@mutation("key in the wrong section")
def _misplaced(rng: random.Random, seed: Seed) -> Case | None:
    place = rng.choice(list(LEAVES))
    key = pick(rng, seed, lambda key: key.leaf is not None and is_one_line(key) and len(key.place) > 1)
    if key is None or "- " in seed.lines[key.line][: key.indent]:
        return None
    written = (*key.path[:-1], place[-1])
    if settle_path(written) in LEAVES or settle_path(written) in SECTIONS:
        return None
    lines = seed.lines
    entry = f"{place[-1]}: {valid_value(place[-1], LEAVES[place], rng)}"
    lines[key.line + 1 : key.line + 1] = [" " * key.indent + entry]
    return plant(seed, lines, make_named(place[-1], key.line + 2))


@mutation("key that is a number or a word of YAML")
def _odd_key(rng: random.Random, seed: Seed) -> Case | None:
    name = rng.choice(
        ("1", "2.5", "true", "null", "~", "<<", "2001-01-01", "-1", ".nan", "é", "名前", "'a b'")
    )
    return _insert_beside(rng, seed, f"{name}: {{r: 1}}", name.strip("'"))


@mutation("key that is no text")
def _key_no_text(rng: random.Random, seed: Seed) -> Case | None:
    entry = rng.choice(("? [a, b]\n{}: 1", "[a]: 1", "{{a: 1}}: 2", "&k a: 1", "*k : 1", "? {{a: 1}}"))
    key = pick(rng, seed, lambda key: is_one_line(key) and "- " not in seed.lines[key.line][: key.indent])
    if key is None:
        return None
    lines = seed.lines
    lines[key.line : key.line] = [" " * key.indent + entry.format(" " * key.indent)]
    return plant(seed, lines, Expected(("key",), (key.line + 1,)))


@mutation("key of control characters")
def _control_key(rng: random.Random, seed: Seed) -> Case | None:
    written = rng.choice(('"a\\nb"', '"\\0"', '"\\e[31m"', '"a\\tb"', '"\\u202e"', '""', '" r"'))
    return _insert_beside(rng, seed, f"{written}: 1", "unknown key")


@mutation("key given twice")
def _duplicate(rng: random.Random, seed: Seed) -> Case | None:
    key = pick(rng, seed, lambda key: "- " not in seed.lines[key.line][: key.indent])
    if key is None:
        return None
    siblings = [other for other in seed.keys if other.path[:-1] == key.path[:-1] and other.line >= key.line]
    at = rng.choice(siblings).end
    lines = seed.lines
    lines[at:at] = lines[key.line : key.end]
    return plant(seed, lines, make_named(key.name, at + 1), key.place)


@mutation("setting given under two names")
def _two_names(rng: random.Random, seed: Seed) -> Case | None:
    key = pick(rng, seed, lambda key: is_one_line(key) and key.leaf is not None)
    if key is None:
        return None
    others = [tuple(old.split(".")) for old, new in MOVED.items() if new == ".".join(key.place)]
    others = [path for path in others if path != key.path[-len(path) :] and len(path) == 2]
    homes = {path: pick(rng, seed, lambda key, path=path: key.path[-2:-1] == path[:1]) for path in others}
    found = [(path, home) for path, home in homes.items() if home is not None and home.indent == key.indent]
    if not found:
        return None
    path, home = rng.choice(found)
    lines = seed.lines
    lines[home.line : home.line] = [" " * home.indent + f"{path[-1]}: {key.value}"]
    # Both lines are the defect; the error says both and may put either into its place.
    first = key.line + 1 + (home.line <= key.line)
    return plant(seed, lines, make_named(key.place[-1], home.line + 1, first), key.place)
