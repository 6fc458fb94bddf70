"""The run itself: the sections `training_args` and `environment`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from llamafarm.strategy.sections.base import (
    AtLeastOne,
    Epochs,
    Fraction,
    NotNegative,
    NotNegativeInt,
    Positive,
    Section,
    or_auto,
    read_no,
)

When = Annotated[Literal["no", "steps", "epoch"], BeforeValidator(read_no)]


class TrainingArgs(Section):
    """The training run: how long, how fast, in which batches, what is measured and kept."""

    output_dir: str | None = Field(default=None, min_length=1)
    """Folder of the run, made where it is not there yet; relative to the working directory. Unset:
    `./fine_tuned_models/<strategy name>`."""
    num_train_epochs: Epochs = 3
    """Passes over the training rows. A range such as `5-10` trains at least 5 and stops, after at most 10,
    when the evaluation loss no longer falls. Time grows in proportion; more risk overfitting."""
    max_steps: AtLeastOne | None = None
    """Optimizer steps after which training ends, whatever the epochs say. Unset: no such limit."""

    per_device_train_batch_size: Annotated[int | Literal["auto"], or_auto(AtLeastOne)] = 4
    """Rows per device and micro-batch. Together with the accumulation and the number of devices it says which
    rows one optimizer step sees: more make steps fewer and steadier. How many are computed at a time follows
    from the memory. `auto` follows the number of rows and the device."""
    per_device_eval_batch_size: AtLeastOne | None = None
    """Most rows of a pack in evaluation: fewer take less memory and more time. Unset: as many as fit."""
    gradient_accumulation_steps: Annotated[int | Literal["auto"], or_auto(AtLeastOne)] = 1
    """Micro-batches per optimizer step: a larger effective batch for no more memory. `auto` follows the
    number of rows and the batch size."""

    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """Highest step size of the schedule. Too high diverges, too low learns nothing; 1e-5 to 5e-4 is usual."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = "linear"
    """How the learning rate falls after the warmup. `constant` has no warmup."""
    warmup_ratio: Fraction = 0.03
    """Part of all steps over which the learning rate rises from 0: more is steadier at the start and learns
    later. 0.03 to 0.1 is usual."""
    warmup_steps: NotNegativeInt = 0
    """Steps over which the learning rate rises from 0; wins over `warmup_ratio` when above 0."""
    weight_decay: NotNegative = 0.0
    """AdamW's decay of the trained weights per step, times the learning rate; 0 to 0.01 is usual."""
    max_grad_norm: NotNegative = 1.0
    """Gradients are scaled down to at most this norm, so that one odd step cannot undo others; 0 leaves them
    as they are. No cost."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do where a step's loss or gradient is not finite, which never reaches the weights: `stop` ends
    the run with the step and its rows named; `skip` leaves such a step out, says so, and ends the run after
    ten of them, or one in a hundred."""
    adam_beta1: Fraction = 0.9
    """AdamW's decay of the running mean of gradients, per step: higher is smoother and slower to turn."""
    adam_beta2: Fraction = 0.999
    """AdamW's decay of the running mean of squared gradients, per step; 0.95 follows changes faster."""
    adam_epsilon: Positive = 1e-8
    """AdamW's term against division by zero; higher makes small gradients count for less."""

    eval_strategy: When | None = None
    """When to evaluate: `no`, every `eval_steps` steps, or after each epoch. Unset: if there are evaluation
    rows, by `eval_steps` where that is given, else by epoch. Each evaluation costs a pass over those rows."""
    eval_steps: AtLeastOne | None = None
    """Optimizer steps between two evaluations; 50 to 100 is usual. Each costs a pass over the evaluation
    rows. Unset: 50 where `eval_strategy` is steps."""
    eval_on_start: bool = True
    """Evaluate once before the first step, wherever there are evaluations: what the base gives, which tells a
    learning rate that is too low and evaluation rows of another kind. Costs one evaluation."""
    save_strategy: When | None = None
    """When to save a checkpoint to resume from: `no`, every `save_steps` steps, or after each epoch. Unset:
    by `save_steps` where that is given, else with each evaluation, else by epoch."""
    save_steps: AtLeastOne | None = None
    """Optimizer steps between two checkpoints: so many are lost at most. Each costs the time to write what
    is trained. Unset: 500 where `save_strategy` is steps."""
    save_total_limit: AtLeastOne = 2
    """Checkpoints kept on disk, the newest ones; the best is kept beside them. Each takes the
    space of what is trained."""
    logging_steps: AtLeastOne = 1
    """Optimizer steps between two lines of metrics. 1 shows every step, at no measurable cost."""

    load_best_model_at_end: bool = False
    """Make the final model from the best evaluation, and not from the last step: against overfitting. Costs
    one more checkpoint on disk."""
    metric_for_best_model: Literal["eval_loss", "eval_perplexity", "train_loss"] = "eval_loss"
    """What says which checkpoint is best; lower is better for each."""
    early_stopping_patience: AtLeastOne | None = None
    """Evaluations without a better metric after which training stops: saves time where more epochs would only
    overfit. Unset: it does not, but in a range of epochs, where it is 1."""
    early_stopping_threshold: NotNegative = 0.0
    """How much lower the metric must be to count as better, in the metric's own unit; 0 takes any gain."""

    dataloader_num_workers: NotNegativeInt | None = None
    """Processes that encode the rows of a large file, and threads that tokenize those of a small one; 0 means
    that this process does it alone. Unset: as many as there are cores, and 8 processes at most."""

    @model_validator(mode="after")
    def _best_needs_evaluation(self) -> Self:
        if self.eval_strategy != "no":
            return self
        for field in ("load_best_model_at_end", "early_stopping_patience"):
            if getattr(self, field):
                raise PydanticCustomError(
                    "needs_evaluation",
                    "has {field} together with eval_strategy no, so that there is no {metric} to go by",
                    {"field": field, "metric": self.metric_for_best_model},
                )
        return self


class Environment(Section):
    """What makes a run repeatable."""

    seed: NotNegativeInt = 42
    """Seed of everything random in training: adapter weights, dropout and, unless `data_preprocessing.seed`
    is set, the order of rows. A file may also write it as `training_args.seed`."""
