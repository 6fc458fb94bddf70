"""What is written, shown and watched of a run while it goes on: one line of metrics after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from llamafarm import terminal
from llamafarm.evaluation.loss import LossResult
from llamafarm.findings.finding import Finding
from llamafarm.findings.history import Settings
from llamafarm.hardware.device import peak_memory_bytes
from llamafarm.hardware.speed import measure_peak_flops
from llamafarm.hardware.utilization import UtilizationMeter, uuid_of
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training.account import Account
from llamafarm.training.live import LiveView, StepFigures
from llamafarm.training.loop import LoopPlan, StepRecord
from llamafarm.training.preparation.prepare import Preparation
from llamafarm.training.record import MetricsWriter
from llamafarm.training.step import StepResult
from llamafarm.training.trackers.open import Trackers, track_run
from llamafarm.training.watch import Watch


class Journal:
    """A run's metrics file, trackers, live view and watch, as one context.

    `account` is what the run has cost; the session adds to it. `peak_flops` is the speed of plain matrix
    products on this device, in operations a second.
    """

    def __init__(
        self,
        plan: LoopPlan,
        settings: Settings,
        metrics: MetricsWriter,
        trackers: Trackers,
        *,
        title: str,
        device_kind: str,
        peak_flops: float,
        memory_limit_bytes: int,
    ) -> None:
        self.account = Account()
        self._plan = plan
        self._device_kind = device_kind
        self._peak_flops = peak_flops
        self._memory_limit_bytes = memory_limit_bytes
        self._metrics = metrics
        self._trackers = trackers
        self._title = title
        self._view = LiveView(title, plan.num_steps, memory_limit_bytes=memory_limit_bytes)
        self._meter = UtilizationMeter(uuid_of(device_kind))
        self._watch = Watch(settings, _say)
        self._open = ExitStack()
        self._recorded_seconds = 0.0

    def __enter__(self) -> Self:
        self._open.callback(self._metrics.close)
        for part in (self._trackers, self._meter, self._view):
            self._open.enter_context(part)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count and show what is no step: `evaluating` or `saving`."""
        self._view.on_phase(name)
        with self.account.phase(name):
            yield
        self._view.on_phase(None)

    def take_in_step(
        self, step: int, result: StepResult, learning_rate: float, seconds: float, flops: float
    ) -> None:
        """Show a step."""
        self._view.on_step(
            StepFigures(
                step=step,
                num_steps=self._plan.num_steps,
                epoch=step / self._plan.steps_per_epoch,
                num_epochs=self._plan.num_steps / self._plan.steps_per_epoch,
                train_loss=result.train_loss,
                learning_rate=learning_rate,
                grad_norm=result.grad_norm,
                num_tokens=result.num_tokens,
                seconds=seconds,
                part_of_peak=flops / seconds / self._peak_flops,
                memory_bytes=peak_memory_bytes(self._device_kind),
                memory_limit_bytes=self._memory_limit_bytes,
                gpu_utilization=self._meter.latest,
            )
        )

    def write_baseline(self, evaluation: LossResult) -> None:
        """Write down the evaluation before the first step, as step 0."""
        self._view.on_evaluation(0, evaluation.loss, evaluation.perplexity, is_best=False)
        self._write(_line(0, 0.0, evaluation))
        terminal.say(
            f"before training  eval_loss {evaluation.loss:.4f}  eval_perplexity {evaluation.perplexity:.3f}"
        )

    def write(self, record: StepRecord, learning_rate: float) -> None:
        """Write a line of metrics, and say how an evaluation went."""
        evaluation = record.evaluation
        seconds = self.account.step_seconds - self._recorded_seconds
        self._recorded_seconds = self.account.step_seconds
        if evaluation:
            self._view.on_evaluation(
                record.step, evaluation.loss, evaluation.perplexity, is_best=record.is_best
            )
            best = "  best so far" if record.is_best else ""
            terminal.say(
                f"step {record.step}  epoch {record.epoch:.2f}  train_loss {record.train_loss:.4f}  "
                f"eval_loss {evaluation.loss:.4f}  eval_perplexity {evaluation.perplexity:.3f}{best}"
            )
        self._write(
            _line(record.step, record.epoch, evaluation)
            | {
                "train_loss": record.train_loss,
                "learning_rate": learning_rate,
                "grad_norm": record.grad_norm,
                "tokens": record.num_tokens,
                "supervised_tokens": record.num_supervised_tokens,
                "tokens_per_second": record.num_tokens / seconds,
                "memory_bytes": peak_memory_bytes(self._device_kind),
                "gpu_utilization": self._meter.latest,
                "seconds": self.account.step_seconds,
            }
        )

    def as_record(self) -> dict[str, Any]:
        """Return what it takes to go on with the journal, as JSON has it; all metrics are on the disk."""
        return {
            "metrics_bytes": self._metrics.sync(),
            "recorded_seconds": self._recorded_seconds,
            "account": asdict(self.account),
        }

    def restore(self, record: Mapping[str, Any], step: int) -> None:
        """Go on from what `as_record` gave, at the run's `step`; metrics written since are cut off."""
        for name in asdict(self.account):
            setattr(self.account, name, record["account"][name])
        self._recorded_seconds = record["recorded_seconds"]
        self._watch.restore(self._metrics.cut_to(record["metrics_bytes"]))
        self._view = LiveView(
            self._title, self._plan.num_steps, memory_limit_bytes=self._memory_limit_bytes, num_done=step
        )

    def conclude(self) -> list[Finding]:
        """Return what the figures of the whole run show."""
        return self._watch.conclude(self.account.seconds, self._utilization)

    @property
    def _utilization(self) -> tuple[float | None, int]:
        return self._meter.mean, self._meter.num_samples

    def _write(self, line: dict[str, Any]) -> None:
        self._metrics.write(line)
        self._trackers.log(line["step"], {name: value for name, value in line.items() if name != "step"})
        self._watch.observe(line, self.account.seconds, self._utilization)


def open_journal(loaded: LoadedStrategy, preparation: Preparation) -> Journal:
    """Return the journal of a run that begins now in its output folder."""
    strategy, plan, folder = loaded.strategy, preparation.plan, preparation.output_dir
    kind = preparation.device.kind
    settings = Settings(
        num_steps=plan.num_steps,
        steps_per_epoch=plan.steps_per_epoch,
        learning_rate=strategy.training_args.learning_rate,
        num_epochs=plan.num_epochs,
        max_grad_norm=strategy.training_args.max_grad_norm,
        keeps_best=plan.saves_best,
        stops_early=plan.patience is not None,
        num_eval_rows=len(preparation.eval_rows),
        num_leaked_rows=preparation.selection.num_leaked_rows,
    )
    return Journal(
        plan,
        settings,
        MetricsWriter(folder, writes_metrics=strategy.monitoring.track_training_metrics),
        track_run(loaded, folder),
        title=f"{loaded.key}: {preparation.base_shown}",
        device_kind=kind,
        peak_flops=measure_peak_flops(kind, preparation.precision.name),
        memory_limit_bytes=preparation.memory.available_bytes,
    )


def _line(step: int, epoch: float, evaluation: LossResult | None) -> dict[str, Any]:
    """Return a line of metrics with all its keys, in which only the evaluation is known."""
    return {
        "step": step,
        "epoch": round(epoch, 6),
        "train_loss": None,
        "eval_loss": evaluation.loss if evaluation else None,
        "eval_perplexity": evaluation.perplexity if evaluation else None,
        "learning_rate": None,
        "grad_norm": None,
        "tokens": None,
        "supervised_tokens": None,
        "tokens_per_second": None,
        "memory_bytes": None,
        "gpu_utilization": None,
        "seconds": 0.0,
    }


def _say(finding: Finding) -> None:
    """Say a finding in a line: a warning as one, a note as a message."""
    (terminal.warn if finding.level == "warning" else terminal.say)(finding.as_line())
