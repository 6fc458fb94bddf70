"""What a checkpoint holds of a run in memory, and how it is put back: everything, to the bit.

The weights as others read them are not always enough: what an adapter's method adds before they are written
(PiSSA) is rounded. So an adapter's own numbers are kept beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llamafarm.errors import OutputError
from llamafarm.model.weights import (
    ADAPTER,
    Trained,
    form_of,
    read_weights,
    restore_weights,
    trained_weights,
    write_weights,
)
from llamafarm.training.checkpoint import Snapshot

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_SCHEDULE_KEYS = ("last_epoch", "_step_count", "_last_lr", "base_lrs")


@dataclass(frozen=True, slots=True)
class _WeightsWriter:
    model: Trained
    weights: Mapping[str, torch.Tensor]

    def __call__(self, folder: Path) -> None:
        write_weights(folder, self.model, self.weights)


class TrainingParts:
    """The model, its optimizer and schedule, the loss scaler: what changes with each step."""

    def __init__(
        self,
        model: Trained,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._scaler = scaler

    @property
    def is_copied(self) -> bool:
        """Return whether a snapshot is a copy, and may be written while training goes on.

        An adapter's is. All weights and their moments, three times the model, are written as they are.
        """
        return form_of(self._model) == ADAPTER

    def take_snapshot(self, step: int, state: Mapping[str, Any]) -> Snapshot:
        """Return everything as it is now; `state` is added to what `state.json` gets."""
        tensors = {f"random.{name}": tensor for name, tensor in _random_states().items()}
        for name, parameter in self._trained():
            if self.is_copied:
                tensors[f"parameter.{name}"] = _copy(parameter.detach())
            moments = self._optimizer.state.get(parameter, {})
            for key in _MOMENTS:
                if key in moments:
                    moment = moments[key]
                    tensors[f"{key}.{name}"] = _copy(moment) if self.is_copied else moment.cpu().contiguous()
        return Snapshot(
            step,
            _WeightsWriter(self._model, trained_weights(self._model)),
            tensors,
            {
                "schedule": {key: self._scheduler.state_dict()[key] for key in _SCHEDULE_KEYS},
                "scaler": None if self._scaler is None else dict(self._scaler.state_dict()),
                **state,
            },
        )

    def restore(
        self, checkpoint: Path, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> None:
        """Put a checkpoint's content back. Raises `OutputError` where it is of another model or optimizer."""
        try:
            if not self.is_copied:
                restore_weights(self._model, read_weights(checkpoint))
            with torch.no_grad():
                for name, parameter in self._trained():
                    if self.is_copied:
                        parameter.copy_(tensors[f"parameter.{name}"])
                    self._optimizer.state[parameter] = _moments_of(name, parameter, tensors)
            # Its own `load_state_dict` wants the schedule's functions too, which are not data.
            for key in _SCHEDULE_KEYS:
                setattr(self._scheduler, key, state["schedule"][key])
            for group, learning_rate in zip(
                self._optimizer.param_groups, state["schedule"]["_last_lr"], strict=True
            ):
                group["lr"] = learning_rate
            if self._scaler is not None and state["scaler"] is not None:
                self._scaler.load_state_dict(dict(state["scaler"]))
            _restore_random_states(tensors)
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise OutputError(
                f"the checkpoint is not of this model: {str(error).splitlines()[0][:200]}",
                where=str(checkpoint),
                remedy="Start anew with --overwrite, or with another --output-dir.",
            ) from error

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, one) for name, one in self._model.named_parameters() if one.requires_grad]


def _moments_of(
    name: str, parameter: torch.nn.Parameter, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return AdamW's state of a parameter; empty where no step had been taken."""
    found = {key: tensors[f"{key}.{name}"] for key in _MOMENTS if f"{key}.{name}" in tensors}
    if found and len(found) < len(_MOMENTS):
        raise ValueError(f"{name} lacks {', '.join(key for key in _MOMENTS if key not in found)}")
    if found and found["exp_avg"].shape != parameter.shape:
        raise ValueError(f"{name} has the shape {tuple(parameter.shape)}")
    return {key: tensor.to(parameter.device) for key, tensor in found.items()}


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", copy=True).contiguous()


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(tensors: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
