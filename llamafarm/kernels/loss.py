"""The loss of the supervised tokens.

Axes: S supervised positions, D hidden size, V vocabulary, C a chunk of S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from llamafarm.kernels.compiled import kernels_for
from llamafarm.kernels.products import Term, multiply

# Positions whose logits exist at once. Fewer read the head's weights more often from memory, more fall out
# of the caches between the passes over them.
CHUNK_POSITIONS = {"cpu": 256, "mps": 512, "cuda": 2048}
# Products of other numbers of positions take up to a third longer.
_MULTIPLE = 16
# What the gradient is multiplied with while it is in fp16, whose smallest numbers are as large as most
# chances in a vocabulary; bf16 reaches as low as fp32.
_FP16_FACTOR = 1024.0
# Above this loss, a chance of 1e-30, a softmax in 16 bits is not trusted for it.
_MOST_LOSS = 69.0


@dataclass(frozen=True, slots=True)
class Head:
    """A frozen output layer: logits are hidden @ weight.T * scale, then bounded by a tanh if `softcap`."""

    weight_VD: torch.Tensor
    scale: float = 1.0
    softcap: float | None = None

    def write_logits(self, hidden_CD: torch.Tensor, out_CV: torch.Tensor) -> None:
        """Put the logits into `out_CV`."""
        multiply([Term(hidden_CD, self.weight_VD)], out_TO=out_CV)
        if self.scale != 1.0:
            out_CV *= self.scale
        if self.softcap is not None:
            out_CV.div_(self.softcap).tanh_().mul_(self.softcap)


def sum_cross_entropy(logits_SV: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    """Return the summed negative log-likelihood of the targets, in nats, computed in fp32.

    A sum, because the mean belongs to the whole optimizer step and is taken there.
    """
    return functional.cross_entropy(logits_SV.float(), targets_S, reduction="sum")


def cross_entropies(logits_SV: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each target (S,) in nats, computed in fp32."""
    return functional.cross_entropy(logits_SV.float(), targets_S, reduction="none")


def head_losses(hidden_SD: torch.Tensor, head: Head, targets_S: torch.Tensor) -> torch.Tensor:
    """Return `cross_entropies` of a head's logits, a chunk of positions at a time and without a gradient."""
    size = _chunk_size(hidden_SD)
    logits_CV = hidden_SD.new_empty(size, len(head.weight_VD))
    losses_S = torch.empty_like(targets_S, dtype=torch.float32)
    for start in range(0, len(hidden_SD), size):
        chunk = slice(start, start + size)
        there_CV = logits_CV[: len(targets_S[chunk])]
        head.write_logits(hidden_SD[chunk], there_CV)
        losses_S[chunk] = cross_entropies(there_CV, targets_S[chunk])
    return losses_S


def _chunk_size(hidden_SD: torch.Tensor) -> int:
    num_positions = len(hidden_SD) + -len(hidden_SD) % _MULTIPLE
    return max(min(CHUNK_POSITIONS[hidden_SD.device.type], num_positions), 1)


def _filled_up(tensor_S: torch.Tensor) -> torch.Tensor:
    """Return a tensor with zeros at its end, so that `_MULTIPLE` divides its positions."""
    num_fillers = -len(tensor_S) % _MULTIPLE
    return torch.cat((tensor_S, tensor_S.new_zeros(num_fillers, *tensor_S.shape[1:])))


def sum_head_loss(hidden_SD: torch.Tensor, head: Head, targets_S: torch.Tensor) -> torch.Tensor:
    """Return `sum_cross_entropy` of a frozen head's logits, a chunk of positions at a time.

    The head gets no gradient, so that of the hidden states is formed with the loss, while a chunk's logits
    are at hand: neither all logits nor a second product with the head are needed.
    """
    loss: torch.Tensor = _HeadLoss.apply(hidden_SD, head, targets_S)  # type: ignore[no-untyped-call]
    return loss


class _HeadLoss(torch.autograd.Function):
    """`sum_head_loss`."""

    @staticmethod
    def forward(ctx: Any, hidden_SD: torch.Tensor, head: Head, targets_S: torch.Tensor) -> torch.Tensor:
        if not ctx.needs_input_grad[0]:
            return head_losses(hidden_SD, head, targets_S).sum()
        num_positions, size = len(hidden_SD), _chunk_size(hidden_SD)
        hidden_SD, targets_S = _filled_up(hidden_SD), _filled_up(targets_S)
        # One buffer for all chunks: memory that is asked for anew costs more than a pass over it.
        logits_CV = hidden_SD.new_empty(size, len(head.weight_VD))
        d_hidden_SD = torch.empty_like(hidden_SD)
        losses_S = torch.empty_like(targets_S, dtype=torch.float32)
        is_in_one_pass = kernels_for(hidden_SD, "loss") is not None
        for start in range(0, len(hidden_SD), size):
            chunk = slice(start, start + size)
            there_CV = logits_CV[: len(targets_S[chunk])]
            to_gradient = _to_gradient_in_one_pass if is_in_one_pass else _to_gradient
            losses_S[chunk] = to_gradient(hidden_SD[chunk], there_CV, targets_S[chunk], head)
            multiply([Term(there_CV, head.weight_VD, along=True)], out_TO=d_hidden_SD[chunk])
        ctx.save_for_backward(d_hidden_SD[:num_positions])
        ctx.factor = _factor_of(hidden_SD)
        losses_S = losses_S[:num_positions]
        if not is_in_one_pass and bool((losses_S > _MOST_LOSS).any()):
            # A chance too small to tell how small: seen in runs that diverge.
            losses_S = head_losses(hidden_SD[:num_positions], head, targets_S[:num_positions])
        return losses_S.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (d_hidden_SD,) = ctx.saved_tensors
        return d_hidden_SD * (gradients[0] / ctx.factor).to(d_hidden_SD.dtype), None, None


def _factor_of(hidden_SD: torch.Tensor) -> float:
    return _FP16_FACTOR if hidden_SD.dtype == torch.float16 else 1.0


def _to_gradient_in_one_pass(
    hidden_CD: torch.Tensor, logits_CV: torch.Tensor, targets_C: torch.Tensor, head: Head
) -> torch.Tensor:
    """Do what `_to_gradient` does by one kernel; the loss is that of the logits, in fp32."""
    multiply([Term(hidden_CD, head.weight_VD)], out_TO=logits_CV)
    factor = _factor_of(hidden_CD)
    compiled = kernels_for(hidden_CD, "loss")
    losses_C: torch.Tensor = compiled.loss_and_gradient(
        logits_CV, targets_C, head.scale, head.softcap, factor
    )
    return losses_C


def _to_gradient(
    hidden_CD: torch.Tensor, logits_CV: torch.Tensor, targets_C: torch.Tensor, head: Head
) -> torch.Tensor:
    """Fill `logits_CV` with the gradient to the product with the head; return the targets' losses (C,).

    The softmax is taken in fp32 inside. In 16 bits a chance is as exact as the logits that it comes from. The
    gradient in fp16 is `_FP16_FACTOR` times itself.
    """
    head.write_logits(hidden_CD, logits_CV)
    chosen_C1 = targets_C[:, None]
    slope_CV = None if head.softcap is None else 1 - (logits_CV / head.softcap).square_()
    if logits_CV.dtype == torch.float16:
        wide_CV = torch.softmax(logits_CV, dim=1, dtype=torch.float32)
        chances_C1 = wide_CV.gather(1, chosen_C1)
        chances_CV = logits_CV.copy_(wide_CV.scatter_(1, chosen_C1, chances_C1 - 1).mul_(_FP16_FACTOR))
    else:
        chances_CV = torch.softmax(logits_CV, dim=1, out=logits_CV)
        chances_C1 = chances_CV.gather(1, chosen_C1)
        chances_CV.scatter_(1, chosen_C1, chances_C1 - 1)
    if slope_CV is not None:
        chances_CV *= slope_CV
    if head.scale != 1.0:
        chances_CV *= head.scale
    return chances_C1[:, 0].float().log_().neg_()
