"""Every command, YAML key, table row, checklist item, sign and variable of the guide has its answer.

The items are taken from the guide, the answers stand in guide_answers.yaml.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ruamel.yaml import YAML

from llamafarm.strategy.document import parse_document
from llamafarm.strategy.spelling import MOVED, section_at

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "tests" / "guide" / "pytorch-fine-tuning-guide.md").read_text(encoding="utf-8")
ANSWERS: dict[str, dict[str, Any]] = YAML(typ="safe").load(Path(__file__).with_name("guide_answers.yaml"))

LATER = {"later: watching and report", "later: reliability"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.M | re.S)


def commands() -> list[str]:
    """Return the command lines as they are typed, each on one line, without comments."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    found = [" ".join(line.split()) for line in lines if line and not line.startswith(("#", "export "))]
    assert all(shlex.split(line)[0] in ("uv", "python") for line in found)
    return found


def variables() -> list[str]:
    return re.findall(r"^export (\w+)=", "\n".join(blocks("bash")), re.M)


def keys() -> set[str]:
    """Return the dotted paths of the settings in all YAML blocks, each in its one place."""
    return {path for block in blocks("yaml") for path in leaves(parse_document(block, "guide", "").plain())}


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        is_strategy = not prefix and isinstance(value, dict) and "components" in value
        path = "" if is_strategy else place_of(prefix + key)
        if isinstance(value, dict):
            yield from leaves(value, f"{path}." if path else "")
        elif section_at(tuple(path.split("."))) is None:  # else a heading with nothing below it
            yield path


def place_of(path: str) -> str:
    for heading in ("components.fine_tuner.config.", "components.model_app"):
        if path.startswith(heading):
            path = path.removeprefix("components.fine_tuner.config.").removeprefix("components.")
    return MOVED.get(path, path)


def rows() -> dict[str, list[str]]:
    """Return the first cell of every row of every table, by the heading above it."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in GUIDE.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            found.setdefault(heading, []).append(line.split("|")[1].strip())
    return {title: cells[2:] for title, cells in found.items()}


def checklist() -> list[str]:
    return re.findall(r"^- \[ \] (.+)$", GUIDE, re.M)


def overfitting_signs() -> list[str]:
    section = GUIDE.partition("### Overfitting Indicators\n")[2].partition("\n#")[0]
    return re.findall(r"^\d\. \*\*(.+?)\*\*", section, re.M)


def row_name(cell: str) -> str:
    """Return what a row is about: the name in backticks that some first cells have, else the whole cell."""
    found = re.match(r"`(\w+)`", cell)
    return found[1] if found else cell


def all_answers(tree: Any) -> Iterator[str]:
    """Yield every answer of the table, however deep it stands."""
    children: Iterable[Any] = (
        tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    )
    if isinstance(tree, str):
        yield tree
    for child in children:
        yield from all_answers(child)


@cache
def settings_law() -> ModuleType:
    """Return tests/laws/test_settings.py, which has the proof of every setting."""
    spec = importlib.util.spec_from_file_location(
        "settings_law", Path(__file__).with_name("test_settings.py")
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def proof_of(setting: str) -> str | None:
    """Return the test that proves that a setting acts, if it has one."""
    law = settings_law()
    proof = law.PROOFS.get(setting) or (law.ACTS if f'("{setting}", ' in law.acts_file() else None)
    return f"tests/{proof}" if proof else None


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@cache
def anchors_in(path: Path) -> frozenset[str]:
    if not path.is_file():
        return frozenset()
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.casefold()).replace(" ", "-") for heading in headings)


def is_there(answer: str) -> bool:
    """Return whether what an answer names exists."""
    if answer in LATER:
        return True
    if answer.startswith("setting: "):
        setting = answer.removeprefix("setting: ")
        proofs = list(all_answers(ANSWERS["keys"].get(setting, proof_of(setting))))
        return bool(proofs) and all(map(is_there, proofs))
    if answer.startswith("tests/"):
        file, _, test = answer.partition("::")
        return test.startswith("test_") and test in names_of_tests(ROOT / file)
    if answer.startswith("docs/"):
        file, _, anchor = answer.partition("#")
        return anchor in anchors_in(ROOT / file)
    return False


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        ("commands", commands()),
        ("checklist", checklist()),
        ("overfitting", overfitting_signs()),
        ("environment", variables()),
    ],
)
def test_every_item_has_its_answer_and_every_answer_its_item(kind: str, items: list[str]) -> None:
    assert set(ANSWERS[kind]) == set(items)
    assert all(ANSWERS[kind].values())


def test_every_yaml_key_has_its_proof_or_its_answer() -> None:
    proved = {key for key in keys() if proof_of(key) is not None}
    assert keys() - proved - set(ANSWERS["keys"]) == set()
    in_rows = {answer.removeprefix("setting: ") for answer in all_answers(ANSWERS["rows"])}
    assert set(ANSWERS["keys"]) - keys() - in_rows == set()


def test_every_table_and_every_row_has_its_answer() -> None:
    tables = rows()
    assert set(ANSWERS["tables"]) | set(ANSWERS["rows"]) == set(tables)
    assert not set(ANSWERS["tables"]) & set(ANSWERS["rows"])
    for title, by_row in ANSWERS["rows"].items():
        assert list(by_row) == [row_name(cell) for cell in tables[title]], title


@pytest.mark.parametrize("answer", sorted(set(all_answers(ANSWERS))))
def test_what_an_answer_names_is_there(answer: str) -> None:
    assert is_there(answer)


def test_the_proofs_of_the_guides_keys_are_there() -> None:
    missing = [key for key in sorted(keys()) if (proof := proof_of(key)) and not is_there(proof)]
    assert missing == []


def test_the_guide_is_read_whole() -> None:
    assert (len(blocks("bash")), len(commands()), len(checklist()), len(overfitting_signs())) == (
        4,
        11,
        14,
        4,
    )
    assert sum(map(len, rows().values())) == 78
    assert {"training_args.lr_scheduler_type", "generation.temperature", "method.r"} <= keys()
    assert "components.fine_tuner.type" in keys()
    assert len(blocks("yaml")) == len(re.findall(r"^```yaml$", GUIDE, re.M)) == 19


@pytest.mark.parametrize(
    "answer",
    [
        "tests/laws/test_guide.py::test_not_there",
        "tests/laws/not_there.py::test_x",
        "tests/laws/test_guide.py::is_there",
        "docs/guide/tables.md#not-there",
        "docs/not-there.md#x",
        "setting: method.not_there",
        "later: some day",
        "",
    ],
)
def test_an_answer_that_names_nothing_is_seen(answer: str) -> None:
    assert not is_there(answer)
