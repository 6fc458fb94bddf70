"""The guide's four overfitting indicators with their figures; `findings.overfitting` judges more finely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llamafarm.findings.history import History
from llamafarm.findings.overfitting import LARGEST_GAP, NEAR_ZERO, gap_of
from llamafarm.report.facts.wording import show_loss, show_share, show_signed
from llamafarm.report.record import RunRecord

State = Literal["seen", "not seen", "not known"]
_NO_EVALUATION = "nothing was evaluated while it trained"


@dataclass(frozen=True, slots=True)
class Indicator:
    """An indicator in the guide's words, whether it is seen, and by which figures."""

    name: str
    rule: str
    state: State
    evidence: str


def indicators_of(record: RunRecord) -> list[Indicator]:
    """Return the four, in the guide's order."""
    return [_gap(record), _degradation(record), _perfect(record), _repetition(record)]


def last_gap(record: RunRecord) -> float | None:
    """Return the last evaluation's loss less the training loss around it, None before the first one."""
    gap = gap_of(_history(record))
    return None if gap is None or gap in (float("inf"), float("-inf")) or gap != gap else gap


def _history(record: RunRecord) -> History:
    epoch_steps = record.plan.get("steps_per_epoch") or max(record.num_steps, 1)
    return History(
        [
            {
                "step": line.step,
                "epoch": line.get("epoch") if line.get("epoch") is not None else line.step / epoch_steps,
                "train_loss": line.get("train_loss"),
                "eval_loss": line.get("eval_loss"),
                "learning_rate": line.get("learning_rate") or 0.0,
                "grad_norm": line.get("grad_norm"),
                "supervised_tokens": line.get("supervised_tokens") or 1.0,
            }
            for line in record.lines
        ]
    )


def _gap(record: RunRecord) -> Indicator:
    name, rule = "Gap Analysis", "eval_loss - train_loss > 0.5"
    gap = last_gap(record)
    if gap is None:
        return Indicator(name, rule, "not known", _NO_EVALUATION)
    step = record.evaluations[-1][0]
    return Indicator(
        name, rule, "seen" if gap > LARGEST_GAP else "not seen", f"{show_signed(gap)} at step {step:,}"
    )


def _degradation(record: RunRecord) -> Indicator:
    name, rule = "Evaluation Degradation", "Eval loss increases while train decreases"
    evaluations = [(step, loss) for step, loss in record.evaluations if step > 0]
    if len(evaluations) < 2:
        return Indicator(name, rule, "not known", "it takes two evaluations while it trains, at least")
    history = _history(record)
    (best_step, best), (step, last) = min(evaluations, key=lambda at: at[1]), evaluations[-1]
    then, now = history.train_loss_until(best_step), history.train_loss_until(step)
    is_seen = last > best and now < then
    if best_step == step:
        return Indicator(name, rule, "not seen", f"the last evaluation is the best: {show_loss(last)}")
    return Indicator(
        name,
        rule,
        "seen" if is_seen else "not seen",
        f"eval_loss {show_loss(best)} at step {best_step:,}, {show_loss(last)} at step {step:,}; train_loss "
        f"{show_loss(then)}, then {show_loss(now)}",
    )


def _perfect(record: RunRecord) -> Indicator:
    name, rule = "Perfect Training", "Train loss near 0 but poor eval"
    gap = last_gap(record)
    if gap is None:
        return Indicator(name, rule, "not known", _NO_EVALUATION)
    step, loss = record.evaluations[-1]
    train_loss = _history(record).train_loss_until(step)
    is_seen = train_loss < NEAR_ZERO and gap > LARGEST_GAP
    evidence = f"train_loss {show_loss(train_loss)}, eval_loss {show_loss(loss)}"
    return Indicator(name, rule, "seen" if is_seen else "not seen", evidence)


def _repetition(record: RunRecord) -> Indicator:
    name, rule = "Repetitive Output", "Model generates same phrases repeatedly"
    evaluation = record.evaluation
    rate = evaluation.tuned.figures.get("loop_rate") if evaluation and evaluation.tuned else None
    if evaluation is None or rate is None or not evaluation.num_rows:
        return Indicator(name, rule, "not known", "no answers were generated; `evaluate` does")
    base = evaluation.base.figures.get("loop_rate") if evaluation.base else None
    beside = "" if base is None else f"; of the base's {show_share(base)}"
    is_found = any(finding.name == "repetitive-output" for finding in record.all_findings)
    evidence = f"{show_share(rate)} of {evaluation.num_rows:,} answers repeat themselves{beside}"
    return Indicator(name, rule, "seen" if is_found else "not seen", evidence)
