"""Distillation of logits (Hinton, Vinyals, Dean: Distilling the knowledge in a neural network, 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from dtkd_edge.distill.precision import full_precision


def _kl_rows(student_logits: Tensor, target_logits: Tensor, temperature: float) -> Tensor:
    """KL( softmax(target/T) ‖ softmax(student/T) ) per sample, `[B]`; no gradient into the target."""
    log_s = F.log_softmax(student_logits / temperature, -1)
    log_t = F.log_softmax(target_logits.detach() / temperature, -1)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)


@full_precision
def kd_loss(student_logits: Tensor, target_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL( softmax(target/T) ‖ softmax(student/T) ), mean over the batch: two `[B, K]` → scalar, in nats.

    T² keeps the size of the gradient independent of T. No gradient flows into the target.
    """
    return temperature**2 * _kl_rows(student_logits, target_logits, temperature).mean()


@full_precision
def weighted_kd_loss(student_logits: Tensor, teacher_logits: Sequence[Tensor], weights: Tensor, temperature: float) -> Tensor:
    """T² · mean_b Σ_k ω_bk KL(p_k ‖ p_S): k teachers' `[B, K]` and ω `[B, k]` → scalar.

    The weights stand outside the divergence here, where `fused_logits` mixes the logits before it.
    """
    loss = student_logits.new_zeros(())
    for k, logits in enumerate(teacher_logits):
        loss = loss + (weights[:, k].detach() * _kl_rows(student_logits, logits, temperature)).mean()
    return temperature**2 * loss
