"""The guide's overfitting indicators over the loss curves, and evaluation rows that are of another kind.

A row that is seen for the first time cannot have been memorised. So in the first epoch the training loss is
itself one of rows never seen, and an evaluation that does not follow it is of other data (drift); only a gap
that opens later is overfitting. Of the guide's first three indicators the most specific one is named.
"""

from __future__ import annotations

import numpy as np

from llamafarm.findings.finding import Finding, Level
from llamafarm.findings.history import History, Settings

DRIFT = "evaluation-drift"
# The guide: eval_loss - train_loss above this is a sign of overfitting. In nats.
LARGEST_GAP = 0.5
# A training loss that is "near 0".
NEAR_ZERO = 0.1
# How much the evaluation loss must have risen over its best to be worth a word: in nats, and as a part of it.
_LEAST_RISE, _LEAST_RISE_PART = 0.03, 0.03
# From this part of the evaluation rows on, leaked ones are a warning.
_MANY_LEAKED = 0.05
# From here on a rise is a warning.
_WARNING_RISE_PART = 0.1
# The part of the training loss's fall that an evaluation on the same kind of rows shares at least.
_LEAST_SHARED_FALL = 0.25
_LEAST_FALL = 0.3


def find_overfitting(history: History, settings: Settings) -> list[Finding]:
    """Return what the evaluations say beside the training loss: one finding at most."""
    if not len(history) or not (history.eval_steps_E > 0).any():
        return []
    for find in (_find_leak, _find_drift, _find_memorised, _find_degradation, _find_gap):
        found = find(history, settings)
        if found is not None:
            return [found]
    return []


def gap_of(history: History) -> float | None:
    """Return the last evaluation's loss less the training loss around it, None before the first one."""
    if not len(history) or not (history.eval_steps_E > 0).any():
        return None
    return float(history.eval_losses_E[-1]) - history.train_loss_until(int(history.eval_steps_E[-1]))


def _find_leak(history: History, settings: Settings) -> Finding | None:
    """Rows are compared before training; here stands what it does to every figure after it."""
    if not settings.num_leaked_rows:
        return None
    part = settings.num_leaked_rows / max(settings.num_eval_rows, 1)
    return Finding(
        "leaked-evaluation-rows",
        "warning" if part >= _MANY_LEAKED else "note",
        f"{settings.num_leaked_rows} of {settings.num_eval_rows} evaluation rows ({part:.0%}) are, or nearly "
        f"are, training rows; eval_loss is {history.eval_losses_E[-1]:.3f}",
        "The evaluation partly measures what was memorised, so that its loss flatters the model",
        "data_preprocessing.remove_duplicates: true and remove_near_duplicates: true, or another "
        "dataset.eval_file",
    )


def _find_drift(history: History, settings: Settings) -> Finding | None:
    is_first_E = (history.eval_epochs_E <= 1.0) & (history.eval_steps_E > 0)
    if not is_first_E.any() or history.eval_steps_E[0] != 0:
        return None
    before, after = float(history.eval_losses_E[0]), float(history.eval_losses_E[is_first_E][-1])
    step = int(history.eval_steps_E[is_first_E][-1])
    train_loss = history.train_loss_until(step)
    fall, shared = history.start_loss - train_loss, before - after
    if (
        fall < max(_LEAST_FALL, 0.1 * history.start_loss)
        or shared > _LEAST_SHARED_FALL * fall
        or after - train_loss < LARGEST_GAP
    ):
        return None
    return Finding(
        DRIFT,
        "warning",
        f"in the first epoch, where every row is new, train_loss fell from {history.start_loss:.3f} to "
        f"{train_loss:.3f} and eval_loss went from {before:.3f} to {after:.3f}",
        "The evaluation rows are of another kind than the training rows: what is learnt does not help there",
        "leave out dataset.eval_file and write dataset.eval_split: 0.1, which takes rows of the same file; "
        "or train on rows like those that matter",
        step,
    )


def _find_memorised(history: History, settings: Settings) -> Finding | None:
    step, loss = int(history.eval_steps_E[-1]), float(history.eval_losses_E[-1])
    train_loss = history.train_loss_until(step)
    if train_loss > NEAR_ZERO or loss - train_loss < LARGEST_GAP:
        return None
    return Finding(
        "memorised",
        "warning",
        f"train_loss is {train_loss:.3f} and eval_loss {loss:.3f}",
        "The model knows the training rows by heart and does not do better on others (the guide's perfect "
        "training)",
        f"training_args.num_train_epochs: {_fewer_epochs(history, settings)}, or more and more varied rows; "
        "method.dropout: 0.1; a lower method.r",
        step,
    )


def _find_degradation(history: History, settings: Settings) -> Finding | None:
    is_trained_E = history.eval_steps_E > 0
    steps_E, losses_E = history.eval_steps_E[is_trained_E], history.eval_losses_E[is_trained_E]
    best = int(np.argmin(losses_E))
    loss, least = float(losses_E[-1]), float(losses_E[best])
    if loss - least < max(_LEAST_RISE, _LEAST_RISE_PART * least):
        return None
    then, now = history.train_loss_until(int(steps_E[best])), history.train_loss_until(int(steps_E[-1]))
    if now >= then:  # both rise: that is no overfitting
        return None
    is_kept = settings.keeps_best or settings.stops_early
    level: Level = "warning" if loss > (1 + _WARNING_RISE_PART) * least and not is_kept else "note"
    kept = " (the final model is that of the best evaluation)" if settings.keeps_best else ""
    return Finding(
        "evaluation-degradation",
        level,
        f"eval_loss rose from {least:.3f} at step {steps_E[best]} to {loss:.3f}, while train_loss fell from "
        f"{then:.3f} to {now:.3f}{kept}",
        "The model began to memorise after that step",
        f"training_args.num_train_epochs: {_fewer_epochs(history, settings)}, or load_best_model_at_end: "
        "true with early_stopping_patience: 2",
        int(steps_E[-1]),
    )


def _find_gap(history: History, settings: Settings) -> Finding | None:
    gap = gap_of(history)
    is_first_E = (history.eval_epochs_E <= 1.0) & (history.eval_steps_E > 0)
    if gap is None or gap < LARGEST_GAP or history.eval_epochs_E[-1] <= 1.0:
        return None
    if is_first_E.any():
        step = int(history.eval_steps_E[is_first_E][-1])
        first = float(history.eval_losses_E[is_first_E][-1]) - history.train_loss_until(step)
        if gap < first + LARGEST_GAP / 2:  # it was there before any row came twice
            return None
    return Finding(
        "overfitting-gap",
        "warning",
        f"eval_loss is {history.eval_losses_E[-1]:.3f}, {gap:.2f} above train_loss",
        f"A gap above {LARGEST_GAP} that opened after the first epoch is learnt by heart",
        f"method.dropout: 0.1, training_args.num_train_epochs: {_fewer_epochs(history, settings)}, a lower "
        "method.r, or more rows",
        int(history.eval_steps_E[-1]),
    )


def _fewer_epochs(history: History, settings: Settings) -> str:
    """Return the epochs after which the evaluation was best, as a number to write."""
    is_trained_E = history.eval_steps_E > 0
    best = int(np.argmin(history.eval_losses_E[is_trained_E]))
    epochs = float(history.eval_epochs_E[is_trained_E][best])
    fewer = max(0.5, round(epochs * 2) / 2)
    if fewer >= settings.num_epochs:
        fewer = max(1.0, settings.num_epochs / 2)
    return f"{fewer:g}"
