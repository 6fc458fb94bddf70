"""The settings that this version reads and does not act on yet.

A key that is accepted and ignored in silence is the worst thing that a tool of this kind can do, so each of
these is warned of whenever somebody sets it. A setting leaves this table when code acts on it.
"""

from __future__ import annotations

from collections.abc import Mapping

from llamafarm.strategy.document import Origin

_NO_EXPORT = "this version does not export"
_ONE_PROCESS = "this version trains in one process"
_PENDING: dict[str, str] = {
    "export": _NO_EXPORT,
    "model_app": "answers come from transformers",
    "hardware.memory_gb": "memory is not planned yet",
    "base_model.name": "reports do not exist yet",
    "data_preprocessing.filter_quality": "rows are not judged yet",
    "framework.use_fast_tokenizer": "the fast tokenizer is always used",
    "monitoring.log_level": "use --quiet",
    "training_args.eval_accumulation_steps": "evaluation sums its loss as it goes and keeps nothing",
    "training_args.per_device_eval_batch_size": "evaluation packs rows by tokens",
    "training_args.dataloader_num_workers": "all rows are tokenized before the first step",
    "training_args.ddp_find_unused_parameters": _ONE_PROCESS,
    "training_args.fp16_backend": "PyTorch has only one",
}


def pending_settings(origins: Mapping[str, Origin]) -> list[tuple[str, str]]:
    """Return the settings that were chosen and change nothing yet, each with the reason."""
    return [
        (path, reason)
        for path, origin in origins.items()
        if origin.kind != "default"
        for prefix, reason in _PENDING.items()
        if path == prefix or path.startswith(prefix + ".")
    ]
