"""Defects planted into valid strategies, each with what an error must say of it.

A mutation takes a seed of `strategy_seeds.py` and returns a case, or None where the seed has no place for it.
What is expected is settled here and nowhere else:

* a defect of a key or its value is named by that key (or by the anchor, the tag or the strategy that is
  wrong, where that is the defect), with the exact line;
* a defect of the text (a quote, a bracket, a colon, an indent) by its line, give or take one;
* a defect of the whole file, which has no line, by words; one on the command line by key and option;
* `Expected()` expects nothing but an end within seconds and no traceback: several defects at once, noise, and
  what may be valid.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from strategy_seeds import CONFIG, SECTIONS, Key, Leaf, Seed


@dataclass(frozen=True)
class Expected:
    """What an error must say."""

    names: tuple[str, ...] = ()
    """Each in the error's problem."""
    lines: tuple[int, ...] = ()
    """One of them in its place, counted from 1."""
    tolerance: int = 0
    """How many lines beside."""
    option: str = ""
    """What is in its place where no line is: an option of the command line."""

    @property
    def is_single_defect(self) -> bool:
        """Whether anything is expected: a single defect that must be named."""
        return bool(self.names or self.lines)


@dataclass(frozen=True)
class Case:
    """A file with a defect."""

    kind: str
    content: bytes
    strategy: str
    expected: Expected
    setting: tuple[str, ...] = ()
    """The setting that the defect is in, if it is in one."""
    overrides: tuple[tuple[str, str], ...] = ()
    """What `--set` gives, as path and text."""


Mutation = Callable[[random.Random, Seed], Case | None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(kind: str) -> Callable[[Mutation], Mutation]:
    """Register a mutation under the name of its kind."""

    def register(function: Mutation) -> Mutation:
        MUTATIONS[kind] = function
        return function

    return register


def make_case(kind: str, rng: random.Random, seeds: Sequence[Seed]) -> Case:
    """Return a case of a kind, from a seed that has a place for it."""
    while True:
        case = MUTATIONS[kind](rng, rng.choice(seeds))
        if case is not None:
            return replace(case, kind=kind)


def plant(seed: Seed, lines: Sequence[str], expected: Expected, setting: tuple[str, ...] = ()) -> Case:
    """Return a case of changed lines."""
    return Case("", "\n".join(lines).encode(), seed.strategy, expected, setting)


def make_named(name: str, *lines: int) -> Expected:
    """Expect a name and one of the lines exactly; of a long name, its beginning."""
    return Expected((name[:40],), lines)


def misspell(rng: random.Random, word: str) -> str:
    """Return a word with one slip of the hand."""
    place = rng.randrange(len(word))
    return rng.choice(
        (
            word[:place] + word[place + 1 :] or "zzz",
            word[:place] + word[place] + word[place:],
            word[:place] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[place + 1 :],
            word[:place] + word[place : place + 2][::-1] + word[place + 2 :],
        )
    )


def pick(rng: random.Random, seed: Seed, fits: Callable[[Key], bool]) -> Key | None:
    """Return one of the keys that fit, if there is any."""
    fitting = [key for key in seed.keys if fits(key)]
    return rng.choice(fitting) if fitting else None


def is_one_line(key: Key) -> bool:
    """Whether a key stands on one line with its value."""
    return bool(key.value) and key.end == key.line + 1


def is_section(key: Key) -> bool:
    """Whether a key has settings below it."""
    return not key.value and key.end > key.line + 1 and (key.place in SECTIONS or key.path in _FRAME)


_FRAME = {CONFIG[:depth] for depth in (1, 2, 3)}


def _with_value(seed: Seed, key: Key, value: str) -> list[str]:
    """Return the lines with the whole value of a key replaced."""
    lines = seed.lines
    dash = lines[key.line].lstrip()[:2] == "- "
    start = " " * (key.indent - 2 * dash) + "- " * dash
    return [*lines[: key.line], f"{start}{key.name}: {value}", *lines[key.end :]]


def _value_case(rng: random.Random, seed: Seed, values: Callable[[Key, Leaf], Sequence[str]]) -> Case | None:
    """Return a case with one of the wrong values that a setting has by `values`."""
    key = pick(rng, seed, lambda key: key.leaf is not None and bool(values(key, key.leaf)))
    if key is None or key.leaf is None:
        return None
    lines = _with_value(seed, key, rng.choice(values(key, key.leaf)))
    return plant(seed, lines, make_named(key.name, key.line + 1), key.place)


@mutation("value of a wrong type")
def _wrong_type(rng: random.Random, seed: Seed) -> Case | None:
    def values(_: Key, leaf: Leaf) -> list[str]:
        wrong = ["{zzz: 1}", "{}"]
        wrong += [] if "boolean" in leaf.types else ["true"]
        wrong += [] if "array" in leaf.types else ["[zzz]", "[]", "[[1, 2], [3]]"]
        wrong += [] if "string" in leaf.types else ["zzz", "'a text'", "2001-01-01", "1:30", "|\n"]
        wrong += [] if leaf.is_number else ["7", "-0.5", "0x10", "1e3"]
        wrong += ["7.25"] if leaf.types & {"integer", "number"} == {"integer"} else []
        return wrong

    return _value_case(rng, seed, values)


@mutation("number out of range")
def _out_of_range(rng: random.Random, seed: Seed) -> Case | None:
    def values(_: Key, leaf: Leaf) -> list[str]:
        step = 1 if "integer" in leaf.types else 0.5
        below = [
            leaf.minimum - step,
            leaf.minimum - 1e6,
            *([] if leaf.is_minimum_allowed else [leaf.minimum]),
        ]
        above = [leaf.maximum + step, leaf.maximum * 10, *([] if leaf.is_maximum_allowed else [leaf.maximum])]
        numbers = [*(below if leaf.minimum > -1e300 else []), *(above if leaf.maximum < 1e300 else [])]
        return [f"{number:.0f}" if "integer" in leaf.types else str(number) for number in numbers]

    return _value_case(rng, seed, values)


@mutation("number not finite")
def _not_finite(rng: random.Random, seed: Seed) -> Case | None:
    return _value_case(
        rng, seed, lambda _, leaf: [".nan", ".inf", "-.inf", "1e999"] if leaf.is_number else []
    )


@mutation("number of 5,000 digits")
def _many_digits(rng: random.Random, seed: Seed) -> Case | None:
    digits = "".join(rng.choices("123456789", k=5000))
    return _value_case(rng, seed, lambda *_: [digits, f"-{digits}", f"{digits}.{digits}", f"1e{digits}"])


@mutation("quoted number")
def _quoted_number(rng: random.Random, seed: Seed) -> Case | None:
    def values(_: Key, leaf: Leaf) -> list[str]:
        return ['"1"', "'0.5'", '"1e-4"'] if leaf.is_number and not leaf.takes_any_text else []

    return _value_case(rng, seed, values)


@mutation("word that is none of the choices")
def _no_choice(rng: random.Random, seed: Seed) -> Case | None:
    def values(_: Key, leaf: Leaf) -> list[str]:
        if not leaf.words or leaf.takes_any_text:
            return []
        slips = [misspell(rng, word) for word in leaf.words]
        return [word for word in (*slips, "zzz", '""') if word.lower() not in leaf.words]

    return _value_case(rng, seed, values)


@mutation("text that does not fit")
def _no_fit(rng: random.Random, seed: Seed) -> Case | None:
    def values(_: Key, leaf: Leaf) -> list[str]:
        return ['"! a b"', '" "', "x y z"] if leaf.has_pattern else ['""'] if leaf.is_never_empty else []

    return _value_case(rng, seed, values)


@mutation("wrong item in a list")
def _wrong_item(rng: random.Random, seed: Seed) -> Case | None:
    wrong = ["[one, 5]", "[true]", "[[one], two]", "[one, {two: 3}]", "[null]", "[1.5, .nan]"]
    return _value_case(rng, seed, lambda _, leaf: wrong if "array" in leaf.types else [])


@mutation("yes and no for true and false")
def _yaml_1_1(rng: random.Random, seed: Seed) -> Case | None:
    words = ["yes", "no", "on", "off", "Y", "tRUE", '"true"', "1", "0"]
    return _value_case(rng, seed, lambda _, leaf: words if leaf.types <= {"boolean", "null"} else [])


@mutation("null for a setting that needs a value")
def _null(rng: random.Random, seed: Seed) -> Case | None:
    return _value_case(rng, seed, lambda _, leaf: [] if "null" in leaf.types else ["null", "~", ""])


@mutation("anchor on a value")
def _anchor(rng: random.Random, seed: Seed) -> Case | None:
    key = pick(rng, seed, is_one_line)
    if key is None:
        return None
    return plant(
        seed, _with_value(seed, key, f"&here {key.value}"), make_named("&here", key.line + 1), key.place
    )


@mutation("alias for a value")
def _alias(rng: random.Random, seed: Seed) -> Case | None:
    if (key := pick(rng, seed, is_one_line)) is None:
        return None
    return plant(seed, _with_value(seed, key, "*there"), make_named("*there", key.line + 1), key.place)


@mutation("tag on a value")
def _tag(rng: random.Random, seed: Seed) -> Case | None:
    tag = rng.choice(("!!int", "!!float", "!custom", "!!python/object/apply:os.system", "!!binary", "!!set"))
    key = pick(rng, seed, is_one_line)
    if key is None:
        return None
    expected = make_named(tag.strip("!"), key.line + 1)
    return plant(seed, _with_value(seed, key, f"{tag} {key.value}"), expected, key.place)


@mutation("deep nesting")
def _deep(rng: random.Random, seed: Seed) -> Case | None:
    if (key := pick(rng, seed, is_one_line)) is None:
        return None
    depth = rng.choice((40, 500, 5000, 20_000))
    opening, closing = rng.choice((("[", "]"), ("{a: ", "}"), ("[{a: ", "}]")))
    value = opening * depth + (closing * depth if rng.random() < 0.5 else "")
    return plant(seed, _with_value(seed, key, value), make_named(key.name, key.line + 1), key.place)


@mutation("list where a mapping should be")
def _list_for_mapping(rng: random.Random, seed: Seed) -> Case | None:
    if (key := pick(rng, seed, is_section)) is None:
        return None
    values = ("[]", "[a, b]", "[{r: 1}]", "\n" + " " * key.indent + "  - r: 1")
    return plant(seed, _with_value(seed, key, rng.choice(values)), make_named(key.name, key.line + 1))


@mutation("single value where a mapping should be")
def _scalar_for_mapping(rng: random.Random, seed: Seed) -> Case | None:
    # A text below base_model is short for its id.
    if (key := pick(rng, seed, lambda key: is_section(key) and key.name != "base_model")) is None:
        return None
    value = rng.choice(("7", "true", "zzz", "''", ".nan", "|\n" + " " * key.indent + "  text"))
    return plant(seed, _with_value(seed, key, value), make_named(key.name, key.line + 1))


@mutation("null for a section")
def _null_section(rng: random.Random, seed: Seed) -> Case | None:
    if (key := pick(rng, seed, is_section)) is None:
        return None
    return plant(seed, _with_value(seed, key, rng.choice(("", "null", "~", "{}"))), Expected())
