"""What a strategy is: one frozen model with a section for each concern, complete by its defaults.

The sections live in `sections/`; `load.py` makes a Strategy from a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llamafarm.strategy.sections.base import EpochRange, Section, fixed_count
from llamafarm.strategy.sections.data import DataPreprocessing, Dataset, PromptTemplate, WeightedFile
from llamafarm.strategy.sections.deployment import (
    Export,
    Generation,
    ModelApp,
    ModelAppConfig,
    Monitoring,
    OllamaParameters,
)
from llamafarm.strategy.sections.hardware import Hardware, Optimization, Precision
from llamafarm.strategy.sections.model import BaseLanguageModel, Method
from llamafarm.strategy.sections.training import Environment, TrainingArgs

__all__ = [
    "BaseLanguageModel",
    "DataPreprocessing",
    "Dataset",
    "Environment",
    "EpochRange",
    "Export",
    "Generation",
    "Hardware",
    "Method",
    "ModelApp",
    "ModelAppConfig",
    "Monitoring",
    "OllamaParameters",
    "Optimization",
    "Precision",
    "PromptTemplate",
    "Section",
    "Strategy",
    "TrainingArgs",
    "WeightedFile",
    "fixed_count",
    "walk_leaves",
]


class Strategy(Section):
    """Everything that a run depends on."""

    name: str = ""
    """Name for people; the strategy's key in its file is what commands take."""
    description: str = ""
    """What the strategy is for, in a sentence."""
    hardware: Hardware = Hardware()
    """The device to train on and how to use it."""
    base_model: BaseLanguageModel = BaseLanguageModel()
    """The model to start from."""
    method: Method = Method()
    """How the weights change."""
    training_args: TrainingArgs = TrainingArgs()
    """The training run."""
    dataset: Dataset = Dataset()
    """The files of examples."""
    data_preprocessing: DataPreprocessing = DataPreprocessing()
    """What happens to rows before training."""
    prompt_template: PromptTemplate = PromptTemplate()
    """The text around question and answer."""
    generation: Generation = Generation()
    """How answers are generated."""
    export: Export = Export()
    """What to make of the model after training."""
    monitoring: Monitoring = Monitoring()
    """What a run records."""
    model_app: ModelApp = ModelApp()
    """What answers prompts once the model is trained."""
    environment: Environment = Environment()
    """What makes a run repeatable."""


def walk_leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and value of every setting, such as `("method.r", 16)`, in schema order."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from walk_leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
