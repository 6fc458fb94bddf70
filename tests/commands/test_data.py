"""`data inspect` and `data preview`: what they say of good and of bad files."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llamafarm import terminal
from llamafarm.commands.data.inspect import inspect
from llamafarm.commands.data.preview import preview
from llamafarm.errors import InputError, OutputError

GOOD = [{"instruction": f"What is {number}?", "output": f"It is {number}."} for number in range(8)]
ODD = [
    GOOD[0],
    {"instruction": "caf\u00c3\u00a9?", "output": "yes"},
    {"instruction": "a", "output": "<p>b</p> &nbsp;"},
    {"instruction": "a\u0000b", "output": "c"},
    {"instruction": "a", "output": "and so on and so on and so on and so on"},
    {"instruction": "long", "output": "word " * 60},
]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "mode", terminal.Mode())
    terminal._result_console.cache_clear()


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: list[dict[str, Any]], *lines: str) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "".join(lines), encoding="utf-8")
        return path

    return write


def test_a_file_in_figures(data: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = data(GOOD)
    before = path.read_bytes()
    inspect(path)
    said = capsys.readouterr().out
    assert "8 rows of the form alpaca" in said
    assert "nothing odd" in said
    assert "% of them trained on" in said
    assert "█" in said
    inspect(path, prints_json=True)
    record = json.loads(capsys.readouterr().out)
    assert (record["num_rows"], record["num_bad_rows"]) == (8, 0)
    assert sum(part["rows"] for part in record["length_histogram"]) == 8
    assert 0 < record["supervised_share"] < 1
    bins = record["length_histogram"]
    assert (bins[0]["from"], bins[-1]["to"]) == tuple(
        record["length_percentiles"][end] for end in ("shortest", "longest")
    )
    assert all(part["from"] == before["to"] + 1 for before, part in pairwise(bins))
    assert record["length_percentiles"]["shortest"] <= record["length_percentiles"]["50 %"]
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


def test_what_is_odd_is_named_with_its_rows(
    data: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = data([*GOOD, *ODD], "{\n", '{"instruction": "x"}\n')
    inspect(
        path, settings=["data_preprocessing.max_length=60"], strategy="quick_experiment", prints_json=True
    )
    record = json.loads(capsys.readouterr().out)
    rows = {name: found["first_rows"] for name, found in record["oddities"].items()}
    assert rows == {
        "repeats an earlier row": [9],
        "wrongly decoded letters, as Ã© for é": [10],
        "HTML": [11],
        "control characters": [12],
        "the same words again and again": [13, 14],
        "above max_length, 60 tokens": [14],
        "nothing to train on": [],
    }
    assert [bad["where"] for bad in record["bad_rows"]] == [f"{path}:15", f"{path}:16"]
    inspect(path)
    said = capsys.readouterr().out
    assert "HTML (rows 11)" in said
    assert "2  cannot be read" in said
    assert f"{path}:15: " in said


def test_rows_are_shown_as_the_model_sees_them(
    data: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ['prompt_template.format="Q: {input}\\nA: {output}"']
    preview(data(GOOD), num_rows=2, settings=settings, strategy="quick_experiment")
    said = capsys.readouterr().out
    assert "Q: What is 0?⏎\nA:⟦ It is 0.<|end|>⟧" in said
    assert "row 2" in said and "row 3" not in said
    assert "tokens, " in said and "trained on" in said
    preview(data(GOOD), row_numbers="3,8", settings=settings, strategy="quick_experiment")
    said = capsys.readouterr().out
    assert [f"row {number}" in said for number in (1, 3, 7, 8)] == [False, True, False, True]


def test_rows_that_cannot_be_read_are_passed_over(
    data: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    preview(data(GOOD[:1], "{\n", json.dumps(GOOD[1]) + "\n"), num_rows=5)
    said = capsys.readouterr().out
    assert "row 1" in said and "row 3" in said and "row 2" not in said


def test_colours_take_the_place_of_brackets(
    data: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    preview(data(GOOD), num_rows=1)
    said = capsys.readouterr().out
    assert "\x1b[" in said and "⟦" not in said
    terminal._result_console.cache_clear()
    monkeypatch.setenv("NO_COLOR", "1")
    preview(data(GOOD), num_rows=1)
    assert "⟦" in capsys.readouterr().out


def test_the_page_has_the_same(
    data: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "rows.html"
    preview(data(GOOD), num_rows=1, html=page)
    assert capsys.readouterr().out == f"{page}\n"
    assert "It is 0." in page.read_text(encoding="utf-8")
    with pytest.raises(OutputError):
        preview(data(GOOD), html=tmp_path / "nowhere" / "rows.html")


@pytest.mark.parametrize(("row_numbers", "mentions"), [("99", "no row 99"), ("a", "no list of line numbers")])
def test_rows_that_are_not_there_are_told(data: Callable[..., Path], row_numbers: str, mentions: str) -> None:
    with pytest.raises(InputError, match=mentions):
        preview(data(GOOD), row_numbers=row_numbers)
