"""The guide's best practices checklist in its own words, each item ticked by what the run's record shows.

What the record cannot show is not ticked: that somebody looked at something is known to that person only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llamafarm.findings.speed import LEAST_UTILIZATION
from llamafarm.report.facts.indicators import last_gap
from llamafarm.report.facts.wording import show_bytes, show_count, show_plural, show_share, show_signed
from llamafarm.report.reading.values import text_of
from llamafarm.report.record import RunRecord

State = Literal["done", "not done", "not known"]
Judged = tuple[State, str]


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the guide's list, whether it was done, and what shows it."""

    text: str
    state: State
    evidence: str


def checklist_of(record: RunRecord) -> dict[str, list[Item]]:
    """Return the items by the guide's headings."""
    return {
        heading: [Item(text, *judge(record)) for text, judge in items]
        for heading, items in _CHECKLIST.items()
    }


def _has_split(record: RunRecord) -> Judged:
    train, held_out = record.count("train_rows"), record.count("eval_rows")
    if train is not None and held_out is not None:
        if not held_out:
            return (
                "not done",
                f"all {show_count(train)} rows were trained on; dataset.eval_split: 0.1",
            )
        share = round(100 * held_out / (train + held_out))
        leaked = record.count("leaked_rows")
        also = f"; {show_count(leaked)} of them are nearly training rows" if leaked else ""
        return "done", (
            f"{show_count(train)} rows to train on, {show_count(held_out)} held out "
            f"({100 - share}/{share}){also}"
        )
    if record.evaluations:
        return "done", "it was evaluated while it trained"
    return "not known", "how many rows were held out is not recorded"


def _checked_memory(record: RunRecord) -> Judged:
    predicted = sum(record.predicted_memory_bytes.values())
    if not predicted:
        return "not known", "no prediction is recorded"
    free = next((choice.why for choice in record.choices if choice.setting == "memory"), "")
    return "done", f"{show_bytes(predicted)} were predicted before the first step" + (
        f" ({free})" if free else ""
    )


def _loaded_base(record: RunRecord) -> Judged:
    if record.num_steps:
        return (
            "done",
            f"{record.base_model or 'it'} was loaded and took {show_plural(record.num_steps, 'step')}",
        )
    return "not known", "no step is recorded"


def _reviewed_dataset(record: RunRecord) -> Judged:
    rows = sum(file.num_rows or 0 for file in record.data)
    if not rows:
        return "not known", "no data file is recorded"
    read = f"the format of {show_plural(rows, 'row')} was checked as they were read"
    if record.setting("data_preprocessing.filter_quality") is True:
        return "done", f"{read}; rows of low quality were filtered (data_preprocessing.filter_quality)"
    return (
        "not known",
        f"{read}; whether somebody read them is not recorded: `data inspect` shows what is odd",
    )


def _evaluates_often(record: RunRecord) -> Judged:
    num = sum(step > 0 for step, _ in record.evaluations)
    if not num:
        return "not done", "nothing was evaluated; training_args.eval_strategy: steps does"
    total = sum(record.seconds.get(name, 0.0) for name in ("steps", "evaluations", "saves"))
    cost = f", {show_share(record.seconds.get('evaluations', 0.0) / total)} of the time" if total else ""
    if num == 1:
        return "not done", f"one evaluation{cost}: it takes several to see where overfitting begins"
    if any(finding.name == "evaluation-overhead" for finding in record.findings):
        return "not done", f"{num:,} evaluations{cost}, which is a lot: training_args.eval_steps"
    return "done", f"{num:,} evaluations in {show_plural(record.num_steps, 'step')}{cost}"


def _monitored_losses(record: RunRecord) -> Judged:
    num_lines, num = len(record.trained_lines), sum(step > 0 for step, _ in record.evaluations)
    if not num_lines or not num:
        return "not done", "there is no evaluation to set beside the training loss"
    if not record.has_findings:
        return "not known", f"{num_lines:,} losses and {num:,} evaluations are above; nothing looked at them"
    names = ", ".join(finding.name for finding in record.findings) or "nothing was found"
    return "done", f"{num_lines:,} losses and {num:,} evaluations were watched: {names}"


def _checked_utilization(record: RunRecord) -> Judged:
    shares = [share for line in record.trained_lines if (share := line.get("gpu_utilization")) is not None]
    if not shares:
        device = record.machine.get("device", "")
        return "not known", f"no GPU was measured{f' ({device})' if device else ''}"
    share = sum(shares) / len(shares)
    return ("done" if share > LEAST_UTILIZATION else "not done"), f"{show_share(share)} on average"


def _watched_memory(record: RunRecord) -> Judged:
    peaks = [peak for line in record.trained_lines if (peak := line.get("memory_bytes")) is not None]
    if not peaks:
        return "not known", "no memory is recorded"
    ran_out = [text for text in record.warnings if "out of memory" in text.lower()]
    if ran_out:
        return "not done", ran_out[0]
    return "done", f"{show_bytes(peaks[0])} at the first step recorded, {show_bytes(max(peaks))} at the peak"


def _saves_checkpoints(record: RunRecord) -> Judged:
    steps = record.checkpoint_steps
    if steps:
        return (
            "done",
            f"{show_plural(len(steps), 'checkpoint')} in checkpoints/, the last of step {steps[-1]:,}",
        )
    return "not done", "there is none in checkpoints/; training_args.save_strategy: steps saves them"


def _compared_metrics(record: RunRecord) -> Judged:
    gap = last_gap(record)
    if gap is None:
        return "not done", "there is no evaluation to compare with"
    return "done", f"eval_loss is {show_signed(gap)} from train_loss"


def _tested_holdout(record: RunRecord) -> Judged:
    evaluation = record.evaluation
    if evaluation is None or evaluation.tuned is None:
        return "not done", "no answers were generated; `evaluate` does"
    if not evaluation.is_held_out:
        return "not done", "nothing was held out: the answers are to rows that were trained on"
    return "done", f"{show_plural(evaluation.num_rows, 'answer')} to held-out rows, some of them above"


def _converted(record: RunRecord) -> Judged:
    if not record.export:
        return "not done", "the run exported nothing; how to is below"
    form = text_of(record.export.get("format")) or "exported"
    proof = "compared with the trained model" if record.export.get("verified") else "not verified"
    return "done", f"{form}, {proof}: {text_of(record.export.get('path')) or 'where is not recorded'}"


def _documented(record: RunRecord) -> Judged:
    if not record.settings:
        return "not known", "run.json has no settings"
    return "done", f"{show_plural(len(record.settings), 'setting')} with their origins in run.json and below"


def _saved_best(record: RunRecord) -> Judged:
    best = record.result.get("best_step")
    evaluated = [(step, loss) for step, loss in record.evaluations if step > 0]
    if not best and evaluated:
        best = min(evaluated, key=lambda at: at[1])[0]
    if not best:
        return "not known", "without evaluations none is the best"
    if not record.has_final_model:
        return "not done", "there is no final_model/"
    is_kept = record.setting("training_args.load_best_model_at_end") is True or int(best) == record.num_steps
    if is_kept:
        return "done", f"final_model/ is that of step {int(best):,}, the best evaluation"
    if int(best) in record.checkpoint_steps:
        return "done", f"step {int(best):,}, the best, is in checkpoints/; final_model/ is the last step"
    return "not done", f"step {int(best):,} was the best; training_args.load_best_model_at_end: true keeps it"


_CHECKLIST: dict[str, tuple[tuple[str, Callable[[RunRecord], Judged]], ...]] = {
    "Before Training": (
        ("Create train/eval split (90/10 recommended)", _has_split),
        ("Check GPU memory with `nvidia-smi` or Activity Monitor", _checked_memory),
        ("Verify base model loads successfully", _loaded_base),
        ("Review dataset for quality and format", _reviewed_dataset),
        ("Set appropriate evaluation frequency", _evaluates_often),
    ),
    "During Training": (
        ("Monitor loss curves for overfitting", _monitored_losses),
        ("Check GPU utilization stays >80%", _checked_utilization),
        ("Watch for OOM errors early", _watched_memory),
        ("Verify checkpoints are being saved", _saves_checkpoints),
    ),
    "After Training": (
        ("Compare train vs eval metrics", _compared_metrics),
        ("Test model on holdout examples", _tested_holdout),
        ("Convert to deployment format (GGUF/Ollama)", _converted),
        ("Document hyperparameters used", _documented),
        ("Save best checkpoint separately", _saved_best),
    ),
}
