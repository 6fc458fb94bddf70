"""The optimizer and its learning rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import get_scheduler

from llamafarm.strategy.schema import Method, TrainingArgs

_ADAPTER_B = ".lora_B."


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW and its schedule. `warmup_steps`, when above zero, takes the place of `warmup_ratio`.

    An adapter's B matrices learn at `loraplus_lr_ratio` times the rate (LoRA+, Hayou et al., 2024,
    arXiv:2402.12354).
    """

    learning_rate: float
    lr_scheduler_type: str
    warmup_ratio: float
    warmup_steps: int
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    loraplus_lr_ratio: float = 1.0


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, num_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW over the trainable parameters, and the schedule for `num_steps` steps.

    The first group's rate is `learning_rate` by that schedule.

    Weight decay spares biases and norms (Loshchilov and Hutter, 2019, leave the choice open; this is what
    the field does).
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable:
        ratio = settings.loraplus_lr_ratio if _ADAPTER_B in name else 1.0
        decay = settings.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((settings.learning_rate * ratio, decay), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": groups[key], "lr": key[0], "weight_decay": key[1]} for key in sorted(groups)],
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


def optimizer_settings(args: TrainingArgs, method: Method) -> OptimizerSettings:
    """Return the optimizer that a strategy describes."""
    return OptimizerSettings(
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        warmup_ratio=args.warmup_ratio,
        warmup_steps=args.warmup_steps,
        weight_decay=args.weight_decay,
        adam_beta1=args.adam_beta1,
        adam_beta2=args.adam_beta2,
        adam_epsilon=args.adam_epsilon,
        loraplus_lr_ratio=method.loraplus_lr_ratio or 1.0,
    )
