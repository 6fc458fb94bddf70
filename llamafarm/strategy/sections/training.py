"""What is trained, on what and how.

The sections `hardware`, `base_model`, `method`, `training_args`, `environment` and `framework`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    GetPydanticSchema,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from llamafarm.strategy.sections.base import (
    AtLeastOne,
    Epochs,
    Fraction,
    NotNegative,
    NotNegativeInt,
    Positive,
    Section,
    read_no,
)

When = Annotated[Literal["no", "steps", "epoch"], BeforeValidator(read_no)]


class HalfPrecision(Section):
    """Which 16-bit numbers a kind of device may compute with; at most one of the two."""

    use_fp16: bool | None = None
    """Compute in float16: half the memory of float32, with loss scaling. Unset: chosen from the device."""
    use_bf16: bool | None = None
    """Compute in bfloat16: half the memory of float32, no loss scaling; CUDA needs Ampere or newer. Unset:
    chosen from the device."""

    @model_validator(mode="after")
    def _only_one(self) -> Self:
        if self.use_fp16 and self.use_bf16:
            raise PydanticCustomError("both_halves", "cannot have use_fp16 and use_bf16 both true")
        return self


class CudaPrecision(HalfPrecision):
    """The same for NVIDIA and AMD GPUs, with TF32."""

    use_tf32: bool | None = None
    """Let float32 matrix products round their inputs to TF32: several times faster on Ampere and newer, with
    10 bits of mantissa. Unset: chosen from the device."""


class Precision(Section):
    """The numbers to compute with, by device; only the block of the device in use is read."""

    cuda: CudaPrecision = CudaPrecision()
    """For `cuda` and `rocm`."""
    mps: HalfPrecision = HalfPrecision()
    """For Apple Silicon."""
    cpu: HalfPrecision = HalfPrecision()
    """For the processor."""


class Optimization(Section):
    """Trades of time for memory; a file may also write it at the strategy's top level."""

    gradient_checkpointing: bool | None = None
    """Compute activations again in the backward pass and do not keep them: 30 to 50 % less memory, about 20 %
    more time. Unset: only if the memory would not do otherwise."""
    gradient_accumulation_steps: AtLeastOne | None = None
    """Micro-batches per optimizer step where `training_args.gradient_accumulation_steps` is not given."""
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(read_no)] | None = None
    """16-bit numbers to compute with, whatever the device; wins over `precision`, which decides if this is
    unset."""


class Hardware(Section):
    """The device to train on and how to use it."""

    device: Literal["auto", "cuda", "rocm", "mps", "cpu"] = "auto"
    """Device to train on; `auto` takes the fastest one present. Naming one that is absent is an error."""
    memory_gb: Positive | None = None
    """Memory of the device that training may use, in GB. Unset: what is free on it."""
    precision: Precision = Precision()
    """The numbers to compute with, by device."""
    optimization: Optimization = Optimization()
    """Trades of time for memory."""


class BaseLanguageModel(Section):
    """The model to start from; a file may write `base_model: <id or path>` for short."""

    name: str | None = None
    """Name to show in reports and in the model card. Unset: the last part of `huggingface_id`."""
    huggingface_id: str | None = Field(default=None, min_length=1)
    """Model on the Hugging Face hub, as `owner/name`, or a folder with one. Unset: the small model that comes
    with LlamaFarm."""
    cache_dir: str | None = None
    """Folder for downloaded models; a 7B model takes about 15 GB. Unset: `HF_HOME`, or its default."""
    torch_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Numbers the frozen weights are held in: 4 bytes each in float32, 2 in the others. `auto` follows the
    precision that is computed with."""
    trust_remote_code: bool = False
    """Always false: code that comes with a model is never run."""

    @field_validator("trust_remote_code")
    @classmethod
    def _never_trust(cls, value: bool) -> bool:
        if value:
            raise PydanticCustomError(
                "remote_code",
                "must be false, because true would run code that a stranger uploaded beside the model",
            )
        return value


def _read_target_modules(value: Any) -> tuple[str, ...] | str | None:
    if value is None or value == "all-linear":
        return value if value is None else "all-linear"
    is_names = isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value)
    if not is_names or not value:
        raise PydanticCustomError("target_modules", "must be a list of module names, or all-linear")
    return tuple(value)


def _write_target_modules(value: tuple[str, ...] | str | None) -> list[str] | str | None:
    return list(value) if isinstance(value, tuple) else value


TargetModules = Annotated[
    tuple[str, ...] | Literal["all-linear"] | None,
    PlainValidator(_read_target_modules),
    PlainSerializer(_write_target_modules),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
                {"const": "all-linear"},
                {"type": "null"},
            ]
        }
    ),
]


def _or_auto(number: Any) -> GetPydanticSchema:
    """Let a field take the word `auto` beside a number; faults are those of the number alone."""

    def keep_auto(value: Any, validate: core_schema.ValidatorFunctionWrapHandler) -> Any:
        return value if value == "auto" else validate(value)

    def build(_: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            keep_auto, handler(number), serialization=core_schema.plain_serializer_function_ser_schema(_as_is)
        )

    def describe(_: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(TypeAdapter(number).core_schema), {"const": "auto"}]}

    return GetPydanticSchema(build, describe)


def _as_is(value: Any) -> Any:
    return value


class Method(Section):
    """How the weights change: through a low-rank adapter, or all of them."""

    type: Literal["lora", "qlora", "full_finetune", "auto"] = "lora"
    """`lora` trains a small adapter; `qlora` does so on a base held in 4 bits, for about a quarter of the
    memory; `full_finetune` trains every weight, for about eight times the memory of `lora`. `auto` is lora, or
    qlora where the memory is too small for it."""
    r: Annotated[int | Literal["auto"], _or_auto(AtLeastOne)] = 16
    """Rank of the adapter's matrices. Higher learns more and forgets more; memory grows in proportion. `auto`
    follows the guide's table for the model's size."""
    alpha: Annotated[int | Literal["auto"], _or_auto(AtLeastOne)] = 32
    """Scale of the adapter: what it adds is multiplied by alpha/r. `auto` is 2*r, as in the guide's table."""
    dropout: Annotated[float | Literal["auto"], _or_auto(Fraction)] = 0.1
    """Part of the adapter's inputs dropped at random in training; higher against overfitting. `auto` follows
    the guide's table for the model's size."""
    target_modules: TargetModules = None
    """Names of the linear layers that get an adapter, or `all-linear`. More of them learn better and cost
    memory. Unset: those that the guide's table has for the model's size, under the names that the model has
    for them."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases that are trained too: none, all, or those of the layers with an adapter. With others than `none`
    the model changes even when the adapter is switched off."""
    use_rslora: bool = False
    """Multiply what the adapter adds by alpha/sqrt(r) and not by alpha/r (rsLoRA), so that high ranks learn as
    fast as low ones. At the same alpha the adapter is sqrt(r) times as strong: lower alpha, or the learning
    rate. No cost."""
    use_dora: bool = False
    """Train direction and magnitude of each weight apart (DoRA): nearer to full fine-tuning at low ranks. Each
    step also computes the norms of the adapted weights, which takes time and some memory."""
    init_lora_weights: Literal["default", "pissa"] = "default"
    """How the adapter starts. `default` starts from nothing; `pissa` from the principal part of each weight:
    often a lower loss after as many steps. It costs a decomposition of each weight at the start, a second
    product of rank r in each step, and a saved adapter of twice the rank."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = None
    """Learning rate of the adapter's B matrices over that of its A matrices (LoRA+); 16 is usual, with a
    lower learning_rate. Faster learning, at the risk of instability. Unset: one rate for both."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """Form of qlora's 4-bit numbers: `nf4` suits weights, which are spread like a normal distribution; `fp4`
    is a plain 4-bit float, and less exact."""
    bnb_4bit_use_double_quant: bool = True
    """Hold the scales of qlora's blocks in 8 bits too: 0.4 bits less for each weight, at hardly any loss."""

    @model_validator(mode="after")
    def _fit_each_other(self) -> Self:
        if self.init_lora_weights == "pissa" and self.use_dora:
            raise PydanticCustomError(
                "methods_apart",
                "has init_lora_weights pissa together with use_dora, and the two split weights differently",
            )
        if self.init_lora_weights == "pissa" and self.type == "qlora":
            raise PydanticCustomError(
                "methods_apart",
                "has init_lora_weights pissa together with qlora, whose base has no exact weights to split",
            )
        return self


class TrainingArgs(Section):
    """The training run: how long, how fast, in which batches, what is measured and kept."""

    output_dir: str | None = Field(default=None, min_length=1)
    """Folder of the run. Unset: `./fine_tuned_models/<strategy name>`."""
    num_train_epochs: Epochs = 3
    """Passes over the training rows. A range such as `5-10` trains at least 5 and stops, after at most 10,
    when the evaluation loss no longer falls. Time grows in proportion; more risk overfitting."""
    max_steps: AtLeastOne | None = None
    """Optimizer steps after which training ends, whatever the epochs say. Unset: no such limit."""

    per_device_train_batch_size: AtLeastOne = 4
    """Rows per device and micro-batch. Together with the accumulation and the number of devices it says which
    rows one optimizer step sees."""
    per_device_eval_batch_size: AtLeastOne | None = None
    """Rows per device and batch in evaluation. Unset: as in training."""
    gradient_accumulation_steps: AtLeastOne = 1
    """Micro-batches per optimizer step: a larger effective batch for no more memory."""

    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """Highest step size of the schedule. Too high diverges, too low learns nothing; 1e-5 to 5e-4 is usual."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = "linear"
    """How the learning rate falls after the warmup. `constant` has no warmup."""
    warmup_ratio: Fraction = 0.03
    """Part of all steps over which the learning rate rises from 0."""
    warmup_steps: NotNegativeInt = 0
    """Steps over which the learning rate rises from 0; wins over `warmup_ratio` when above 0."""
    weight_decay: NotNegative = 0.0
    """AdamW's decay of the trained weights per step, times the learning rate; 0 to 0.01 is usual."""
    max_grad_norm: NotNegative = 1.0
    """Gradients are scaled down to at most this norm; 0 leaves them as they are."""
    adam_beta1: Fraction = 0.9
    """AdamW's decay of the running mean of gradients."""
    adam_beta2: Fraction = 0.999
    """AdamW's decay of the running mean of squared gradients."""
    adam_epsilon: Positive = 1e-8
    """AdamW's term against division by zero."""

    eval_strategy: When | None = None
    """When to evaluate: `no`, every `eval_steps` steps, or after each epoch. Unset: if there are evaluation
    rows, by `eval_steps` where that is given, else by epoch. Each evaluation costs a pass over those rows."""
    eval_steps: AtLeastOne | None = None
    """Optimizer steps between two evaluations."""
    eval_accumulation_steps: AtLeastOne | None = None
    """Evaluation batches whose results stay on the device before they move to main memory. Unset: all."""
    save_strategy: When | None = None
    """When to save a checkpoint to resume from: `no`, every `save_steps` steps, or after each epoch. Unset:
    by `save_steps` where that is given, else with each evaluation, else by epoch."""
    save_steps: AtLeastOne | None = None
    """Optimizer steps between two checkpoints."""
    save_total_limit: AtLeastOne = 2
    """Checkpoints kept on disk, the newest ones; the best is kept beside them."""
    logging_steps: AtLeastOne = 1
    """Optimizer steps between two lines of metrics."""

    load_best_model_at_end: bool = False
    """Make the final model from the best evaluation, and not from the last step."""
    metric_for_best_model: Literal["eval_loss", "eval_perplexity", "train_loss"] = "eval_loss"
    """What says which checkpoint is best; lower is better for each."""
    early_stopping_patience: AtLeastOne | None = None
    """Evaluations without a better metric after which training stops. Unset: it does not."""
    early_stopping_threshold: NotNegative = 0.0
    """How much lower the metric must be to count as better."""

    dataloader_num_workers: NotNegativeInt = 0
    """Processes that tokenize rows beside the main one; 0 means the main one does it."""
    ddp_find_unused_parameters: bool = False
    """With several processes, look for weights without a gradient in each step: slower, and only needed when
    part of the model is skipped."""
    fp16_backend: Literal["auto"] = "auto"
    """Only `auto`: float16 runs through PyTorch's own automatic mixed precision."""

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


class Framework(Section):
    """How the libraries are used."""

    use_fast_tokenizer: bool = True
    """Always true: transformers' slow tokenizers are not used, because whole files are tokenized at once."""

    @field_validator("use_fast_tokenizer")
    @classmethod
    def _always_fast(cls, value: bool) -> bool:
        if not value:
            raise PydanticCustomError(
                "slow_tokenizer",
                "must be true, because slow tokenizers do not say which characters a token came from",
            )
        return value
