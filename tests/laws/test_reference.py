"""The generated pages are those that would be written now, and nothing is missing in them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llamafarm.strategy.schema import Strategy, walk_leaves
from llamafarm.strategy.spelling import all_paths, section_at


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch, repository: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository))
    import tools.write_reference

    return tools.write_reference


def headings(page: str) -> list[str]:
    return [line.strip("# `") for line in page.splitlines() if re.match(r"#{2,} ", line)]


def test_no_page_is_stale(repository: Path) -> None:
    # As `make docs` and CI do it; a page that depended on the terminal would be stale in one of the two.
    for columns in ("40", "200"):
        done = subprocess.run(
            [sys.executable, "tools/write_reference.py", "--check"],
            cwd=repository,
            env={**os.environ, "COLUMNS": columns, "TERM": "dumb"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_a_page_that_is_missing_or_changed_is_stale(generator: Any, tmp_path: Path) -> None:
    assert generator.stale_pages(tmp_path) == list(generator.PAGES)
    generator.write_pages(tmp_path)
    assert generator.stale_pages(tmp_path) == []
    page = tmp_path / "docs/reference/strategy.md"
    page.write_text(page.read_text().replace("Default: `16`", "Default: `8`"))
    assert generator.stale_pages(tmp_path) == ["docs/reference/strategy.md"]


def test_every_setting_and_section_has_its_entry(generator: Any) -> None:
    page = generator.pages()["docs/reference/strategy.md"]
    assert sorted(headings(page)) == sorted(all_paths())
    for path, _ in walk_leaves(Strategy()):
        entry = page.partition(f"### `{path}`\n\n")[2].partition("\n#")[0]
        assert re.match(r"[A-Z`].*\. Default: (unset|`.*`)\..*\n\n\S", entry), path


def test_every_field_says_what_it_does() -> None:
    for path in all_paths():
        *above, name = path.split(".")
        section = section_at(tuple(above))
        assert section and section.model_fields[name].description, path


def test_every_number_has_a_unit_or_is_known_to_have_none(generator: Any) -> None:
    from tools.reference.strategy import has_unit, numbers

    assert {"learning_rate", "max_length"} <= set(numbers())
    missing = {name for name in numbers() if not has_unit(name)}
    assert missing == set(), "add them to _UNITS or WITHOUT_UNIT in tools/reference/strategy.py"


def test_every_verb_and_option_of_the_command_line_has_its_entry(generator: Any, repository: Path) -> None:
    from tools.reference.commands import verbs

    page = generator.pages()["docs/reference/commands.md"]
    assert {"setup", "train", "data split"} <= set(verbs())
    for verb in verbs():
        entry = page.partition(f"## `{verb}`\n")[2].partition("\n## ")[0]
        done = subprocess.run(
            [sys.executable, "cli.py", *verb.split(), "--help"],
            cwd=repository,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        names = re.findall(r"^ +((?:--?[\w-]+, )*--[\w-]+)", done.stdout, re.M)
        options = set(re.findall(r"--[\w-]+", " ".join(names))) - {"--help"}
        assert options == set(re.findall(r"`(--[\w-]+)`", entry.partition("| option")[2])), verb


def test_every_link_leads_somewhere(generator: Any) -> None:
    from tools.reference.markdown import anchor

    pages = generator.pages()
    for path, page in pages.items():
        for file, place in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", page):
            target = str(Path(path).parent / file) if file else path
            assert target in pages, (path, file)
            assert not place or place in map(anchor, headings(pages[target])), (path, place)
