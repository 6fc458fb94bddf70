"""The loop's actions over one model: what taking a step, evaluating, saving and recording mean in a run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llamafarm import terminal
from llamafarm.data.encoding.pack import Pack, Packs, pack_rows
from llamafarm.errors import NonFiniteError, OutputError
from llamafarm.evaluation.loss import LossResult, measure_losses
from llamafarm.hardware.device import peak_memory_bytes
from llamafarm.hardware.speed import measure_peak_flops
from llamafarm.kernels.dropout import DropoutPlan
from llamafarm.model.forward import PackedForward
from llamafarm.model.weights import Trained, restore_weights
from llamafarm.planning.duration import RowLengths, training_flops
from llamafarm.strategy.schema import Strategy
from llamafarm.training.checkpoint import read_checkpoint, read_state
from llamafarm.training.journal import Journal
from llamafarm.training.locking import RunLock
from llamafarm.training.loop import LoopState, StepRecord, run_loop
from llamafarm.training.methods import start_checkpointing
from llamafarm.training.offload import Offload
from llamafarm.training.optimizer import build_optimizer, optimizer_settings
from llamafarm.training.preparation.prepare import Preparation
from llamafarm.training.record import CHECKPOINTS_FOLDER, FINAL_MODEL_FOLDER
from llamafarm.training.recovery import Cut, MemoryRecovery, Remedy, SkippedSteps
from llamafarm.training.result import RunResult
from llamafarm.training.saving import Saver
from llamafarm.training.signals import StopAsked, StopSignals
from llamafarm.training.snapshot import TrainingParts
from llamafarm.training.step import Precision, StepResult, run_step


class Session:
    """The loop's actions over one model: what taking a step, evaluating, saving and recording mean here."""

    def __init__(
        self,
        preparation: Preparation,
        strategy: Strategy,
        model: Trained,
        packed: PackedForward,
        dropout_plan: DropoutPlan,
        precision: Precision,
        journal: Journal,
        signals: StopSignals,
        lock: RunLock,
    ) -> None:
        args = self._args = strategy.training_args
        self._preparation = preparation
        self._model = model
        self._packed = packed
        self._dropout_plan = dropout_plan
        self._precision = precision
        self._device = torch.device(preparation.device.kind)
        self._offload = Offload(model, preparation.device.kind)
        remedies = (
            Remedy("gradient checkpointing of all blocks", partial(start_checkpointing, model)),
            Remedy("activations in main memory", self._offload.start),
        )
        self._memory = MemoryRecovery(preparation.memory.pack_tokens, preparation.device.kind, remedies)
        self._skipped = SkippedSteps(args.on_nonfinite == "skip", preparation.plan.num_steps)
        self._optimizer, self._scheduler = build_optimizer(
            model, optimizer_settings(args, preparation.method), preparation.plan.num_steps
        )
        self._parts = TrainingParts(model, self._optimizer, self._scheduler, precision.scaler)
        self._signals, self._lock = signals, lock
        self._checkpoints = preparation.output_dir / CHECKPOINTS_FOLDER
        self._saver = Saver(self._checkpoints, keep=args.save_total_limit)
        self._journal = journal
        self._account = journal.account
        self._learning_rate = 0.0
        self._train_loss = math.inf
        self._state = LoopState()
        self._evaluations: dict[int, LossResult] = {}
        self._saves_checkpoints = strategy.monitoring.save_checkpoints

    def run(self) -> LoopState:
        """Run the loop to its end, in training mode, from where `restore` has put it.

        Raises `StopAsked` where a signal ended it; all that was done is saved then, if it may be.
        """
        self._model.train()
        with self._journal:
            try:
                return run_loop(self._preparation.plan, self, self._state)
            except StopAsked:
                self._save_before_leaving()
                raise
            finally:
                self._saver.wait()

    def restore(self, checkpoint: Path) -> None:
        """Go on from a whole checkpoint. Raises `OutputError` where it is of another run."""
        state, tensors = read_state(checkpoint)
        self._parts.restore(checkpoint, state, tensors)
        try:
            self._state = LoopState.of_record(state["loop"])
            self._evaluations = {
                int(step): LossResult(*found) for step, found in state["evaluations"].items()
            }
            self._learning_rate, self._train_loss = state["learning_rate"], state["train_loss"]
            self._memory.restore(state["pack_tokens"], state["out_of_memory"])
            self._skipped.steps = state["skipped_steps"]
            self._journal.restore(state["journal"], self._state.step)
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(
                f"the run cannot be continued from this checkpoint: {error}",
                where=str(checkpoint),
                remedy="Start anew with --overwrite, or with another --output-dir.",
            ) from error
        self._saver.saved_step = self._state.step

    def take_step(self, step: int, row_indices: Sequence[int]) -> StepResult:
        """Take one optimizer step over these rows."""
        started = time.perf_counter()
        where = f"step {step}, rows {self._show_rows(row_indices)}"
        try:
            result = self._memory.attempt(
                lambda: self._run_packs(step, self._lay_out(row_indices), where),
                lambda: Cut.of(self._packs),
                step=step,
                what="training",
            )
        except NonFiniteError as error:
            self._skipped.take_in(step, error)
            num_tokens = int(self._preparation.train_rows.lengths_N[list(row_indices)].sum())
            result = StepResult(math.nan, math.nan, num_tokens, 0)
        flops = self._flops_of(self._packs)
        self._learning_rate = float(self._scheduler.get_last_lr()[0])
        self._scheduler.step()
        # The checkpoint was written beside this step. It is there before the step counts: a kill never costs
        # more steps than lie between two saves.
        self._saver.wait()
        seconds = time.perf_counter() - started
        self._account.num_steps += 1
        self._account.flops += flops
        self._account.step_seconds += seconds
        self._account.num_tokens += result.num_tokens
        self._account.num_supervised_tokens += result.num_supervised_tokens
        terminal.debug(
            f"{where}  packs {len(self._packs)}  "
            f"tokens {result.num_tokens}  "
            f"loss {result.train_loss:.4f}  grad_norm {result.grad_norm:.4f}  {seconds:.2f} s"
        )
        self._journal.take_in_step(step, result, self._learning_rate, seconds, flops)
        return result

    def _run_packs(self, step: int, laid_out: Packs, where: str) -> StepResult:
        started = time.perf_counter()
        packs = [pack.to(self._device) for pack in laid_out]
        self._account.data_seconds += time.perf_counter() - started
        return run_step(
            partial(self._sum_loss, step),
            packs,
            self._optimizer,
            self._precision,
            max_grad_norm=self._args.max_grad_norm,
            where=where,
        )

    def _lay_out(self, row_indices: Sequence[int]) -> Packs:
        """Return how the rows of a step are packed, and keep it until the next step."""
        self._packs = pack_rows(
            self._preparation.train_rows,
            row_indices,
            self._memory.pack_tokens,
            shares_prefixes=self._preparation.memory.shares_prefixes,
        )
        return self._packs

    def evaluate(self) -> LossResult:
        """Return the loss on the evaluation rows. Raises `StopAsked` between two packs."""
        rows = self._preparation.eval_rows

        def measure() -> LossResult:
            return measure_losses(
                self._packed,
                self._eval_packs(),
                len(rows),
                self._device,
                self._precision.autocast,
                before_pack=self._signals.check,
            ).total

        with self._journal.phase("evaluating"):
            return self._memory.attempt(
                measure, lambda: Cut.of(self._eval_packs()), step=self._state.step, what="evaluation"
            )

    def _eval_packs(self) -> Packs:
        rows, most_rows = self._preparation.eval_rows, self._args.per_device_eval_batch_size
        every = range(len(rows))
        return pack_rows(rows, every, self._memory.pack_tokens, most_rows, shares_prefixes=True)

    @property
    def survived(self) -> dict[str, Any]:
        """Return what was learnt of the memory on the way and which steps were skipped, as JSON has it."""
        return {"out_of_memory": self._memory.events, "skipped_steps": self._skipped.steps}

    def check_stop(self) -> None:
        """Raise `StopAsked` if a signal has come, `OutputError` if the run's folder has gone."""
        self._lock.check()
        self._signals.check()

    def save(self, state: LoopState) -> None:
        """Save a checkpoint, beside the next steps where it is a copy, and remove those not to be kept."""
        with self._journal.phase("saving"):
            snapshot = self._parts.take_snapshot(
                state.step,
                {
                    "loop": state.as_record(),
                    "evaluations": {
                        step: (found.loss, found.num_supervised_tokens)
                        for step, found in self._evaluations.items()
                    },
                    "learning_rate": self._learning_rate,
                    "train_loss": self._train_loss,
                    "pack_tokens": self._memory.pack_tokens,
                    **self.survived,
                    "journal": self._journal.as_record(),
                },
            )
            in_background = self._parts.is_copied
            self._saver.save(snapshot, best_step=state.best_step, in_background=in_background)

    def _save_before_leaving(self) -> None:
        """Save where the run stands, unless that is saved already or nothing is to be saved."""
        state = self._state
        is_saved = state.is_settled and self._saver.saved_step == state.step
        if state.step and not is_saved and self._saves_checkpoints:
            self.save(state)

    def record(self, record: StepRecord, state: LoopState) -> None:
        """Write down what happened since the last record; step 0 has the evaluation before training."""
        if record.evaluation:
            self._evaluations[record.step] = record.evaluation
        if not record.step:
            assert record.evaluation is not None
            self._journal.write_baseline(record.evaluation)
            return
        self._train_loss = record.train_loss
        self._journal.write(record, self._learning_rate)

    def finish(self, state: LoopState) -> RunResult:
        """Put the weights of the best evaluation into the model where that is asked for; sum the run up."""
        plan = self._preparation.plan
        chosen_step = state.step
        if plan.saves_best and state.best_step:
            chosen_step = state.best_step
            if chosen_step != state.step:
                restore_weights(self._model, read_checkpoint(self._checkpoints, chosen_step))
            terminal.say(f"the final model is that of step {chosen_step}, the best {plan.metric}")
        if state.stopped_early:
            terminal.say(f"stopped at step {state.step}: {plan.metric} no longer got better")
        evaluation = self._evaluations.get(chosen_step)
        peak_flops = measure_peak_flops(self._preparation.device.kind, self._preparation.precision.name)
        account = self._account
        return RunResult(
            final_model=self._preparation.output_dir / FINAL_MODEL_FOLDER,
            num_steps=state.step,
            num_epochs=state.step / plan.steps_per_epoch,
            train_loss=self._train_loss,
            eval_loss=evaluation.loss if evaluation else None,
            eval_perplexity=evaluation.perplexity if evaluation else None,
            best_step=state.best_step or None,
            stopped_early=state.stopped_early,
            num_tokens=account.num_tokens,
            num_supervised_tokens=account.num_supervised_tokens,
            train_seconds=account.step_seconds,
            flops_per_second=account.flops / account.step_seconds,
            part_of_peak=account.flops / account.step_seconds / peak_flops,
            peak_memory_bytes=peak_memory_bytes(self._preparation.device.kind),
        )

    def _sum_loss(self, step: int, pack: Pack) -> torch.Tensor:
        self._dropout_plan.enter_pack(
            step, pack.row_indices, pack.document_lengths, pack.supervised_positions_S
        )
        with self._offload.around_forward():
            return self._packed.sum_loss(pack)

    def _flops_of(self, packs: Packs) -> float:
        request = self._preparation.memory.cut.request
        return sum(training_flops(request, RowLengths(*size)) for size in packs.sizes())

    def _show_rows(self, row_indices: Sequence[int]) -> str:
        numbers = [str(self._preparation.train_rows.row_numbers_N[index]) for index in row_indices[:8]]
        more = f" and {len(row_indices) - 8} more" if len(row_indices) > 8 else ""
        return ", ".join(numbers) + more
