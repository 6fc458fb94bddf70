"""When a run steps, evaluates, saves and stops, from its strategy and the number of its rows."""

from __future__ import annotations

from llamafarm.strategy.schema import EpochRange, Strategy, TrainingArgs, fixed_count
from llamafarm.training.loop import Every, LoopPlan


def plan_loop(strategy: Strategy, num_train_rows: int, *, has_evaluation: bool) -> LoopPlan:
    """Return when to step, evaluate, save and stop."""
    args, preprocessing = strategy.training_args, strategy.data_preprocessing
    epochs = args.num_train_epochs
    is_range = isinstance(epochs, EpochRange)
    evaluate_every = _evaluation_rhythm(args) if has_evaluation else None
    seed = strategy.environment.seed
    return LoopPlan(
        num_rows=num_train_rows,
        rows_per_step=fixed_count(args.per_device_train_batch_size)
        * fixed_count(args.gradient_accumulation_steps),
        num_epochs=float(epochs.maximum) if isinstance(epochs, EpochRange) else float(epochs),
        min_epochs=float(epochs.minimum) if isinstance(epochs, EpochRange) else 0.0,
        shuffle=preprocessing.shuffle,
        seed=seed if preprocessing.seed is None else preprocessing.seed,
        max_steps=args.max_steps,
        evaluate_every=evaluate_every,
        evaluates_first=args.eval_on_start and evaluate_every is not None,
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
