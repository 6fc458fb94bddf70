"""Defects given on the command line with `--set` over a valid file.

Importing this module adds its kinds to `MUTATIONS`; `strategy_mutations.py` says what is expected of each.
"""

from __future__ import annotations

import random

from strategy_mutations import MUTATIONS, Case, Expected, misspell, mutation
from strategy_seeds import KNOWN_NAMES, LEAVES, Seed

_WRONG_VALUES = (
    "value of a wrong type",
    "number out of range",
    "number not finite",
    "number of 5,000 digits",
    "quoted number",
    "word that is none of the choices",
    "text that does not fit",
    "wrong item in a list",
    "yes and no for true and false",
    "null for a setting that needs a value",
)


def _override(seed: Seed, path: str, text: str, expected: Expected, setting: tuple[str, ...] = ()) -> Case:
    return Case("", seed.text.encode(), seed.strategy, expected, setting, ((path, text),))


@mutation("--set with a wrong value")
def _wrong_value(rng: random.Random, seed: Seed) -> Case | None:
    case = MUTATIONS[rng.choice(_WRONG_VALUES)](rng, seed)
    if case is None:
        return None
    line = case.content.decode().split("\n")[case.expected.lines[0] - 1]
    path, value = ".".join(case.setting), line.partition(":")[2].strip()
    if value == "|":
        return None
    return _override(seed, path, value, Expected((case.setting[-1],), option=f"--set {path}"), case.setting)


@mutation("--set with a misspelt path")
def _wrong_path(rng: random.Random, seed: Seed) -> Case | None:
    setting = list(rng.choice(list(LEAVES)))
    at = rng.randrange(len(setting))
    slip = misspell(rng, setting[at])
    if slip in KNOWN_NAMES or not slip[:1].isalpha():
        return None
    setting[at] = slip
    path = ".".join(setting)
    return _override(seed, path, "1", Expected((slip,), option=f"--set {path}"))


_PIECES = (
    "",
    ".",
    "..",
    "a",
    "method",
    "r",
    "extends",
    "components",
    "name",
    " ",
    "\n",
    "\0",
    "\udce9",
    "[0]",
    "é",
)
_TEXTS = (
    "",
    "1",
    "[",
    "{a: ",
    "*x",
    "&y 1",
    "!!int",
    "# no",
    "\n",
    "\t",
    "\0",
    "\udc80",
    "---",
    "9" * 5000,
    "[" * 900,
)


@mutation("--set with anything")
def _anything(rng: random.Random, seed: Seed) -> Case | None:
    path = ".".join(rng.choices(_PIECES, k=rng.randrange(1, 40)))
    path = rng.choice((path, ".".join(rng.choice(list(LEAVES))), rng.choice(list(LEAVES))[0]))
    return _override(seed, path, "".join(rng.choices(_TEXTS, k=rng.randrange(1, 4))), Expected())
