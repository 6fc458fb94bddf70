"""The guide's tables as data, by theme: machines, parameters, settings by device and use case, advice.

`plan`, `recommend`, `doctor` and the generated documentation all read these; a test holds every cell equal to
the guide's. Loads without torch.
"""

from llamafarm.planning.guide.advice import (
    CHECKLIST,
    ENVIRONMENT,
    METRICS,
    OUT_OF_MEMORY,
    OVERFITTING,
    POOR_QUALITY,
    SLOW_TRAINING,
    SPLITS,
    STRATEGY_SELECTION,
)
from llamafarm.planning.guide.machines import (
    APPLE_CHIPS,
    CUDA_GPUS,
    MODEL_SIZES,
    PLATFORMS,
    AppleRow,
    GpuRow,
    ModelSize,
    match_apple_row,
    match_gpu_row,
    model_size_row,
)
from llamafarm.planning.guide.numbers import Range
from llamafarm.planning.guide.parameters import (
    EVALUATION,
    GENERATION,
    HYPERPARAMETERS,
    LORA_BY_SIZE,
    LORA_PARAMETERS,
    LoraRow,
    lora_row,
)
from llamafarm.planning.guide.settings import DEVICES, USE_CASES, Setting, SettingGroup
from llamafarm.planning.guide.tables import TABLES, Table

__all__ = [
    "APPLE_CHIPS",
    "CHECKLIST",
    "CUDA_GPUS",
    "DEVICES",
    "ENVIRONMENT",
    "EVALUATION",
    "GENERATION",
    "HYPERPARAMETERS",
    "LORA_BY_SIZE",
    "LORA_PARAMETERS",
    "METRICS",
    "MODEL_SIZES",
    "OUT_OF_MEMORY",
    "OVERFITTING",
    "PLATFORMS",
    "POOR_QUALITY",
    "SLOW_TRAINING",
    "SPLITS",
    "STRATEGY_SELECTION",
    "TABLES",
    "USE_CASES",
    "AppleRow",
    "GpuRow",
    "LoraRow",
    "ModelSize",
    "Range",
    "Setting",
    "SettingGroup",
    "Table",
    "lora_row",
    "match_apple_row",
    "match_gpu_row",
    "model_size_row",
]
