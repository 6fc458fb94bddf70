"""What becomes of the trained model: `generation`, `export`, `monitoring`, `model_app`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from llamafarm.strategy.sections.base import (
    AtLeastOne,
    NotNegativeInt,
    Positive,
    Section,
    TextList,
    read_lower_case,
)

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]


class Generation(Section):
    """How answers are generated; a file may also write these keys under `training_args`."""

    max_new_tokens: AtLeastOne = 200
    """Most tokens in an answer; time grows in proportion."""
    temperature: Temperature = 0.7
    """Randomness: 0 always takes the likeliest token, higher values vary more."""
    top_p: TopP = 0.9
    """Sample from the likeliest tokens that together have this probability. 1 takes all."""
    top_k: AtLeastOne | None = None
    """Sample from this many of the likeliest tokens. Unset: no such limit."""
    repetition_penalty: Positive = 1.0
    """Above 1, tokens that already occurred become less likely; 1.0 to 1.2 is usual."""


class OllamaParameters(Section):
    """Parameters written into the Ollama model; each that is unset follows from the rest of the strategy."""

    temperature: Temperature | None = None
    """Randomness of answers. Unset: `generation.temperature`."""
    top_p: TopP | None = None
    """Probability to sample from. Unset: `generation.top_p`."""
    top_k: AtLeastOne | None = None
    """Number of tokens to sample from. Unset: `generation.top_k`."""
    repeat_penalty: Positive | None = None
    """Penalty for tokens that already occurred. Unset: `generation.repetition_penalty`."""
    num_predict: AtLeastOne | None = None
    """Most tokens in an answer. Unset: `generation.max_new_tokens`."""
    num_ctx: AtLeastOne | None = None
    """Context length in tokens; memory grows in proportion. Unset: the base model's, at most 8192 or the
    trained length."""
    stop: TextList | None = None
    """Texts at which an answer ends. Unset: `prompt_template.stop_sequences`."""


Quantization = Annotated[
    Literal[
        "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0",
        "q4_k_m", "q4_k_s", "q4_1", "q4_0", "q3_k_m", "q2_k",
    ],
    BeforeValidator(read_lower_case),
]  # fmt: skip


class Export(Section):
    """What to make of the model after training."""

    to_ollama: bool = False
    """Merge the adapter, write a GGUF file and create a model in the Ollama on this machine."""
    to_gguf: bool = False
    """Merge the adapter and write a GGUF file into the run's folder."""
    quantization: Quantization = "q8_0"
    """Type of the weights in the GGUF file. q8_0 takes about half of f16 and loses almost nothing; q4_k_m
    about 30 % of f16, with a loss that small models feel."""
    importance_matrix: bool = False
    """Measure on the run's own rows which inputs of each layer matter, and round those least. Takes a pass
    over some rows; types below q6_k lose less."""
    model_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$")
    """Name of the model in Ollama, also of the GGUF file. Unset: the strategy's name."""
    system_prompt: str | None = None
    """System message written into the Ollama model. Unset: `prompt_template.system`."""
    ollama_parameters: OllamaParameters = OllamaParameters()
    """Parameters written into the Ollama model."""


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
_NO_TRACKERS = ("none", "no", "")


def _read_trackers(value: Any) -> Any:
    """Read a word or a list of them, and the ways to say that there are none, as in transformers."""
    words = [value] if isinstance(value, str) else value
    if value is None or value is False:
        return ()
    if not isinstance(words, list | tuple):
        return value
    words = [read_lower_case(word) for word in words]
    if "all" in words:
        raise PydanticCustomError("trackers", "must name the trackers, as nothing is sent unasked")
    if len(words) == 1 and words[0] in _NO_TRACKERS:
        return ()
    # Each once; a word that is none is left for its own fault.
    return [word for place, word in enumerate(words) if word not in words[:place]]


_TRACKER_NAMES = get_args(TrackerName)
Trackers = Annotated[
    tuple[TrackerName, ...],
    Field(strict=False),
    BeforeValidator(_read_trackers),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": [*_TRACKER_NAMES, *_NO_TRACKERS]},
                {"type": "array", "items": {"enum": [*_TRACKER_NAMES]}},
                {"type": "array", "items": {"const": "none"}, "maxItems": 1},
                {"type": "null"},
            ]
        }
    ),
]
"""A word or a list in the file, a tuple here."""


class Monitoring(Section):
    """What a run records."""

    track_training_metrics: bool = True
    """Write `metrics.jsonl`, a line for each logged step. False keeps no record of how training went."""
    log_tensorboard: bool = False
    """Write the metrics for TensorBoard too, into the run's `logs/`: the same as naming it in `report_to`."""
    report_to: Trackers = ()
    """Write the metrics and the strategy's settings to these trackers too: tensorboard, into the run's
    `logs/`; wandb, into `logs/wandb/`, and sent only with an API key or as `WANDB_MODE` says; mlflow, to
    `MLFLOW_TRACKING_URI` or else into `logs/mlflow/`; trackio, into its database on this machine. All but
    tensorboard need an extra, such as `pip install 'llamafarm-finetune[wandb]'`. One that fails on the way
    is warned of, and the run goes on."""
    project: str | None = Field(default=None, pattern=r"^[^\s/\\#?%:][^/\\#?%:\x00-\x1f]{0,99}$")
    """Name of the project, for mlflow the experiment, that the trackers put the run into, under the name of
    its folder. Unset: the strategy's key."""
    sample_rows: NotNegativeInt = 8
    """Held-out rows on which the trained model is set beside its base at the end of a run, for the report:
    loss, answers, and the loss on general text. Takes the time of that many answers, twice; 0 leaves it
    out."""
    general_file: str | None = Field(default=None, min_length=1)
    """Text on which forgetting is measured, a paragraph a line, or a data file. Unset: some general English
    that comes with the package; name one in the language of your work."""
    save_checkpoints: bool = True
    """False saves no checkpoints, whatever `training_args.save_strategy` says, but for the best one where
    `load_best_model_at_end` is to read it back: nothing to resume from."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(read_lower_case)] = (
        "info"
    )
    """What is printed of a run: `debug` adds a line for each step, `warning` leaves warnings and errors,
    `error` errors only. Results are always printed."""

    @property
    def trackers(self) -> tuple[TrackerName, ...]:
        """Return what the metrics are written to beside `metrics.jsonl`, each once."""
        by_itself: tuple[TrackerName, ...] = ("tensorboard",) if self.log_tensorboard else ()
        return tuple(dict.fromkeys(by_itself + self.report_to))


class ModelAppConfig(Section):
    """How the application that serves the model is reached."""

    base_url: str | None = Field(default=None, pattern=r"^https?://[^\s]+$")
    """Address of the server. Unset: that of Ollama, `OLLAMA_HOST` or http://127.0.0.1:11434."""
    default_model: str | None = Field(default=None, min_length=1)
    """Model to ask, for llama.cpp a GGUF file. Unset: the one that this strategy exports."""
    timeout: Positive = 60.0
    """Seconds to wait for an answer; a model that is loaded first may take a minute."""
    gpu_layers: int | None = Field(default=None, ge=-1)
    """Layers that llama.cpp keeps on the GPU, -1 for all: more answer faster and take its memory. Unset:
    llama.cpp decides."""
    num_thread: AtLeastOne | None = None
    """Threads for generation on the processor. Unset: the application decides."""


class ModelApp(Section):
    """What answers prompts once the model is trained."""

    type: Literal["transformers", "ollama", "llamacpp", "openai"] = "transformers"
    """`transformers` uses the trained adapter itself; `llamacpp` the exported GGUF file; `ollama` the
    exported model in Ollama; `openai` any server that speaks OpenAI's chat protocol, at `base_url`. What is
    not there is answered for by transformers, with a warning."""
    config: ModelAppConfig = ModelAppConfig()
    """How it is reached."""
