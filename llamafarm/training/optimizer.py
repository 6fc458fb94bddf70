"""The optimizer and its learning rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import get_scheduler


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW and its schedule. `warmup_steps`, when above zero, takes the place of `warmup_ratio`."""

    learning_rate: float
    lr_scheduler_type: str
    warmup_ratio: float
    warmup_steps: int
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, num_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW over the trainable parameters, and the schedule for `num_steps` steps.

    Weight decay spares biases and norms (Loshchilov and Hutter, 2019, leave the choice open; this is what
    the field does).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trainable if p.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=True,
    )
    num_warmup_steps = settings.warmup_steps or math.ceil(settings.warmup_ratio * num_steps)
    scheduler = get_scheduler(
        settings.lr_scheduler_type,
        optimizer,
        num_warmup_steps=min(num_warmup_steps, num_steps),
        num_training_steps=num_steps,
    )
    return optimizer, scheduler
