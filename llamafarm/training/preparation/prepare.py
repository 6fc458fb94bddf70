"""Everything that can be known before the first step: data, template, tokens, device, the plan of the loop.

`setup` shows a `Preparation`, `run` trains it. Nothing is written here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llamafarm.confined import confined
from llamafarm.data.encoding.fitting import Limits
from llamafarm.data.encoding.rows import EncodedRows
from llamafarm.data.encoding.template import ChatTemplate
from llamafarm.data.reading.records import FileReport, ReadOptions
from llamafarm.errors import DataError
from llamafarm.hardware.device import Device, find_device
from llamafarm.hardware.precision import PrecisionChoice
from llamafarm.model.hub import ModelSource, find_source
from llamafarm.model.load import (
    Base,
    find_base,
    load_config,
    load_model,
    load_tokenizer,
    use_tokenizer_threads,
)
from llamafarm.model.prompt import build_template
from llamafarm.planning.fit import MemoryDecision
from llamafarm.planning.guide.match import most_rows_at_once
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.schema import Method, Strategy
from llamafarm.training.export import check_export, describe_export, wants_export
from llamafarm.training.loop import LoopPlan
from llamafarm.training.preparation.batch import settle_batch_size
from llamafarm.training.preparation.gate import check_gate, gate_figures
from llamafarm.training.preparation.memory import PreparedRows, settle_method_and_memory
from llamafarm.training.preparation.method import check_method, prepare_method
from llamafarm.training.preparation.monitoring import check_monitoring
from llamafarm.training.preparation.precision import settle_precision
from llamafarm.training.preparation.rows import (
    Choice,
    Tables,
    limits_of,
    read_tables,
    wants_evaluation,
)
from llamafarm.training.preparation.selection import Selection, settle_rows
from llamafarm.training.preparation.steps import plan_loop


@dataclass(slots=True)
class Preparation:
    """A run that could start now."""

    base: Base
    base_shown: str
    source: ModelSource
    tokenizer: Any
    template: ChatTemplate
    device: Device
    precision: PrecisionChoice
    method: Method
    selection: Selection
    reading: ReadOptions
    template_origin: str
    data_files: list[FileReport]
    plan: LoopPlan
    memory: MemoryDecision
    max_length: int
    output_dir: Path
    choices: list[Choice] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def train_rows(self) -> EncodedRows:
        """Return the rows to train on."""
        return self.selection.train_rows

    @property
    def eval_rows(self) -> EncodedRows:
        """Return the rows to evaluate on; there may be none."""
        return self.selection.eval_rows


def prepare(
    loaded: LoadedStrategy, *, scratch_dir: Path | None = None, precision_before: str | None = None
) -> Preparation:
    """Settle and check everything that a run needs. Raises the error of whatever is wrong first.

    A base model's configuration and tokenizer are downloaded where they are not here yet; into `scratch_dir`,
    where that is given, so that nothing stays. A run that goes on computes in `precision_before`, if the
    strategy leaves it to the machine.
    """
    strategy = loaded.strategy
    choices: list[Choice] = []
    warnings: list[str] = check_method(loaded)
    check_monitoring(loaded)

    device = _settle_device(strategy, choices)
    precision = settle_precision(strategy, device, choices, precision_before)
    base = _settle_base(loaded, choices)
    source = find_source(base.source, base.cache_dir)
    if scratch_dir is not None and not source.is_local:
        base = replace(base, cache_dir=str(scratch_dir))

    method = prepare_method(strategy.method, base, device, choices, memory_is_short=False)

    tokenizer, template, template_origin = _settle_template(loaded, base, choices)

    limits = limits_of(strategy.data_preprocessing, load_config(base))
    _use_tokenizer_threads(strategy)
    tables = read_tables(loaded, tokenizer, template, limits, scratch_dir)
    files = [table.report for table in tables.all]
    selection = settle_rows(loaded, tables, limits, choices, warnings)
    train_rows, eval_rows = selection.train_rows, selection.eval_rows
    _check_rows_left(strategy, train_rows, eval_rows, tables, limits)
    plan = _settle_loop(strategy, len(train_rows), device, choices, has_evaluation=bool(eval_rows))
    figures = gate_figures(base, tokenizer, template, method.type)
    figures.add(train_rows)
    warnings += check_gate(figures, plan.steps_per_epoch, strategy.dataset.allow, tables.shown)
    rows = PreparedRows(train_rows, eval_rows, plan, strategy.training_args.per_device_eval_batch_size)
    method, memory = settle_method_and_memory(
        strategy, method, base, source, device, precision.name, rows, choices
    )
    return Preparation(
        base=base,
        base_shown=strategy.base_model.name or base.name,
        source=source,
        tokenizer=tokenizer,
        template=template,
        device=device,
        precision=precision,
        method=method,
        selection=selection,
        reading=ReadOptions.of(strategy.dataset, strategy.data_preprocessing),
        template_origin=template_origin,
        data_files=files,
        plan=plan,
        memory=memory,
        max_length=limits.max_length,
        output_dir=output_dir_of(loaded),
        choices=choices,
        warnings=warnings,
    )


def _settle_template(
    loaded: LoadedStrategy, base: Base, choices: list[Choice]
) -> tuple[Any, ChatTemplate, str]:
    """Return the tokenizer, the template and where it is from; an export must have a place for both."""
    wanted, tokenizer = loaded.strategy.prompt_template, load_tokenizer(base)
    template, origin = build_template(tokenizer, wanted.format, wanted.system)
    choices.append(Choice("template", f"answers end with {template.end_of_turn}", origin))
    if wants_export(loaded.strategy):
        check_export(loaded, base, tokenizer, template)
        choices.append(Choice("export", *describe_export(loaded)))
    return tokenizer, template, origin


def _settle_loop(
    strategy: Strategy, num_train_rows: int, device: Device, choices: list[Choice], *, has_evaluation: bool
) -> LoopPlan:
    """Return the plan of the loop; what was chosen for an `auto` batch is added to `choices`."""
    most_rows = most_rows_at_once(device.kind, device.name, device.memory_gb)
    args, chosen = settle_batch_size(strategy.training_args, num_train_rows, most_rows, device.description)
    choices += chosen
    settled = strategy.model_copy(update={"training_args": args})
    plan = plan_loop(settled, num_train_rows, has_evaluation=has_evaluation)
    if plan.saves_best and plan.save_every is None:
        choices.append(Choice("checkpoints", "the best one only", "load_best_model_at_end reads it back"))
    return plan


def _use_tokenizer_threads(strategy: Strategy) -> None:
    num_threads = strategy.training_args.dataloader_num_workers
    if num_threads is not None:
        use_tokenizer_threads(num_threads)


def check_what_was_away(preparation: Preparation, strategy: Strategy) -> list[str]:
    """Return what the gate warns of beside what it did, now that the base model's weights are here.

    Raises `DataError` for what blocks. Nothing is new where they were here from the beginning.
    """
    if preparation.source.is_local:
        return []
    figures = gate_figures(
        preparation.base, preparation.tokenizer, preparation.template, preparation.method.type
    )
    figures.add(preparation.train_rows)
    where = ", ".join(str(file.path) for file in preparation.data_files)
    warnings = check_gate(figures, preparation.plan.steps_per_epoch, strategy.dataset.allow, where)
    return [warning for warning in warnings if warning not in preparation.warnings]


def load_once(preparation: Preparation) -> None:
    """Load the base model and let it go: what is not here yet is downloaded, what is damaged is found."""
    load_model(preparation.base, dtype=torch.bfloat16, device=torch.device("cpu"))


def _check_rows_left(
    strategy: Strategy,
    train_rows: EncodedRows,
    eval_rows: EncodedRows,
    tables: Tables,
    limits: Limits,
) -> None:
    """Raise the error of training, or of evaluation that is asked for, without a row."""
    if not train_rows:
        raise DataError(
            f"no training row is left within {limits.max_length} tokens",
            where=tables.shown,
            remedy="Raise data_preprocessing.max_length, or shorten the rows.",
        )
    if strategy.training_args.eval_strategy != "no" and wants_evaluation(strategy) and not eval_rows:
        raise DataError(
            "evaluation is asked for, and no evaluation row is left",
            where=str(tables.all[-1].report.path),
            remedy="Give rows that are not trained on and fit max_length, or set eval_strategy: no.",
        )


def base_name_of(loaded: LoadedStrategy) -> str | None:
    """Return the base model that a strategy names: a folder here or beside its file, else an id."""
    name = loaded.strategy.base_model.huggingface_id
    if name is None or loaded.file is None or Path(name).expanduser().is_dir():
        return name
    beside = loaded.file.parent / name
    return str(beside) if beside.is_dir() else name


def output_dir_of(loaded: LoadedStrategy) -> Path:
    """Return the folder of a strategy's run. Raises `InputError` for a name that cannot be one's."""
    if (named := loaded.strategy.training_args.output_dir) is not None:
        return Path(named)
    return confined(Path("fine_tuned_models"), loaded.key, where="the strategy's name")


def _settle_device(strategy: Strategy, choices: list[Choice]) -> Device:
    device = find_device(strategy.hardware.device)
    choices.append(Choice("device", device.description, device.why))
    return device


def _settle_base(loaded: LoadedStrategy, choices: list[Choice]) -> Base:
    name = base_name_of(loaded)
    base = find_base(name, loaded.strategy.base_model.cache_dir)
    is_named = name is not None
    why = "as the strategy says" if is_named else "the strategy names none, so the embedded one is used"
    choices.append(Choice("base model", base.name, why))
    return base
