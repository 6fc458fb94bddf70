"""What is said of an evaluation, and where it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafarm import terminal

if TYPE_CHECKING:
    from llamafarm.evaluation.bootstrap import Interval
    from llamafarm.evaluation.evaluate import Evaluation
    from llamafarm.evaluation.measure import Measured
    from llamafarm.inference.open import OpenModel

# How each figure is shown: its name in records, as a number or as a share, and what a change is shown in.
_FIGURES = (
    ("eval_loss", "{:.4f}"),
    ("eval_loss_per_row", "{:.4f}"),
    ("eval_perplexity", "{:.3f}"),
    ("general_loss", "{:.4f}"),
    ("exact_match", "{:.1%}"),
    ("token_f1", "{:.1%}"),
    ("rouge_l", "{:.1%}"),
    ("chrf", "{:.1%}"),
    ("bleu", "{:.1%}"),
    ("stop_rate", "{:.1%}"),
    ("loop_rate", "{:.1%}"),
    ("distinct_2", "{:.1%}"),
    ("mean_tokens", "{:.1f}"),
    ("answer_tokens_per_second", "{:,.0f}"),
)


def show_evaluation(evaluation: Evaluation, num_examples: int) -> None:
    """Print the figures of one model, beside its base where that was measured."""
    _show_table(evaluation.measured, evaluation.changes)
    for finding in evaluation.findings:
        terminal.warn(finding.as_line())
    _show_answers(evaluation.measured, evaluation, num_examples)


def show_side_by_side(evaluations: Sequence[Evaluation], num_examples: int) -> None:
    """Print the figures of several models as columns of one table."""
    measured = [one for evaluation in evaluations for one in evaluation.measured]
    _show_table(measured, {})
    for evaluation in evaluations:
        for finding in evaluation.findings:
            terminal.warn(f"{evaluation.measured[-1].name}: {finding.as_line()}")
    if len({len(evaluation.questions.asked) for evaluation in evaluations}) == 1:
        _show_answers(measured, evaluations[0], num_examples)


def keep_with_run(opened: OpenModel, record: Mapping[str, Any]) -> None:
    """Keep the evaluation of a run's final model in the run's folder, and bring its report up to date."""
    from llamafarm.errors import OutputError
    from llamafarm.evaluation.record import write_evaluation
    from llamafarm.report.card import write_card
    from llamafarm.report.page import write_report

    folder = Path(opened.name).parent
    if not opened.is_tuned or Path(opened.name).name != "final_model" or not (folder / "run.json").is_file():
        return
    try:
        terminal.say(f"kept in {write_evaluation(folder, record)}")
        terminal.say(f"report: {write_report(folder)}")
        write_card(folder)
    except OSError as error:
        terminal.warn(f"the evaluation is not kept in {folder}: {error.strerror}")
    except OutputError as error:
        terminal.warn(f"the report is not brought up to date: {error.problem} ({error.where})")


def _show_table(measured: Sequence[Measured], changes: Mapping[str, Interval]) -> None:
    records = [one.as_record() for one in measured]
    rows = [["", *(one.name for one in measured), *(["change"] if changes else [])]]
    for name, shown in _FIGURES:
        if all(record.get(name) is None for record in records):
            continue
        if not records[0]["rows"] and name not in ("eval_loss", "eval_perplexity", "general_loss"):
            continue  # text, which asks for no answers
        cells = ["" if record.get(name) is None else shown.format(record[name]) for record in records]
        rows.append([name, *cells, *([_show_change(changes.get(name), shown)] if changes else [])])
    for line in terminal.align(rows):
        terminal.result(line)
    num_rows = len(measured[0].losses.num_tokens_N)
    num_tokens = measured[0].losses.total.num_supervised_tokens
    terminal.result(f"{num_rows} rows, {num_tokens:,} tokens that count, {records[0]['rows']} answers")


def _show_change(interval: Interval | None, shown: str) -> str:
    if interval is None:
        return ""
    signed = shown.replace("{:", "{:+").replace("%", "%").replace(",", "")
    if interval.low is None or interval.high is None:
        return signed.format(interval.estimate)
    sure = "" if interval.is_above_zero or interval.is_below_zero else "  not sure"
    return (
        f"{signed.format(interval.estimate)}  "
        f"[{signed.format(interval.low)} to {signed.format(interval.high)}]{sure}"
    )


def _show_answers(measured: Sequence[Measured], evaluation: Evaluation, num_examples: int) -> None:
    questions = evaluation.questions
    width = max(len("expected"), *(len(one.name) for one in measured))
    for index, place in enumerate(questions.asked[:num_examples]):
        asked = questions.conversations[place].messages[-2]
        terminal.say("\n" + "\n".join(filter(None, (asked.content, asked.input))))
        terminal.say(f"  {'expected':<{width}}  {questions.expected[index]}")
        for one in measured:
            terminal.say(f"  {one.name:<{width}}  {one.answers[index].text}")
