"""Everything that can be known before the first step: data, template, tokens, device, the plan of the loop.

`setup` shows a `Preparation`, `run` trains it. Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llamafarm.data.corpus import conversation_key, drop_repeats, split_rows
from llamafarm.data.encode import EncodedRow, encode_conversations
from llamafarm.data.records import Conversation, DataFile, read_data_file
from llamafarm.data.template import ChatTemplate
from llamafarm.errors import DataError, StrategyError
from llamafarm.hardware import Device, PrecisionChoice, choose_precision, find_device
from llamafarm.model.load import Base, find_base, load_config, load_tokenizer, tokenize_with
from llamafarm.model.prompt import build_template
from llamafarm.strategy.load import LoadedStrategy, resolve_path
from llamafarm.strategy.schema import DataPreprocessing, EpochRange, Strategy, TrainingArgs
from llamafarm.training.loop import Every, LoopPlan

# The guide's recommendation where evaluation is asked for and no rows are given for it.
_RECOMMENDED_EVAL_PERCENT = 10.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that was settled for the user: what, to which value, and why."""

    setting: str
    value: str
    why: str


@dataclass(slots=True)
class Preparation:
    """A run that could start now."""

    base: Base
    tokenizer: Any
    template: ChatTemplate
    device: Device
    precision: PrecisionChoice
    train_rows: list[EncodedRow]
    eval_rows: list[EncodedRow]
    data_files: list[DataFile]
    plan: LoopPlan
    max_length: int
    output_dir: Path
    choices: list[Choice] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def prepare(loaded: LoadedStrategy, *, may_download: bool = True) -> Preparation:
    """Settle and check everything that a run needs. Raises the error of whatever is wrong first.

    Without `may_download`, the base model must lie on this machine already.
    """
    strategy = loaded.strategy
    _check_supported(loaded)
    choices: list[Choice] = []
    warnings: list[str] = []

    device = find_device(strategy.hardware.device)
    choices.append(Choice("device", device.description, device.why))
    precision = _settle_precision(strategy, device)
    choices.append(Choice("precision", precision.name, precision.why))
    base = replace(_settle_base(strategy, choices), may_download=may_download)

    files = _read_files(loaded)
    train, evaluation = _settle_rows(loaded, files, choices, warnings)
    tokenizer = load_tokenizer(base)
    template, template_origin = build_template(
        tokenizer, strategy.prompt_template.format, strategy.prompt_template.system
    )
    choices.append(Choice("template", f"answers end with {template.end_of_turn}", template_origin))

    context_length = int(getattr(load_config(base), "max_position_embeddings", 0) or 10**9)
    max_length = min(strategy.data_preprocessing.max_length or context_length, context_length)
    limits = _Limits.of(strategy.data_preprocessing, max_length)
    tokenize = tokenize_with(tokenizer)
    train_rows = limits.keep(encode_conversations(train, template, tokenize), "training", warnings)
    eval_rows = limits.keep(encode_conversations(evaluation, template, tokenize), "evaluation", warnings)
    if not train_rows:
        raise DataError(
            f"no training row is left within {max_length} tokens",
            where=str(files[0].path),
            remedy="Raise data_preprocessing.max_length, or shorten the rows.",
        )
    return Preparation(
        base=base,
        tokenizer=tokenizer,
        template=template,
        device=device,
        precision=precision,
        train_rows=train_rows,
        eval_rows=eval_rows,
        data_files=files,
        plan=plan_loop(strategy, len(train_rows), has_evaluation=bool(eval_rows)),
        max_length=max_length,
        output_dir=output_dir_of(loaded),
        choices=choices,
        warnings=warnings,
    )


def output_dir_of(loaded: LoadedStrategy) -> Path:
    """Return the folder of a strategy's run."""
    return Path(loaded.strategy.training_args.output_dir or f"./fine_tuned_models/{loaded.key}")


def plan_loop(strategy: Strategy, num_train_rows: int, *, has_evaluation: bool) -> LoopPlan:
    """Return when to step, evaluate, save and stop."""
    args, preprocessing = strategy.training_args, strategy.data_preprocessing
    epochs = args.num_train_epochs
    is_range = isinstance(epochs, EpochRange)
    evaluate_every = _evaluation_rhythm(args) if has_evaluation else None
    seed = strategy.environment.seed
    return LoopPlan(
        num_rows=num_train_rows,
        rows_per_step=args.per_device_train_batch_size * args.gradient_accumulation_steps,
        num_epochs=float(epochs.maximum) if isinstance(epochs, EpochRange) else float(epochs),
        min_epochs=float(epochs.minimum) if isinstance(epochs, EpochRange) else 0.0,
        shuffle=preprocessing.shuffle,
        seed=seed if preprocessing.seed is None else preprocessing.seed,
        max_steps=args.max_steps,
        evaluate_every=evaluate_every,
        save_every=_saving_rhythm(args, evaluate_every) if strategy.monitoring.save_checkpoints else None,
        saves_best=args.load_best_model_at_end and evaluate_every is not None,
        log_every_steps=args.logging_steps,
        metric=args.metric_for_best_model,
        patience=args.early_stopping_patience or (1 if is_range and evaluate_every else None),
        threshold=args.early_stopping_threshold,
    )


def _evaluation_rhythm(args: TrainingArgs) -> Every | None:
    when = args.eval_strategy or ("steps" if args.eval_steps else "epoch")
    # 50 is the lower end of what the guide recommends for eval_steps.
    return {"no": None, "epoch": Every(None), "steps": Every(args.eval_steps or 50)}[when]


def _saving_rhythm(args: TrainingArgs, evaluate_every: Every | None) -> Every | None:
    if args.save_strategy is None and not args.save_steps:
        return evaluate_every or Every(None)
    when = args.save_strategy or "steps"
    return {"no": None, "epoch": Every(None), "steps": Every(args.save_steps or 500)}[when]


def _check_supported(loaded: LoadedStrategy) -> None:
    method = loaded.strategy.method.type
    if method != "lora":
        raise StrategyError(
            f"method.type {method} cannot be trained by this version, only lora",
            where=str(loaded.origins["method.type"]),
            remedy="Write type: lora.",
        )


def _settle_precision(strategy: Strategy, device: Device) -> PrecisionChoice:
    precision = getattr(strategy.hardware.precision, device.kind)
    return choose_precision(
        device,
        strategy.hardware.optimization.mixed_precision,
        use_fp16=precision.use_fp16,
        use_bf16=precision.use_bf16,
    )


def _settle_base(strategy: Strategy, choices: list[Choice]) -> Base:
    base = find_base(strategy.base_model.huggingface_id, strategy.base_model.cache_dir)
    is_named = strategy.base_model.huggingface_id is not None
    why = "as the strategy says" if is_named else "the strategy names none, so the embedded one is used"
    choices.append(Choice("base model", base.name, why))
    return base


def _read_files(loaded: LoadedStrategy) -> list[DataFile]:
    dataset = loaded.strategy.dataset
    if dataset.train_file is None:
        raise StrategyError(
            "the strategy names no training data",
            where=f"{loaded.file or 'preset'}: {loaded.key}",
            remedy="Add dataset.train_file, or pass --train-dataset.",
        )
    paths = [dataset.train_file] + ([dataset.eval_file] if dataset.eval_file else [])
    return [
        read_data_file(
            resolve_path(path, loaded),
            format_name=dataset.format,
            filter_empty=loaded.strategy.data_preprocessing.filter_empty,
        )
        for path in paths
    ]


def _settle_rows(
    loaded: LoadedStrategy, files: Sequence[DataFile], choices: list[Choice], warnings: list[str]
) -> tuple[list[Conversation], list[Conversation]]:
    """Return the training and the evaluation conversations."""
    dataset, args = loaded.strategy.dataset, loaded.strategy.training_args
    parts = [list(file.conversations) for file in files]
    for file in files:
        if file.num_empty_rows:
            warnings.append(f"{file.num_empty_rows} rows of {file.path} have an empty turn and are left out")
    if loaded.strategy.data_preprocessing.remove_duplicates:
        parts = _without_repeats(parts, warnings)
    if len(parts) == 2:
        if dataset.eval_split is not None:
            choices.append(
                Choice("evaluation rows", str(files[1].path), "eval_file, so eval_split is not used")
            )
        _warn_of_leaks(parts, files, warnings)
        return parts[0], parts[1]
    wants_evaluation = args.eval_strategy in ("steps", "epoch") or bool(
        args.eval_steps or args.load_best_model_at_end or args.early_stopping_patience
    )
    if dataset.eval_split is None and not (wants_evaluation and args.eval_strategy != "no"):
        return parts[0], []
    percent = dataset.eval_split * 100 if dataset.eval_split else _RECOMMENDED_EVAL_PERCENT
    why = "dataset.eval_split" if dataset.eval_split else "evaluation is asked for; the guide recommends 10 %"
    choices.append(Choice("evaluation rows", f"{percent:g} % of the training file", why))
    keys = [conversation_key(conversation) for conversation in parts[0]]
    train, evaluation = split_rows(
        parts[0], keys, percent, dataset.seed, str(files[0].path), shuffle=dataset.shuffle
    )
    return train, evaluation


def _without_repeats(
    parts: Sequence[Sequence[Conversation]], warnings: list[str]
) -> list[list[Conversation]]:
    """Drop repeated rows, within each file and between the two; the training file keeps its rows."""
    kept = [drop_repeats(part) for part in parts]
    if len(kept) == 2:
        trained = {conversation_key(conversation) for conversation in kept[0]}
        kept[1] = [conversation for conversation in kept[1] if conversation_key(conversation) not in trained]
    num_dropped = sum(map(len, parts)) - sum(map(len, kept))
    if num_dropped:
        warnings.append(f"{num_dropped} repeated rows are left out (data_preprocessing.remove_duplicates)")
    return kept


def _warn_of_leaks(
    parts: Sequence[Sequence[Conversation]], files: Sequence[DataFile], warnings: list[str]
) -> None:
    trained = {conversation_key(conversation) for conversation in parts[0]}
    leaked = [row.row_number for row in parts[1] if conversation_key(row) in trained]
    if leaked:
        warnings.append(
            f"{len(leaked)} evaluation rows are training rows, too, so that their loss flatters: rows "
            f"{', '.join(map(str, leaked[:5]))} of {files[1].path}; data_preprocessing.remove_duplicates: "
            "true drops them"
        )


@dataclass(frozen=True, slots=True)
class _Limits:
    """The lengths in tokens that a row must keep."""

    max_length: int
    max_input_length: int | None
    max_output_length: int | None

    @classmethod
    def of(cls, preprocessing: DataPreprocessing, max_length: int) -> _Limits:
        return cls(max_length, preprocessing.max_input_length, preprocessing.max_output_length)

    def keep(self, rows: Sequence[EncodedRow], kind: str, warnings: list[str]) -> list[EncodedRow]:
        """Return the rows within the limits; the others are left out whole, and counted."""
        kept = [row for row in rows if self._fits(row)]
        if len(kept) < len(rows):
            longest = max(row.num_tokens for row in rows)
            warnings.append(
                f"{len(rows) - len(kept)} of {len(rows)} {kind} rows are too long and left out: the longest "
                f"has {longest} tokens, and max_length is {self.max_length} (data_preprocessing.max_length)"
            )
        return kept

    def _fits(self, row: EncodedRow) -> bool:
        num_answer_tokens = row.num_supervised_tokens
        num_prompt_tokens = row.num_tokens - num_answer_tokens
        return (
            row.num_tokens <= self.max_length
            and num_prompt_tokens <= (self.max_input_length or num_prompt_tokens)
            and num_answer_tokens <= (self.max_output_length or num_answer_tokens)
        )
