"""What the report says, from records of every kind."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llamafarm.errors import OutputError
from llamafarm.report.checklist import checklist_of
from llamafarm.report.facts.indicators import indicators_of
from llamafarm.report.facts.metrics import metric_rows
from llamafarm.report.facts.usage import recipes_of
from llamafarm.report.facts.verdict import judge_run
from llamafarm.report.page import render_report, write_comparison, write_report
from llamafarm.report.record import read_run

GUIDE = Path(__file__).parents[1] / "guide" / "pytorch-fine-tuning-guide.md"


class Tags(HTMLParser):
    """Counts the tags of a page, and finds those that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


def change(folder: Path, name: str, **values: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def evaluated(make_run: Any, low: float | None, high: float | None, **values: Any) -> Any:
    changes = {"eval_loss": {"estimate": -0.5, "low": low, "high": high}}
    return judge_run(read_run(change(make_run(), "evaluation.json", changes=changes, **values)))


def test_the_page_is_whole_and_shuts_everything_out(make_run: Any) -> None:
    folder = make_run()
    path = write_report(folder)
    assert path == folder / "report.html"
    assert not list(folder.glob("*.unfinished"))
    tags = Tags(path.read_text())
    assert (tags.faults, tags.open) == ([], [])
    assert "script" not in tags.seen
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in tags.attributes
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    links = [value for name, value in tags.attributes if name in ("href", "src")]
    assert all(value and value.startswith(("#", "data:")) for value in links)


def test_nasty_texts_add_no_markup(make_run: Any, nasty_text: str) -> None:
    plain = Tags(render_report(read_run(make_run("a"))))
    nasty = Tags(render_report(read_run(make_run("b", text=nasty_text.rstrip("w")))))
    # What is long is cut, which is said in italics; a text between backticks is code.
    kept = [tag for tag in nasty.seen if tag not in ("i", "code")]
    assert kept == [tag for tag in plain.seen if tag not in ("i", "code")]
    assert nasty.faults == []


def test_a_report_that_cannot_be_written_is_told(make_run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(make_run(), tmp_path / "file" / "report.html")


def test_the_verdict_follows_the_interval(make_run: Any, tmp_path: Path) -> None:
    cases = [
        ((-0.7, -0.3, {}), "good", "Better than the base: "),
        ((0.1, 0.4, {}), "bad", "Worse than the base: "),
        ((-0.7, 0.2, {}), "unsure", "Not shown to be better than the base: "),
        ((None, None, {}), "unsure", "eval_loss went from 2.910 to 0.420"),
        ((-0.7, -0.3, {"is_held_out": False}), "unsure", "On rows that it was trained on"),
        ((-0.7, -0.3, {"models": [{"name": "tuned", "eval_loss": 0.4}]}), "none", "The tuned model has"),
    ]
    for index, ((low, high, values), tone, start) in enumerate(cases):
        verdict = evaluated(lambda at=index: make_run(str(at)), low, high, **values)
        assert (verdict.tone, verdict.sentence[: len(start)]) == (tone, start)


def test_without_an_evaluation_nothing_is_said_to_be_better(make_run: Any) -> None:
    verdict = judge_run(read_run(make_run(evaluation=None)))
    assert (verdict.tone, verdict.short) == ("none", "not compared")
    assert "from 3.000 before training to 0.431" in verdict.sentence


def test_a_run_that_is_not_finished_says_so(make_run: Any) -> None:
    record = read_run(make_run(run=None, evaluation=None, has_model=False))
    assert "going on, or it was stopped after step 128" in judge_run(record).sentence
    assert "the last checkpoint is that of step 96" in judge_run(record).more[0]
    assert "There is no final_model/ yet" in render_report(record)


def test_an_empty_run_gives_a_page(make_run: Any) -> None:
    page = render_report(read_run(make_run(run=None, lines=[], evaluation=None, has_model=False)))
    assert "No metrics were recorded." in page


def test_metrics_are_judged_by_what_is_better(make_run: Any) -> None:
    rows = {row.metric.name: row for row in metric_rows(read_run(make_run()).evaluation)}
    assert (rows["eval_loss"].change, rows["eval_loss"].interval) == ("−2.490", "−2.710 … −2.240")
    assert (rows["token_f1"].base, rows["token_f1"].tuned, rows["token_f1"].change) == (
        "12.0 %",
        "62.0 %",
        "+50.0",
    )
    verdicts = {name: row.verdict for name, row in rows.items() if row.verdict}
    assert verdicts == {
        "eval_loss": "better",
        "exact_match": "better",
        "token_f1": "better",
        "stop_rate": "too few rows",
        "loop_rate": "better",
        "general_loss": "not sure",
    }


def test_the_four_indicators_have_the_words_of_the_guide(make_run: Any) -> None:
    guide = GUIDE.read_text()
    indicators = indicators_of(read_run(make_run()))
    for number, indicator in enumerate(indicators, 1):
        assert f"{number}. **{indicator.name}**: {indicator.rule}".replace("`", "") in guide.replace("`", "")
    assert [one.state for one in indicators] == ["not seen", "seen", "not seen", "not seen"]
    bare = indicators_of(read_run(make_run("bare", evaluation=None, lines=[{"step": 1, "train_loss": 1.0}])))
    assert {one.state for one in bare} == {"not known"}


def test_each_indicator_is_seen_where_it_should_be(make_run: Any) -> None:
    lines = [{"step": step, "train_loss": 1 / step**2, "eval_loss": 1 + step / 10} for step in range(1, 21)]
    folder = change(
        make_run(lines=lines), "evaluation.json", findings=[{"name": "repetitive-output", "seen": "x"}]
    )
    assert [one.state for one in indicators_of(read_run(folder))] == ["seen"] * 4


def test_the_checklist_is_the_one_of_the_guide(make_run: Any) -> None:
    wanted: dict[str, list[str]] = {}
    for line in (
        GUIDE.read_text().partition("## Best Practices Checklist")[2].partition("\n## ")[0].splitlines()
    ):
        if line.startswith("### "):
            wanted[line[4:]] = []
        elif line.startswith("- [ ] "):
            wanted[list(wanted)[-1]].append(line[6:])
    checklist = checklist_of(read_run(make_run()))
    assert {heading: [item.text for item in items] for heading, items in checklist.items()} == wanted
    assert all(item.evidence for items in checklist.values() for item in items)


def test_an_item_is_ticked_by_evidence_only(make_run: Any) -> None:
    def states(folder: Path) -> list[str]:
        return [item.state for items in checklist_of(read_run(folder)).values() for item in items]

    assert states(make_run("full")) == ["done"] * 3 + ["not known"] + ["done"] * 10
    bare = make_run(
        "bare", run=None, evaluation=None, has_model=False, lines=[{"step": 1, "train_loss": 1.0}]
    )
    (bare / "checkpoints" / "step-00000096").rmdir()
    known = ["done"]  # that the base loads: a step was taken
    assert [state for state in states(bare) if state == "done"] == known


def test_command_lines_are_quoted_and_known_to_the_command_line(make_run: Any) -> None:
    import shlex

    from typer.main import get_command

    from llamafarm.cli import app

    folder = make_run("it's a run; rm -rf $HOME")
    recipes = recipes_of(read_run(folder))
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    assert len(recipes) == 6
    for recipe in recipes[:-1]:
        program, script, verb, *rest = shlex.split(recipe.code)
        assert (program, script) == ("python", "cli.py")
        assert str(folder) in rest
        options = {name for parameter in verbs[verb].params for name in parameter.opts}
        assert {one for one in rest if one.startswith("--")} <= options
    compile(recipes[-1].code, "recipe", "exec")


def test_several_runs_show_what_differs(make_run: Any, tmp_path: Path) -> None:
    first = make_run("first")
    second = make_run("second")
    run = json.loads((second / "run.json").read_text())
    run["settings"]["method"]["r"] = 64
    (second / "run.json").write_text(json.dumps(run))
    write_comparison([first, second], tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    differing = page.partition('<section id="differences">')[2].partition("</section>")[0]
    assert "<td>8</td><td>64</td>" in differing
    assert differing.count("<tr>") == 2
    assert "learning_rate" not in differing


def test_figures_on_other_rows_are_not_set_above_each_other(make_run: Any, tmp_path: Path) -> None:
    first, second = (
        make_run("first"),
        change(
            make_run("second"),
            "evaluation.json",
            sha256="other",
            models=[{"name": "tuned", "eval_loss": 0.1, "rows": 5}],
        ),
    )
    write_comparison([first, second], tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    assert "different rows" in page
    assert 'class="best"' not in page
    change(second, "evaluation.json", sha256="94408cc2" * 8)
    write_comparison([first, second], tmp_path / "c.html")
    assert '<td>0.420</td><td class="best">0.100</td>' in (tmp_path / "c.html").read_text()


def test_a_long_run_makes_a_small_page(make_run: Any) -> None:
    lines = [
        {"step": step, "train_loss": 1 + math.sin(step), "learning_rate": 1e-5, "memory_bytes": 1e9}
        for step in range(1, 20_001)
    ]
    assert len(render_report(read_run(make_run(lines=lines)))) < 400_000
