"""The one sentence that a run comes to, and the figures that stand under it."""

from __future__ import annotations

from dataclasses import dataclass

from llamafarm.report.facts.metrics import Tone
from llamafarm.report.facts.wording import (
    show_bytes,
    show_count,
    show_loss,
    show_number,
    show_plural,
    show_seconds,
    show_share,
    show_signed,
)
from llamafarm.report.reading.answers import Change, EvaluationRecord
from llamafarm.report.record import RunRecord

# From this part of the evaluation rows on, those that were also trained on take something from the verdict.
_MANY_LEAKED = 0.02


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a run: `short` in a few words, `sentence` with its figures, `more` that belongs to it."""

    tone: Tone
    short: str
    sentence: str
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """A figure with its name and a word on it."""

    name: str
    value: str
    note: str = ""


def judge_run(record: RunRecord) -> Verdict:
    """Return whether the run made the base better, as far as its record can tell."""
    evaluation = record.evaluation
    if not record.is_finished and not record.has_final_model:
        return _judge_unfinished(record)
    if evaluation is None or evaluation.tuned is None:
        return _judge_by_losses(record)
    if evaluation.base is None:
        loss = show_loss(evaluation.tuned.figures.get("eval_loss"))
        return Verdict(
            "none",
            "base not measured",
            f"The tuned model has an eval_loss of {loss} on {_rows(evaluation)}; its base was not measured.",
        )
    return _judge_against_base(record, evaluation)


def key_figures(record: RunRecord) -> list[KeyFigure]:
    """Return the figures that one looks for first, those only that are known."""
    result = record.result
    seconds = result.get("train_seconds")
    tokens = result.get("num_tokens")
    lines = record.trained_lines
    figures = [
        _losses("eval_loss", result.get("eval_loss"), result.get("eval_perplexity")),
        KeyFigure(
            "train_loss",
            show_loss(result.get("train_loss", lines[-1].get("train_loss") if lines else None)),
            "of the last step",
        ),
        KeyFigure("steps", show_count(record.num_steps), _steps_note(record)),
        KeyFigure("training rows", show_count(record.count("train_rows")), _held_out_note(record)),
        KeyFigure("tokens", _shorten(tokens), _supervised_note(record)),
        KeyFigure(
            "tokens per second",
            show_count(tokens / seconds if tokens is not None and seconds else None),
            f"{show_seconds(seconds)} of steps" if seconds is not None else "",
        ),
        KeyFigure("memory at the peak", show_bytes(_peak(record)), _predicted_note(record)),
    ]
    return [figure for figure in figures if figure.value != "–"]


def _judge_unfinished(record: RunRecord) -> Verdict:
    planned = record.plan.get("num_steps")
    of = f" of {show_count(planned)}" if planned else ""
    checkpoints = (
        f"the last checkpoint is that of step {show_count(record.checkpoint_steps[-1])}"
        if record.checkpoint_steps
        else "there is no checkpoint"
    )
    return Verdict(
        "unsure",
        "not finished",
        f"This run has not finished: it is going on, or it was stopped after step "
        f"{show_count(record.num_steps)}{of}.",
        (f"What follows is what it has written so far; {checkpoints}.",),
    )


def _judge_by_losses(record: RunRecord) -> Verdict:
    """Judge a run without an evaluation of its answers by the losses of training, which have no interval."""
    evaluations = record.evaluations
    remedy = "Whether its answers are better is not known: `evaluate` measures them beside the base's."
    if len(evaluations) > 1 and evaluations[0][0] == 0:
        before, after = evaluations[0][1], record.result.get("eval_loss", evaluations[-1][1])
        word = "fell" if after < before else "rose"
        return Verdict(
            "none",
            "not compared",
            f"eval_loss {word} from {show_loss(before)} before training to {show_loss(after)}; how sure that "
            "is was not measured.",
            (remedy,),
        )
    if evaluations:
        loss = record.result.get("eval_loss", evaluations[-1][1])
        sentence = f"The tuned model has an eval_loss of {show_loss(loss)}; its base was not measured."
        return Verdict("none", "base not measured", sentence, (remedy,))
    return Verdict(
        "none",
        "not evaluated",
        f"The model was trained for {show_plural(record.num_steps, 'step')}, and nothing was evaluated.",
        (remedy,),
    )


def _judge_against_base(record: RunRecord, evaluation: EvaluationRecord) -> Verdict:
    assert evaluation.base is not None
    assert evaluation.tuned is not None
    before, after = evaluation.base.figures.get("eval_loss"), evaluation.tuned.figures.get("eval_loss")
    change = evaluation.changes.get("eval_loss")
    went = f"eval_loss went from {show_loss(before)} to {show_loss(after)} on {_rows(evaluation)}"
    more = _remarks(record, evaluation)
    if change is None:
        return Verdict("unsure", "not sure", f"{went}; how sure that is was not measured.", more)
    if not evaluation.is_held_out:
        sentence = f"On rows that it was trained on, {went}: this does not tell whether the model got better."
        return Verdict("unsure", "nothing held out", sentence, more)
    if change.low is None or change.high is None:
        return Verdict("unsure", "too few rows", f"{went}: too few rows to be sure of the difference.", more)
    by = _by(change)
    if change.high < 0:
        return Verdict("good", "better than the base", f"Better than the base: {went}, {by}.", more)
    if change.low > 0:
        return Verdict("bad", "worse than the base", f"Worse than the base: {went}, {by}.", more)
    return Verdict(
        "unsure", "no sure difference", f"Not shown to be better than the base: {went}, {by}.", more
    )


def _by(change: Change) -> str:
    return (
        f"a change of {show_signed(change.estimate)} that lies between {show_signed(change.low)} and "
        f"{show_signed(change.high)} (95 % interval)"
    )


def _remarks(record: RunRecord, evaluation: EvaluationRecord) -> tuple[str, ...]:
    """Return what belongs to the verdict: the answers, what was forgotten, rows that flatter it, warnings."""
    remarks = []
    f1 = evaluation.changes.get("token_f1")
    if f1 is not None and evaluation.base and evaluation.tuned:
        base, tuned = (model.figures.get("token_f1") for model in (evaluation.base, evaluation.tuned))
        sure = "" if f1.is_sure else " (not a sure difference)"
        remarks.append(
            f"Its answers share {show_share(tuned)} of their words with the expected ones, the base's "
            f"{show_share(base)}{sure}."
        )
    leaked, rows = record.count("leaked_rows") or 0, record.count("eval_rows") or 0
    if leaked and leaked >= _MANY_LEAKED * rows:
        remarks.append(
            f"{show_count(leaked)} of the {show_count(rows)} evaluation rows are nearly training rows, which "
            "flatters these figures."
        )
    num_warnings = sum(finding.level == "warning" for finding in record.all_findings)
    if num_warnings:
        remarks.append(f"{show_plural(num_warnings, 'finding')} below {_need(num_warnings)} a look.")
    return tuple(remarks)


def _need(number: int) -> str:
    return "needs" if number == 1 else "need"


def _rows(evaluation: EvaluationRecord) -> str:
    kind = "held-out row" if evaluation.is_held_out else "row"
    return show_plural(evaluation.num_rows, kind) if evaluation.num_rows else "the rows it was measured on"


def _losses(name: str, loss: float | None, perplexity: float | None) -> KeyFigure:
    note = "" if perplexity is None else f"perplexity {show_number(perplexity, 3)}"
    return KeyFigure(name, show_loss(loss), note)


def _steps_note(record: RunRecord) -> str:
    epochs = record.result.get("num_epochs")
    if epochs is None and record.lines:
        epochs = record.lines[-1].get("epoch")
    if epochs is None:
        return ""
    note = f"{epochs:.3g} epochs"
    return f"{note}, stopped early" if record.stopped_early else note


def _held_out_note(record: RunRecord) -> str:
    rows = record.count("eval_rows")
    if rows is None:
        return ""
    return f"{show_count(rows)} held out" if rows else "none held out"


def _shorten(tokens: float | None) -> str:
    """Return a count of tokens: exact up to a million."""
    if tokens is not None and tokens >= 1e6:
        return f"{show_number(tokens / 1e6, 3)} M" if tokens < 1e9 else f"{show_number(tokens / 1e9, 3)} G"
    return show_count(tokens)


def _supervised_note(record: RunRecord) -> str:
    tokens, supervised = record.result.get("num_tokens"), record.result.get("num_supervised_tokens")
    if not tokens or supervised is None:
        return ""
    return f"{show_share(supervised / tokens)} of them trained on"


def _peak(record: RunRecord) -> float | None:
    told = record.result.get("peak_memory_bytes")
    if told is not None:
        return told
    return max((value for line in record.lines if (value := line.get("memory_bytes"))), default=None)


def _predicted_note(record: RunRecord) -> str:
    predicted = sum(record.predicted_memory_bytes.values())
    return f"{show_bytes(predicted)} were predicted" if predicted else ""
