"""What follows from the model and the examples: method, schedule, evaluation, data, generation."""

from __future__ import annotations

import math
from collections.abc import Iterator

from llamafarm.planning.guide.advice import SPLITS
from llamafarm.planning.guide.numbers import show_parameters
from llamafarm.planning.guide.parameters import EVAL_STEPS, HYPERPARAMETERS, LoraRow, lora_row
from llamafarm.planning.guide.settings import SCHEDULER, SettingGroup
from llamafarm.planning.recommend.facts import Facts, Recommendation, memory_needed_gb, uses_4_bits
from llamafarm.strategy.spelling import MOVED

DEFAULT_TRAIN_FILE = "data_train.jsonl"


def recommend_model(facts: Facts) -> Iterator[Recommendation]:
    """Yield the `base_model` section, where a model was named."""
    if facts.model is not None:
        yield Recommendation("base_model.huggingface_id", facts.model, "as given")


def recommend_method(facts: Facts, case: SettingGroup) -> Iterator[Recommendation]:
    """Yield the `method` section: the size's row, or less where the use case asks for less."""
    needed = memory_needed_gb(facts.num_parameters)
    table = "guide, Minimum Requirements by Model Size"
    size = show_parameters(facts.num_parameters)
    rule = f"{table}: {size} needs {needed:.3g}GB, and there are {facts.memory_gb:.3g}"
    if uses_4_bits(facts):
        yield Recommendation("method.type", "qlora", f"{rule}: the base in 4 bits")
    else:
        yield Recommendation("method.type", "lora", rule)
    row = lora_row(facts.num_parameters)
    by_size = f"guide, LoRA by model size: {row.size}"
    rank = case.number("method.r")
    if rank is not None and rank < row.r:
        yield from _from_case(case, "method.r")
        yield Recommendation("method.alpha", int(2 * rank), "guide, Core LoRA Parameters: usually 2*r")
    else:
        yield Recommendation("method.r", row.r, by_size)
        yield Recommendation("method.alpha", row.alpha, by_size)
    yield from _dropout(case, row, by_size)
    modules = case.find("method.target_modules")
    if modules is not None and _has_fewer(modules.value, row.target_modules):
        yield from _from_case(case, "method.target_modules")
    else:
        yield Recommendation("method.target_modules", row.target_modules, by_size)


def _dropout(case: SettingGroup, row: LoraRow, by_size: str) -> Iterator[Recommendation]:
    """Yield the higher of both, against overfitting; the lower where many examples do that work."""
    dropout = case.number("method.dropout") or row.dropout
    if dropout == row.dropout or (dropout < row.dropout) != (case.key == "large"):
        yield Recommendation("method.dropout", row.dropout, by_size)
    else:
        yield from _from_case(case, "method.dropout")


def _has_fewer(modules: object, than: object) -> bool:
    if not isinstance(modules, tuple):
        return False
    return not isinstance(than, tuple) or len(modules) < len(than)


def recommend_schedule(case: SettingGroup) -> Iterator[Recommendation]:
    """Yield how long and how fast to train."""
    yield from _from_case(case, "training_args.num_train_epochs", "training_args.learning_rate")
    rule = f"guide, {SCHEDULER.title}: {SCHEDULER.settings[0].reason}"
    yield Recommendation("training_args.lr_scheduler_type", SCHEDULER.settings[0].value, rule)
    typical = next(row.typical for row in HYPERPARAMETERS if row.name == "warmup_ratio")
    of_case = list(_from_case(case, "training_args.warmup_ratio"))
    rule = f"guide, Training Hyperparameters: typically {typical}, helps stability"
    yield from of_case or [Recommendation("training_args.warmup_ratio", typical.low, rule)]
    yield from _from_case(case, "training_args.weight_decay")


def recommend_evaluation(facts: Facts, case: SettingGroup, rows_per_step: int) -> Iterator[Recommendation]:
    """Yield when to evaluate and to save; by epoch where the run has too few steps for the guide's."""
    eval_strategy = case.find("training_args.eval_strategy")
    if eval_strategy is not None and eval_strategy.value == "no":
        yield from _from_case(case, "training_args.eval_strategy", "training_args.save_strategy")
        return
    num_steps = _num_steps(facts, case, rows_per_step)
    if eval_strategy is not None and eval_strategy.value == "epoch":
        yield from _from_case(case, "training_args.eval_strategy")
    else:
        steps = case.number("training_args.eval_steps") or EVAL_STEPS.low
        yield from _every(case, "eval", int(steps), num_steps)
        if (save_steps := case.number("training_args.save_steps")) is not None:
            yield from _every(case, "save", int(save_steps), num_steps)
    rule = "guide, Evaluation Parameters: use best, not last"
    yield Recommendation("training_args.load_best_model_at_end", True, rule)
    rule = "guide, Evaluation Parameters: model selection"
    yield Recommendation("training_args.metric_for_best_model", "eval_loss", rule)


def _every(case: SettingGroup, what: str, steps: int, num_steps: int | None) -> Iterator[Recommendation]:
    """Yield that something is done every `steps` steps, if the run has enough of them to do it twice."""
    strategy, interval = f"training_args.{what}_strategy", f"training_args.{what}_steps"
    if num_steps is not None and num_steps < 2 * steps:
        rule = (
            f"the run has about {num_steps} steps, too few to use the guide's {what}_steps of {steps} twice"
        )
        yield Recommendation(strategy, "epoch", rule)
        return
    rule = "guide, Evaluation Parameters: regular evaluation"
    by_guide = [
        Recommendation(strategy, "steps", rule),
        Recommendation(interval, steps, f"{rule}, every {EVAL_STEPS} steps"),
    ]
    for one in by_guide:
        yield next(_from_case(case, one.path), one)


def _num_steps(facts: Facts, case: SettingGroup, rows_per_step: int) -> int | None:
    """Return about how many steps the run has, at most; None where nobody knows."""
    if facts.num_examples is None:
        return None
    epochs = case.find("training_args.num_train_epochs")
    most = float(str(epochs.value).rpartition("-")[2]) if epochs is not None else 1.0
    num_rows = facts.num_examples * (1 - _split_for(case)[0])
    return math.ceil(math.ceil(num_rows / rows_per_step) * most)


def recommend_data(facts: Facts, case: SettingGroup) -> Iterator[Recommendation]:
    """Yield the sections `dataset` and `data_preprocessing`."""
    if facts.train_file is not None:
        yield Recommendation("dataset.train_file", facts.train_file, "as given")
    else:
        yield Recommendation("dataset.train_file", DEFAULT_TRAIN_FILE, "to be replaced: no file was given")
    if case.key != "quick":  # which does not evaluate
        yield Recommendation("dataset.eval_split", *_split_for(case))
    max_length = case.number("data_preprocessing.max_length")
    longest = facts.longest_tokens
    if max_length is not None and longest is not None and longest * _MARGIN > max_length:
        fitting = math.ceil(longest * _MARGIN / 64) * 64
        rule = f"the longest example has about {longest} tokens, too many for the guide's {max_length:g}"
        yield Recommendation("data_preprocessing.max_length", fitting, rule)
    else:
        yield from _from_case(case, "data_preprocessing.max_length")
    yield from _from_case(case, "data_preprocessing.remove_duplicates", "data_preprocessing.filter_quality")


# Lengths are estimates, and the template adds some tokens.
_MARGIN = 1.25


def _split_for(case: SettingGroup) -> tuple[float, str]:
    """Return the part of the rows for evaluation, and the row of the guide that it comes from."""
    if (setting := case.find("training_args.eval_split")) is not None:
        assert isinstance(setting.value, float)
        return setting.value, f"{_rule(case)}: {setting.reason}"
    wanted = {"small": 5, "production": 15}.get(case.key, 10)
    split = next(row for row in SPLITS if row.eval_percent == wanted)
    return wanted / 100, f"guide, Train/Eval Split Strategies: {split.ratio}, {split.use_case}"


def recommend_generation(case: SettingGroup) -> Iterator[Recommendation]:
    """Yield the sections `prompt_template` and `generation`, where the use case has them."""
    for setting in case.settings:
        path = MOVED.get(setting.path, setting.path)
        if path.startswith(("prompt_template.", "generation.")):
            (one,) = _from_case(case, setting.path)
            yield Recommendation(path, one.value, one.rule)


def _from_case(case: SettingGroup, *paths: str) -> Iterator[Recommendation]:
    for path in paths:
        if (setting := case.find(path)) is not None:
            reason = f": {setting.reason}" if setting.reason else ""
            yield Recommendation(path, setting.value, f"{_rule(case)}{reason}")


def _rule(case: SettingGroup) -> str:
    return f"guide, use case {case.title}"
