"""Which weights are trained and how they change: the sections `base_model` and `method`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from llamafarm.strategy.sections.base import AtLeastOne, Fraction, Section, or_auto


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


class Method(Section):
    """How the weights change: through a low-rank adapter, or all of them."""

    type: Literal["lora", "qlora", "full_finetune", "auto"] = "lora"
    """`lora` trains a small adapter; `qlora` does so on a base held in 4 bits, for about a quarter of the
    memory; `full_finetune` trains every weight, for about eight times the memory of `lora`. `auto` is lora,
    or qlora where the memory is too small for it."""
    r: Annotated[int | Literal["auto"], or_auto(AtLeastOne)] = 16
    """Rank of the adapter's matrices. Higher learns more and forgets more; memory grows in proportion. `auto`
    follows the guide's table for the model's size."""
    alpha: Annotated[int | Literal["auto"], or_auto(AtLeastOne)] = 32
    """Scale of the adapter: what it adds is multiplied by alpha/r. `auto` is 2*r, as in the guide's table."""
    dropout: Annotated[float | Literal["auto"], or_auto(Fraction)] = 0.1
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
    """Multiply what the adapter adds by alpha/sqrt(r) and not by alpha/r (rsLoRA), so that high ranks learn
    as fast as low ones. At the same alpha the adapter is sqrt(r) times as strong: lower alpha, or the
    learning rate. No cost."""
    use_dora: bool = False
    """Train direction and magnitude of each weight apart (DoRA): nearer to full fine-tuning at low ranks.
    Each step also computes the norms of the adapted weights, which takes time and some memory."""
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
