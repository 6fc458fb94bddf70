"""The story of a run, top to bottom: prepare, load, loop, choose the best, write the final model."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llamafarm import terminal
from llamafarm.data.encoding.pack import pack_rows
from llamafarm.errors import InputError, OutputError
from llamafarm.hardware.process import return_freed_memory
from llamafarm.kernels.compiled import why_not_compiled
from llamafarm.model.bundle import Bundle, write_bundle
from llamafarm.model.forward import PackedForward, packed_forward
from llamafarm.model.weights import Trained, form_of, is_frozen_in, trained_weights, transformer_of
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training.checkpoint import checkpoints_in, step_of
from llamafarm.training.closing import compare_with_base, show_report
from llamafarm.training.description import describe_end, describe_resumption, describe_start
from llamafarm.training.journal import open_journal
from llamafarm.training.locking import RunLock, refuse_if_locked
from llamafarm.training.methods import open_for_training, quantization_of
from llamafarm.training.preparation.disk import refuse_what_has_no_room
from llamafarm.training.preparation.memory import refuse_what_does_not_fit
from llamafarm.training.preparation.prepare import (
    Preparation,
    check_what_was_away,
    output_dir_of,
    prepare,
)
from llamafarm.training.preparation.rows import Choice, trained_part_of
from llamafarm.training.record import (
    CHECKPOINTS_FOLDER,
    FINAL_MODEL_FOLDER,
    RUN_FILE,
    check_output_dir,
    clear_output_dir,
    make_output_dir,
    write_json,
)
from llamafarm.training.result import RunResult
from llamafarm.training.resume import (
    AUTO,
    NEVER,
    check_same_run,
    choose_checkpoint,
    find_unfinished,
    identity_of,
    prepare_to_go_on,
    say_resumed,
)
from llamafarm.training.session import Session
from llamafarm.training.signals import RunInterrupted, StopAsked, StopSignals
from llamafarm.training.step import Precision

# A part of a step's tokens that is worth a line.
_WORTH_SAYING = 0.02


def run_training(loaded: LoadedStrategy, *, overwrite: bool = False, resume: str = AUTO) -> RunResult:
    """Train a strategy and write its final model; go on with an unfinished run of it, unless told not to.

    Nothing is written before everything that can be checked has been. `resume` is auto, never, or the folder
    of a checkpoint. Raises any `LlamaFarmError`; `RunInterrupted` after a signal, when the run is saved.
    """
    if overwrite and resume not in (AUTO, NEVER):
        raise InputError(
            "--overwrite starts anew, and --resume goes on from a checkpoint",
            where="--overwrite",
            remedy="Leave one of them out.",
        )
    folder = output_dir_of(loaded)
    terminal.mode.log_level = loaded.strategy.monitoring.log_level
    refuse_if_locked(folder)
    unfinished = None if overwrite else find_unfinished(folder, resume)
    preparation = prepare(loaded, precision_before=unfinished.precision if unfinished else None)
    if unfinished is None:
        check_output_dir(folder, overwrite=overwrite)
    refuse_what_does_not_fit(preparation.memory)
    refuse_what_has_no_room(preparation, loaded.strategy)
    return train_prepared(loaded, preparation, overwrite=overwrite, resume=resume)


def train_prepared(
    loaded: LoadedStrategy, preparation: Preparation, *, overwrite: bool = False, resume: str = AUTO
) -> RunResult:
    """Train what is prepared, into its output folder; otherwise as `run_training`."""
    strategy, folder = loaded.strategy, preparation.output_dir
    if preparation.memory.returns_freed_memory:
        return_freed_memory()
    model, dropout_plan = open_for_training(preparation, strategy)
    precision = precision_of(preparation, model)
    preparation.warnings += check_what_was_away(preparation, strategy)
    identity = identity_of(loaded, preparation)

    with ExitStack() as held:
        signals = held.enter_context(StopSignals())
        with packed_forward(transformer_of(model), fuses=precision.is_native) as packed:
            preparation.choices.append(_describe_kernels(packed, precision, preparation.device.kind))
            show_preparation(preparation)
            make_output_dir(folder)
            lock = held.enter_context(RunLock(folder))
            record = describe_start(loaded, preparation, identity)
            checkpoint = _begin(folder, record, overwrite=overwrite, resume=resume)
            journal = open_journal(loaded, preparation)
            session = Session(
                preparation, strategy, model, packed, dropout_plan, precision, journal, signals, lock
            )
            if checkpoint is not None:
                session.restore(checkpoint)
            try:
                state = session.run()
            except StopAsked:
                raise _interrupted(loaded, folder, signals) from None
            result = session.finish(state)

        lock.check()
        _write_final_model(preparation, loaded, model)
        findings = journal.conclude()
        write_json(folder / RUN_FILE, describe_end(record, result, findings, journal.account, session))
    if signals.asked is None:
        compare_with_base(loaded, preparation, model, result.final_model, findings)
    show_report(folder)
    return result


def _begin(folder: Path, record: dict[str, Any], *, overwrite: bool, resume: str) -> Path | None:
    """Write down that a run begins, or goes on; return the checkpoint that it goes on from, if any.

    The folder is ours by now: what another process left in it meanwhile is seen here. Raises `OutputError`
    where it is another run's.
    """
    unfinished = None if overwrite else find_unfinished(folder, resume)
    checkpoint: Path | None = None
    if unfinished is None:
        clear_output_dir(folder, overwrite=overwrite)
    else:
        check_same_run(unfinished, record["identity"])
        checkpoint = choose_checkpoint(unfinished)
        say_resumed(unfinished, checkpoint)
        step = step_of(checkpoint) if checkpoint is not None else 0
        record |= describe_resumption(record, unfinished.record, step)
        prepare_to_go_on(folder, unfinished, step)
    write_json(folder / RUN_FILE, record)
    return checkpoint


def _interrupted(loaded: LoadedStrategy, folder: Path, signals: StopSignals) -> RunInterrupted:
    """Return how a run ended that a signal stopped: what was saved, and what goes on with it."""
    assert signals.asked is not None
    name = signal.Signals(signals.asked).name
    saved = checkpoints_in(folder / CHECKPOINTS_FOLDER)
    in_file = f" --strategy-file {shlex.quote(str(loaded.file))}" if loaded.file else ""
    again = f"python cli.py train --strategy {shlex.quote(loaded.key)}{in_file}"
    return RunInterrupted(
        f"{name} ended the run" + (f" after step {step_of(saved[0])}, which is saved" if saved else ""),
        where=str(saved[0] if saved else folder),
        remedy=f"The same command goes on with it, without --overwrite: {again} …"
        if saved
        else "Run the same command again.",
        signal_number=signals.asked,
    )


def show_preparation(preparation: Preparation) -> None:
    """Print what was settled and why, and what the run will see."""
    plan = preparation.plan
    for warning in preparation.warnings:
        terminal.warn(warning)
    for choice in preparation.choices:
        terminal.say(f"{choice.setting:<16}{choice.value}  ({choice.why})")
    num_tokens = preparation.train_rows.num_tokens
    num_supervised = preparation.train_rows.num_supervised_tokens
    num_train, num_eval = len(preparation.train_rows), len(preparation.eval_rows)
    terminal.say(f"{'data':<16}{num_train} training rows, {num_eval} evaluation rows")
    terminal.say(
        f"{'tokens':<16}{num_tokens:,} an epoch, {num_supervised / num_tokens:.0%} of them trained on"
    )
    shared = _describe_shared_prefix(preparation)
    if shared:
        terminal.say(f"{'shared prefix':<16}{shared}")
    terminal.say(
        f"{'steps':<16}{plan.num_steps} of {plan.rows_per_step} rows, {plan.steps_per_epoch} an epoch"
    )
    terminal.say(f"{'output':<16}{preparation.output_dir}")


def _describe_shared_prefix(preparation: Preparation) -> str | None:
    """Return what the rows of the first step begin with together, and whether it is computed once."""
    indices = preparation.plan.rows_of_step(1)
    packs = pack_rows(preparation.train_rows, indices, preparation.memory.pack_tokens, shares_prefixes=True)
    num_tokens = int(preparation.train_rows.lengths_N[indices].sum())
    spared = 1 - sum(size[0] for size in packs.sizes()) / num_tokens
    if spared < _WORTH_SAYING:
        return None
    if preparation.memory.shares_prefixes:
        return f"{spared:.0%} of the tokens of step 1 are not computed again: rows begin alike"
    return f"computed for each row; with method.dropout: 0 it would spare {spared:.0%} of the tokens"


def precision_of(preparation: Preparation, model: Trained) -> Precision:
    """Return how a prepared run computes; sets how torch multiplies fp32 matrices.

    Weights that are in the numbers of the run already need no autocast, which casts in every layer.
    """
    kind, name = preparation.device.kind, preparation.precision.name
    torch.set_float32_matmul_precision("high" if preparation.precision.uses_tf32 else "highest")
    if name == "fp32":
        return Precision(nullcontext)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[name]
    scaler = torch.amp.GradScaler(kind) if name == "fp16" else None
    if is_frozen_in(model, dtype) and not preparation.method.use_dora:
        return Precision(nullcontext, scaler)
    return Precision(partial(torch.autocast, kind, dtype), scaler)


def _describe_kernels(packed: PackedForward, precision: Precision, kind: str) -> Choice:
    """Return what of the model is computed by hand, and why not more."""
    if not precision.is_native:
        return Choice("kernels", "transformers' own", "autocast casts in every layer of this run")
    if not packed.num_fused:
        return Choice("kernels", "transformers' own", packed.why_plain)
    head = "in chunks" if packed.head is not None else "over all logits"
    why = "held equal to the model's own"
    if kind != "mps":
        reason = why_not_compiled(kind)
        why += f"; slower than they could be: {reason}" if reason else ", compiled for this machine"
    return Choice("kernels", f"{packed.num_fused} modules, the loss {head}", why)


def _write_final_model(preparation: Preparation, loaded: LoadedStrategy, model: Trained) -> None:
    """Write `final_model/` under another name and rename it: it is whole, or not there."""
    strategy = loaded.strategy
    folder = preparation.output_dir / FINAL_MODEL_FOLDER
    unfinished = folder.with_name(folder.name + ".unfinished")
    preparation.tokenizer.chat_template = preparation.template.source
    bundle = Bundle(
        base_model=preparation.base.reference,
        strategy=loaded.key,
        end_of_turn=preparation.template.end_of_turn,
        joiner=preparation.template.joiner,
        max_length=preparation.max_length,
        stop_sequences=strategy.prompt_template.stop_sequences,
        generation=strategy.generation.model_dump(),
        kind=form_of(model),
        quantization=quantization_of(preparation.method),
        trained=trained_part_of(strategy.dataset),
    )
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        write_bundle(unfinished, bundle, model, trained_weights(model), preparation.tokenizer)
        os.replace(unfinished, folder)
    except OSError as error:
        raise OutputError(
            f"the final model cannot be written: {error.strerror}",
            where=str(folder),
            remedy="Make room on the disk and train again; what was saved on the way is in checkpoints/.",
        ) from error
