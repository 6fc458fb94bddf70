"""The guide's tables of advice: splits, metrics, what to do about trouble, the checklist, the environment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Split:
    """A way to divide the rows, and when it is the right one."""

    train_percent: int
    eval_percent: int
    use_case: str
    pros: str
    cons: str

    @property
    def ratio(self) -> str:
        """The split as the guide prints it, such as 90/10."""
        return f"{self.train_percent}/{self.eval_percent}"

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        return self.ratio, self.use_case, self.pros, self.cons


SPLITS = (
    Split(95, 5, "Very small datasets", "Maximum training data", "Less robust evaluation"),
    Split(90, 10, "Standard (recommended)", "Balanced", "Good for most cases"),
    Split(85, 15, "Important validation", "More robust metrics", "Less training data"),
    Split(80, 20, "Research/publishing", "Very robust", "Significantly less training"),
    Split(70, 30, "Hyperparameter tuning", "Reliable for tuning", "Much less training data"),
)


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of `metrics.jsonl` and how to read it."""

    name: str
    measures: str
    good_values: str
    warning_signs: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        return f"`{self.name}`", self.measures, self.good_values, self.warning_signs


METRICS = (
    Metric("train_loss", "Training fit", "Decreasing", "Plateau or increase"),
    Metric("eval_loss", "Generalization", "Close to train_loss", "Much higher than train"),
    Metric("eval_perplexity", "Prediction confidence", "<50 for good models", ">100 indicates problems"),
    Metric("learning_rate", "Current LR", "Per schedule", "Unexpected jumps"),
)


@dataclass(frozen=True, slots=True)
class OverfittingSign:
    """A sign that a model learns its rows by heart."""

    name: str
    sign: str


OVERFITTING = (
    OverfittingSign("Gap Analysis", "`eval_loss - train_loss > 0.5`"),
    OverfittingSign("Evaluation Degradation", "Eval loss increases while train decreases"),
    OverfittingSign("Perfect Training", "Train loss near 0 but poor eval"),
    OverfittingSign("Repetitive Output", "Model generates same phrases repeatedly"),
)


@dataclass(frozen=True, slots=True)
class MemorySaving:
    """A way out of an out-of-memory error; `setting` is the path of what it changes."""

    solution: str
    memory_savings: str
    performance_impact: str
    setting: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        return self.solution, self.memory_savings, self.performance_impact


OUT_OF_MEMORY = (
    MemorySaving("Reduce batch size", "High", "None", "training_args.per_device_train_batch_size"),
    MemorySaving(
        "Enable gradient checkpointing",
        "30-50%",
        "20% slower",
        "hardware.optimization.gradient_checkpointing",
    ),
    MemorySaving("Reduce sequence length", "Quadratic", "Limits context", "data_preprocessing.max_length"),
    MemorySaving("Use gradient accumulation", "None", "None", "training_args.gradient_accumulation_steps"),
    MemorySaving("Lower LoRA rank", "Moderate", "May reduce quality", "method.r"),
    MemorySaving("Enable mixed precision", "50%", "2-3x faster", "hardware.optimization.mixed_precision"),
)
"""In the guide's order, which is that of what to try first."""


@dataclass(frozen=True, slots=True)
class SlowTraining:
    """A reason for slow training and what to do about it."""

    issue: str
    solution: str
    impact: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        return self.issue, self.solution, self.impact


SLOW_TRAINING = (
    SlowTraining("CPU bottleneck", "Pre-process data, use DataLoader workers", "2-5x speedup"),
    SlowTraining("Small batch size", "Increase gradient accumulation", "No memory increase"),
    SlowTraining("Checkpointing overhead", "Save less frequently", "Fewer interruptions"),
    SlowTraining("Evaluation too frequent", "Increase eval_steps", "Less overhead"),
)


@dataclass(frozen=True, slots=True)
class PoorQuality:
    """A symptom of a poor model, its likely cause and what to do about it."""

    symptom: str
    likely_cause: str
    solution: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        return self.symptom, self.likely_cause, self.solution


POOR_QUALITY = (
    PoorQuality("High eval loss", "Overfitting", "Add dropout, reduce epochs"),
    PoorQuality("Repetitive output", "High learning rate", "Lower LR, add repetition penalty"),
    PoorQuality("Forgets base knowledge", "LoRA rank too high", "Reduce rank, fewer target modules"),
    PoorQuality("Doesn't learn task", "LR too low or rank too low", "Increase carefully"),
    PoorQuality("Unstable training", "LR too high", "Reduce LR, add warmup"),
)


@dataclass(frozen=True, slots=True)
class ChecklistItem:
    """Something to do before, during or after training."""

    phase: str
    """before, during or after."""
    text: str


CHECKLIST = (
    ChecklistItem("before", "Create train/eval split (90/10 recommended)"),
    ChecklistItem("before", "Check GPU memory with `nvidia-smi` or Activity Monitor"),
    ChecklistItem("before", "Verify base model loads successfully"),
    ChecklistItem("before", "Review dataset for quality and format"),
    ChecklistItem("before", "Set appropriate evaluation frequency"),
    ChecklistItem("during", "Monitor loss curves for overfitting"),
    ChecklistItem("during", "Check GPU utilization stays >80%"),
    ChecklistItem("during", "Watch for OOM errors early"),
    ChecklistItem("during", "Verify checkpoints are being saved"),
    ChecklistItem("after", "Compare train vs eval metrics"),
    ChecklistItem("after", "Test model on holdout examples"),
    ChecklistItem("after", "Convert to deployment format (GGUF/Ollama)"),
    ChecklistItem("after", "Document hyperparameters used"),
    ChecklistItem("after", "Save best checkpoint separately"),
)


@dataclass(frozen=True, slots=True)
class EnvironmentVariable:
    """An environment variable with the guide's example value; `is_secret` ones are never shown."""

    name: str
    example: str
    library: str
    reason: str = ""
    is_secret: bool = False


ENVIRONMENT = (
    EnvironmentVariable("HF_TOKEN", "your_token", "Hugging Face", is_secret=True),
    EnvironmentVariable("HF_HOME", "./cache", "Hugging Face"),
    EnvironmentVariable("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512", "PyTorch", "For OOM issues"),
    EnvironmentVariable("CUDA_VISIBLE_DEVICES", "0", "PyTorch", "Select GPU"),
    EnvironmentVariable("TRANSFORMERS_VERBOSITY", "info", "Logging"),
    EnvironmentVariable("WANDB_MODE", "offline", "Logging", "For offline training"),
)


@dataclass(frozen=True, slots=True)
class StrategyChoice:
    """Which strategy to start from for a use case."""

    use_case: str
    strategy: str
    key_features: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        return self.use_case, f"`{self.strategy}`", self.key_features


STRATEGY_SELECTION = (
    StrategyChoice(
        "Medical/Legal Domain", "demo3_training_optimized", "Low rank, high regularization, eval monitoring"
    ),
    StrategyChoice("High-End GPU", "training_cuda_datacenter", "BF16, large batches, tensor cores"),
    StrategyChoice("Apple Silicon", "training_mps_apple", "FP32, conservative batches, MPS optimized"),
    StrategyChoice(
        "Consumer GPU", "training_cuda_consumer", "FP16, gradient checkpointing, memory efficient"
    ),
    StrategyChoice("CPU Only", "training_cpu_only", "Maximum memory optimization, small batches"),
    StrategyChoice("Quick Testing", "demo_minimal", "1 epoch, no eval, fast iteration"),
    StrategyChoice("Production", "demo_production", "Full evaluation, best model selection, robust"),
)
