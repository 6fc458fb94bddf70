"""The report as one HTML file: no script, nothing from outside, in the reader's light or dark.

Templates escape every text of the run; the style and the plots are the only markup that comes from here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from llamafarm.errors import OutputError
from llamafarm.report.checklist import checklist_of
from llamafarm.report.compare import compare_runs
from llamafarm.report.facts import wording
from llamafarm.report.facts.curves import loss_plot, small_plots
from llamafarm.report.facts.indicators import indicators_of
from llamafarm.report.facts.metrics import metric_rows
from llamafarm.report.facts.usage import recipes_of
from llamafarm.report.facts.verdict import judge_run, key_figures
from llamafarm.report.plot import Plot, draw_plot
from llamafarm.report.reading.values import number_of, texts_of
from llamafarm.report.record import RunRecord, read_run

REPORT_FILE = "report.html"
# So many answers stand in the page, the first of them open.
_MOST_ANSWERS, _OPEN_ANSWERS = 40, 4
_MOST_CHARACTERS = 1500
_BACKTICKS = re.compile(r"`([^`\n]+)`")


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write a run's report into its folder, or to `output`; return where it is.

    Raises `OutputError` if there is no run, or the file cannot be written.
    """
    record = read_run(folder)
    path = output or record.folder / REPORT_FILE
    write_whole(path, render_report(record))
    return path


def write_comparison(folders: Iterable[Path], path: Path) -> None:
    """Write several runs side by side. Raises `OutputError` as `write_report` does."""
    write_whole(path, render_comparison([read_run(folder) for folder in folders]))


def render_report(record: RunRecord) -> str:
    """Return the report of a run as HTML."""
    evaluation = record.evaluation
    answers = evaluation.answers if evaluation else ()
    chosen = [setting for setting in record.settings if setting.kind != "default"]
    loss = loss_plot(record)
    return _render(
        "page.html.j2",
        record=record,
        verdict=judge_run(record),
        figures=key_figures(record),
        findings=record.all_findings,
        loss=None if loss.is_empty else loss,
        plots=small_plots(record),
        evaluation=evaluation,
        answers=answers[:_MOST_ANSWERS],
        num_open=_OPEN_ANSWERS,
        num_more_answers=max(0, len(answers) - _MOST_ANSWERS),
        metrics=metric_rows(evaluation),
        indicators=indicators_of(record),
        chosen=chosen,
        defaults=[setting for setting in record.settings if setting.kind == "default"],
        checklist=checklist_of(record),
        recipes=recipes_of(record),
        export=_export_facts(record.export),
    )


def render_comparison(records: list[RunRecord]) -> str:
    """Return several runs side by side as HTML."""
    return _render("comparison.html.j2", comparison=compare_runs(records))


def write_whole(path: Path, text: str) -> None:
    """Write a file in one piece: it is whole, or as it was before. Raises `OutputError`."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)  # a link there would be written through
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise OutputError(
            f"the report cannot be written: {error.strerror}",
            where=str(path),
            remedy="Choose another place with --output.",
        ) from error


def _render(template: str, **values: Any) -> str:
    environment = _environment()
    style = Markup(environment.get_template("style.css").render())  # noqa: S704 - it is our own file
    return environment.get_template(template).render(style=style, **values) + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("llamafarm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name.removeprefix("show_"): function
        for name, function in vars(wording).items()
        if name.startswith("show_")
    }
    environment.filters |= {"cut": _cut, "ticked": _ticked}
    environment.globals["draw"] = _draw
    return environment


def _draw(plot: Plot, width: int, height: int) -> Markup:
    return draw_plot(plot, width, height)


def _cut(text: str) -> tuple[str, int]:
    """Return the beginning of a text, and how many characters were left out."""
    left_out = len(text) - _MOST_CHARACTERS
    return (text[:_MOST_CHARACTERS], left_out) if left_out > 200 else (text, 0)


def _ticked(text: str) -> Markup:
    """Return a text with what stands between backticks as code."""
    return Markup(_BACKTICKS.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped before


def _export_facts(export: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is known of an export, by name."""
    facts = [(name, text) for name, text in texts_of(export).items() if name in ("path", "format")]
    size = number_of(export.get("bytes"))
    if size is not None:
        facts.append(("size", wording.show_bytes(size)))
    verified = export.get("verified")
    facts += [("verified", "no")] if export and not verified else []
    facts += [(f"verified: {name}", text) for name, text in texts_of(verified).items()]
    return facts
