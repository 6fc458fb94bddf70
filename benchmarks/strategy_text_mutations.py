"""Defects of the text and of the whole file, which have no key.

Importing this module adds its kinds to `MUTATIONS`; `strategy_mutations.py` says what is expected of each.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from strategy_mutations import MUTATIONS, Case, Expected, mutation, plant
from strategy_seeds import Key, Seed, scan

from llamafarm.strategy.document import MAX_BYTES, MAX_VALUES

SEVERAL = "several defects at once"
LARGE = "large, but not too large to be read"


def _near(line: int) -> Expected:
    return Expected(lines=(line,), tolerance=1)


def _has_dash(seed: Seed, key: Key) -> bool:
    return "- " in seed.lines[key.line][: key.indent]


def _change_line(
    rng: random.Random, seed: Seed, fits: Callable[[Key], bool], change: Callable[[Key, str], str]
) -> Case | None:
    """Return a case with the line of a key changed, to be told by that line or a neighbour."""
    fitting = [key for key in seed.keys if fits(key) and not _has_dash(seed, key)]
    if not fitting:
        return None
    key, lines = rng.choice(fitting), seed.lines
    lines[key.line] = change(key, lines[key.line])
    return None if lines == seed.lines else plant(seed, lines, _near(key.line + 1))


def _is_plain(key: Key) -> bool:
    """Whether a key has a value on its own line that is no block of text."""
    return bool(key.value) and key.value[:1] not in ("|", ">") and key.end == key.line + 1


@mutation("colon missing")
def _no_colon(rng: random.Random, seed: Seed) -> Case | None:
    def change(key: Key, line: str) -> str:
        glued = f"{key.name}:" if key.value and rng.random() < 0.3 else f"{key.name} "
        return line.replace(f"{key.name}: " if key.value else f"{key.name}:", glued, 1)

    return _change_line(rng, seed, lambda key: key.value[:1] not in ("|", ">"), change)


@mutation("quote left open or closed too early")
def _broken_quote(rng: random.Random, seed: Seed) -> Case | None:
    def change(key: Key, line: str) -> str:
        start = line[: key.indent] + f"{key.name}: "
        bare, quote = key.value.strip("'\""), rng.choice("'\"")
        return start + rng.choice((f"{quote}{bare}", f"{quote}{bare}{quote} {bare}", f"[{quote}{bare}, x]"))

    return _change_line(rng, seed, lambda key: _is_plain(key) and key.value.strip("'\"").isalnum(), change)


@mutation("bracket left open, or one too many")
def _broken_bracket(rng: random.Random, seed: Seed) -> Case | None:
    def change(key: Key, line: str) -> str:
        forms = ("[{0}", "[{0}}}", "[{0}]]", "{{{0}: 1", "{{{0}: 1]", "[[{0}]", "[{0}] x", "{{a: {0}}}}}")
        return line[: key.indent] + f"{key.name}: " + rng.choice(forms).format(key.value.strip("[]"))

    return _change_line(rng, seed, _is_plain, change)


@mutation("indented with a tab")
def _tab(rng: random.Random, seed: Seed) -> Case | None:
    def change(key: Key, line: str) -> str:
        tabs = rng.choice(("\t", "\t\t", " " * key.indent + "\t"))
        return tabs + line.lstrip()

    return _change_line(rng, seed, lambda key: key.indent > 0, change)


@mutation("indented wrongly")
def _wrong_indent(rng: random.Random, seed: Seed) -> Case | None:
    def fits(key: Key) -> bool:
        siblings = [other for other in seed.keys if other.path[:-1] == key.path[:-1]]
        return len(siblings) > 1 and (key is not siblings[0] or _is_plain(key))

    def change(key: Key, line: str) -> str:
        return rng.choice((" " + line, "   " + line, line[1:] if key.indent else line))

    return _change_line(rng, seed, fits, change)


@mutation("text of a block not indented")
def _dedented_block(rng: random.Random, seed: Seed) -> Case | None:
    blocks = [key for key in seed.keys if key.value[:1] in ("|", ">") and key.end > key.line + 1]
    if not blocks:
        return None
    key, lines = rng.choice(blocks), seed.lines
    at = rng.randrange(key.line + 1, key.end)
    lines[at] = " " * rng.choice((key.indent, max(0, key.indent - 1))) + lines[at].lstrip()
    return plant(seed, lines, _near(at + 1))


@mutation("character that no text has")
def _control(rng: random.Random, seed: Seed) -> Case | None:
    character = rng.choice("\0\x01\x07\x08\x0b\x0c\x1b\x7f\x80\x9f\ufffe\uffff")
    at, lines = rng.choice(seed.keys).line, seed.lines
    column = rng.randrange(len(lines[at]) + 1)
    lines[at] = lines[at][:column] + character + lines[at][column:]
    return plant(seed, lines, Expected((f"U+{ord(character):04X}",), (at + 1,)))


@mutation("not UTF-8")
def _not_utf8(rng: random.Random, seed: Seed) -> Case | None:
    lines = seed.text.encode().split(b"\n")
    if rng.random() < 0.2:
        return Case("", seed.text.encode("utf-16"), seed.strategy, Expected(("UTF-8",), (1,)))
    at = rng.randrange(len(lines))
    column = rng.randrange(len(lines[at]) + 1)
    wrong = rng.choice((b"\xe9 ", b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80"))
    lines[at] = lines[at][:column] + wrong + lines[at][column:]
    return Case("", b"\n".join(lines), seed.strategy, Expected(("UTF-8",), (at + 1,)))


@mutation("several documents")
def _documents(rng: random.Random, seed: Seed) -> Case | None:
    at, lines = rng.choice(seed.keys).end, seed.lines
    lines[at:at] = rng.choice((["---"], ["---", "more: 1"], ["...", "---"], ["--- # again"]))
    return plant(seed, [*lines, "after: {}"], _near(at + 1))


@mutation("file too large, or nothing in it")
def _size(rng: random.Random, seed: Seed) -> Case | None:
    text, word = rng.choice(
        (
            (seed.text + "# data\n" * MAX_BYTES, "larger"),
            (seed.text * (1 + MAX_BYTES // len(seed.text)), "larger"),
            ("a: [" + "1," * (MAX_VALUES + 1) + "]\n", "more than"),
            ("", "empty"),
            ("\n\n", "empty"),
            ("# a comment\n", "empty"),
            ("---\n", "empty"),
            ("null\n", "empty"),
        )
    )
    return Case("", text.encode(), seed.strategy, Expected((word,)))


@mutation("file of another shape")
def _other_shape(rng: random.Random, seed: Seed) -> Case | None:
    text, name, line = rng.choice(
        (
            ("- a\n- b\n", "mapping", 1),
            ("just a text\n", "mapping", 1),
            ("17\n", "mapping", 1),
            (f"{seed.strategy}:\n  - method\n", seed.strategy, 1),
            (f"# one\n{seed.strategy}: 5\n", seed.strategy, 2),
            (f"{seed.strategy}: {{}}\n../up: {{}}\n", "../up", 2),
            (f"{seed.strategy}: {{}}\n{'n' * 200}: {{}}\n", "nnnn", 2),
            ("method:\n  r: 4\ntraining_args:\n  max_steps: 1\n", "method", 1),
            ("components:\n  fine_tuner: {}\n", "components", 1),
            ("strategies: 5\n", "strategies", 1),
            ("version: 1\nstrategies:\n- name: a\n- method: {r: 1}\n", "no name", 4),
            ("strategies:\n- name: one\n- name: two\n- name: one\n", "one", 4),
            (f"strategies:\n  {seed.strategy}: {{}}\nmodels: {{}}\n", "models", 3),
        )
    )
    return Case("", text.encode(), seed.strategy, Expected((name,), (line,)))


@mutation("extends a circle, itself or nothing")
def _extends(rng: random.Random, seed: Seed) -> Case | None:
    lines, header = seed.lines, f"{seed.strategy}:"
    if header not in lines or any(key.path == ("extends",) for key in seed.keys):
        return None
    at = lines.index(header) + 1
    indent = " " * seed.keys[0].indent
    other = ["other:", "  extends: third", "third:", f"  extends: {seed.strategy}"]
    # One that has a preset's name may extend that preset.
    itself = seed.strategy if seed.strategy.startswith(("strategy_", "fragment")) else "other"
    value, after, word = rng.choice(
        (
            (itself, [] if itself == seed.strategy else other, "circle"),
            ("other", other, "circle"),
            ("third", other[2:], "circle"),
            ("nowhere", [], "nowhere"),
            ("[a, b]", [], "extends"),
            ("7", [], "extends"),
            ("{r: 1}", [], "extends"),
            ("c0", [f"c{number}: {{extends: c{number + 1}}}" for number in range(500)], "extends"),
        )
    )
    lines[at:at] = [f"{indent}extends: {value}"]
    placed = len(lines) + 1
    closing = tuple(range(placed, placed + len(after))) if word == "circle" else ()
    # Any extends of a circle is at fault.
    return plant(seed, [*lines, *after], Expected((word,), (at + 1, *closing)))


@mutation("strategy that is not there")
def _no_strategy(rng: random.Random, seed: Seed) -> Case | None:
    name = rng.choice((seed.strategy + "x", seed.strategy[1:] + "_", "zzz"))
    return Case("", seed.text.encode(), name, Expected((name,)))


@mutation(LARGE)
def _large(rng: random.Random, seed: Seed) -> Case | None:
    half = MAX_VALUES // 2 - 20
    text = rng.choice(
        (
            "s:\n" + "".join(f"  key_{number}: 1\n" for number in range(half)),
            "s:\n  training_args:\n" + "".join(f"    learning_{number}: 1\n" for number in range(half)),
            "s:\n  prompt_template:\n    stop_sequences: [" + "1," * 2 * half + "]\n",
            "s:\n  name: " + "x " * (MAX_BYTES // 2 - 50) + "\n",
            "s:\n  name: " + "x" * (MAX_BYTES - 50) + "\n",
            "s:\n  name: |\n" + "   x\n" * (MAX_BYTES // 5 - 10),
            's:\n  name: "' + "\\n" * (MAX_BYTES // 2 - 50) + '"\n',
            "s: {}\n" + "#\n" * (MAX_BYTES // 2 - 50),
            "".join(f"s{number}: {{}}\n" for number in range(half)),
            "".join(f"s{number}: {{extends: s{number + 1}}}\n" for number in range(half // 2)),
            "s: " + "[" * (MAX_BYTES - 50),
            "s: {a: " + "{b: " * (MAX_BYTES // 5),
            "s: !" + "x" * (MAX_BYTES - 50),
            "? " * (MAX_BYTES // 2 - 50),
            "s: '" + "''" * (MAX_BYTES // 2 - 50),
            "s:\n  dataset: {format: " + "9" * (MAX_BYTES - 50) + "}\n",
            's: {prompt_template: {format: "' + "{input}" * (MAX_BYTES // 8) + '"}}\n',
        )
    )
    return Case("", text.encode(), rng.choice(("s", "s0")), Expected())


@mutation("noise")
def _noise(rng: random.Random, seed: Seed) -> Case | None:
    content = bytearray(seed.text.encode())
    for _ in range(rng.randrange(1, 9)):
        at = rng.randrange(len(content) + 1)
        length = rng.choice((0, 1, 1, 5, 60))
        new = rng.choice(
            (
                b"",
                bytes(rng.choices(b":-?[]{}#&*!|>'\"%@`,\n\t \\", k=rng.randrange(1, 6))),
                rng.randbytes(rng.randrange(1, 4)),
                bytes(content[at : at + 40]),
            )
        )
        content[at : at + length] = new
    return Case("", bytes(content), seed.strategy, Expected())


@mutation(SEVERAL)
def _several(rng: random.Random, seed: Seed) -> Case | None:
    kinds = [kind for kind in MUTATIONS if kind not in (SEVERAL, LARGE)]
    case = None
    for _ in range(rng.randrange(2, 6)):
        made = MUTATIONS[rng.choice(kinds)](rng, seed)
        if made is not None:
            case = made
            seed = scan(made.content.decode("utf-8", "replace"), seed.strategy, seed.depth)
        if not seed.keys:
            break
    return None if case is None else replace(case, expected=Expected())
