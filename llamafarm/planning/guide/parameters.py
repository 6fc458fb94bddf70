"""The guide's tables of parameters: LoRA's, also by model size, training's, evaluation's, generation's."""

from __future__ import annotations

from dataclasses import dataclass

from llamafarm.planning.guide.numbers import Range, show_billions


@dataclass(frozen=True, slots=True)
class LoraParameter:
    """A parameter of LoRA in words."""

    name: str
    range: str
    default: str
    description: str
    when_to_adjust: str
    also_called: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        also = f" ({self.also_called})" if self.also_called else ""
        return f"`{self.name}`{also}", self.range, self.default, self.description, self.when_to_adjust


LORA_PARAMETERS = (
    LoraParameter("r", "4-64", "16", "LoRA matrix rank", "Lower for small models/datasets", "rank"),
    LoraParameter("alpha", "r to 2*r", "32", "LoRA scaling factor", "Usually 2*r for stability"),
    LoraParameter("dropout", "0.0-0.2", "0.1", "Regularization dropout", "Higher to prevent overfitting"),
    LoraParameter(
        "target_modules",
        "List",
        "[q,v,k,o]",
        "Modules to apply LoRA",
        "Add gate/up/down for better learning",
    ),
)

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class LoraRow:
    """LoRA's settings for models of `parameters.low` up to, but not including, `parameters.high`."""

    parameters: Range
    r: int
    alpha: int
    dropout: float
    target_modules: tuple[str, ...] | str
    """Names of modules, or `all-linear`."""

    @property
    def size(self) -> str:
        """The row's sizes as the guide prints them: <1B, 1-3B."""
        printed = show_billions(self.parameters)
        return printed.replace("≤", "<")

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        modules = self.target_modules
        shown = "All linear layers" if isinstance(modules, str) else f"[{', '.join(modules)}]"
        return self.size, str(self.r), str(self.alpha), str(self.dropout), shown


_ATTENTION = ("q_proj", "v_proj", "k_proj", "o_proj")

LORA_BY_SIZE = (
    LoraRow(Range(0, 1e9), 4, 8, 0.1, _ATTENTION[:2]),
    LoraRow(Range(1e9, 3e9), 8, 16, 0.05, _ATTENTION),
    LoraRow(Range(3e9, 7e9), 16, 32, 0.05, (*_ATTENTION, "gate_proj", "up_proj")),
    LoraRow(Range(7e9, 13e9), 32, 64, 0.1, ALL_LINEAR),
)


def lora_row(num_parameters: float) -> LoraRow:
    """Return LoRA's settings for a model of that many parameters; the last row is for larger ones too."""
    return next((row for row in LORA_BY_SIZE if num_parameters < row.parameters.high), LORA_BY_SIZE[-1])


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """A setting of `training_args` with its typical range."""

    name: str
    description: str
    typical: Range
    impact: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        return f"`{self.name}`", self.description, str(self.typical), self.impact


HYPERPARAMETERS = (
    Hyperparameter(
        "learning_rate",
        "Step size for optimization",
        Range(1e-5, 5e-4),
        "**Critical** - Too high causes instability",
    ),
    Hyperparameter(
        "num_train_epochs", "Training iterations over dataset", Range(1, 5), "More epochs risk overfitting"
    ),
    Hyperparameter(
        "per_device_train_batch_size", "Examples per GPU/iteration", Range(1, 8), "Limited by memory"
    ),
    Hyperparameter(
        "gradient_accumulation_steps", "Accumulate gradients", Range(1, 16), "Simulate larger batches"
    ),
    Hyperparameter("warmup_ratio", "Fraction of steps for LR warmup", Range(0.03, 0.1), "Helps stability"),
    Hyperparameter("weight_decay", "L2 regularization", Range(0.0, 0.01), "Prevents overfitting"),
)


@dataclass(frozen=True, slots=True)
class EvaluationParameter:
    """A setting of `training_args` about evaluation, with what the guide recommends."""

    name: str
    description: str
    recommended: str
    purpose: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        return f"`{self.name}`", self.description, self.recommended, self.purpose


EVAL_STEPS = Range(50, 100)

EVALUATION = (
    EvaluationParameter("eval_strategy", "When to evaluate", '"steps"', "Regular evaluation"),
    EvaluationParameter(
        "eval_steps", "Evaluation frequency", str(EVAL_STEPS), "Balance between overhead and monitoring"
    ),
    EvaluationParameter(
        "eval_accumulation_steps", "Gradient accumulation for eval", "Same as training", "Consistency"
    ),
    EvaluationParameter(
        "metric_for_best_model", "Metric to select best checkpoint", '"eval_loss"', "Model selection"
    ),
    EvaluationParameter("load_best_model_at_end", "Load best checkpoint", "true", "Use best, not last"),
)


@dataclass(frozen=True, slots=True)
class GenerationParameter:
    """A setting of `generation` (and `max_length`) with its range."""

    name: str
    description: str
    range: Range
    effect: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        return f"`{self.name}`", self.description, str(self.range), self.effect


GENERATION = (
    GenerationParameter(
        "max_length", "Maximum sequence length", Range(128, 512), "Prevents runaway generation"
    ),
    GenerationParameter("max_new_tokens", "Max tokens to generate", Range(50, 200), "Direct output control"),
    GenerationParameter(
        "temperature", "Randomness in generation", Range(0.1, 1.0), "Lower = more deterministic"
    ),
    GenerationParameter("top_p", "Nucleus sampling", Range(0.9, 0.95), "Token selection diversity"),
    GenerationParameter(
        "repetition_penalty", "Penalize repeated tokens", Range(1.0, 1.2), "Reduce repetition"
    ),
)
