"""Discrepancy-aware teacher weighting (DATW): how much of either teacher's logits goes into the target of one sample.

From DTKD (Peng et al., arXiv 2511.09469) are the inputs, a teacher's confidence C_k and its discrepancy D_k from the student,
and the fused target z = Σ_k ω_k z_k per sample. The formula of ω is a reading of it, and each part is an option:

    p_k = softmax(z_k)        H_k = -Σ_c p_k log p_k
    C_k = 1 - H_k / log K          (entropy)   |  max_c p_k  |  exp(-H_k)
    D_k = 1 - cos(z_k, z_S)        (cosine)    |  KL(p_k ‖ p_S)  |  JS(p_k, p_S)  |  Σ_c |p_k - p_S|
    e_k = C_k · D_k                (product)   |  C_k + λ D_k
    ω_k = e_k / Σ_j e_j            (share; all equal where Σ e < ε)  |  softmax(e / τ)

A part that is `none` drops out: C only, D only, or, with both dropped, equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dtkd_edge.distill.precision import full_precision
from dtkd_edge.errors import UsageError

EPSILON = 1e-6  # a sum of scores below this says nothing about which teacher to trust


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats: `[B, K]` → `[B]`."""
    log_p = F.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def _confidence(logits: Tensor, kind: str) -> Tensor:
    if kind == "entropy":
        classes = logits.shape[-1]
        return 1 - entropy(logits) / math.log(classes) if classes > 1 else torch.ones_like(logits[..., 0])
    if kind == "max":
        return logits.softmax(-1).amax(-1)
    if kind == "exp-entropy":
        return torch.exp(-entropy(logits))
    raise UsageError(f"confidence: {kind}: unknown", "one of: entropy, max, exp-entropy, none")


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _discrepancy(teacher: Tensor, student: Tensor, kind: str) -> Tensor:
    if kind == "cosine":
        return 1 - F.cosine_similarity(teacher, student, dim=-1)
    log_t, log_s = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    if kind == "kl":
        return _kl(log_t, log_s)
    if kind == "js":
        log_m = torch.logaddexp(log_t, log_s) - math.log(2)
        return (_kl(log_t, log_m) + _kl(log_s, log_m)) / 2
    if kind == "l1":
        return (log_t.exp() - log_s.exp()).abs().sum(-1)
    raise UsageError(f"discrepancy: {kind}: unknown", "one of: cosine, kl, js, l1, none")


def share(scores: Tensor) -> Tensor:
    """Non-negative scores `[B, k]` → weights that sum to 1 per row; equal ones where a row's sum is below EPSILON."""
    total = scores.sum(-1, keepdim=True)
    equal = torch.full_like(scores, 1 / scores.shape[-1])
    return torch.where(total < EPSILON, equal, scores / total.clamp(min=EPSILON))


@torch.no_grad()
@full_precision
def teacher_weights(
    student_logits: Tensor,
    teacher_logits: Sequence[Tensor],
    *,
    confidence: str = "entropy",
    discrepancy: str = "cosine",
    combine: str = "product",
    discrepancy_weight: float = 1.0,
    normalize: str = "share",
    temperature: float = 0.5,
) -> Tensor:
    """ω `[B, k]` for k teachers, from logits `[B, K]` each; rows sum to 1, no gradient. The formulas are above."""
    if combine not in ("product", "sum"):
        raise UsageError(f"combine: {combine}: unknown", "one of: product, sum")
    if normalize not in ("share", "softmax"):
        raise UsageError(f"normalize: {normalize}: unknown", "one of: share, softmax")
    neutral = 1.0 if combine == "product" else 0.0
    scores = []
    for logits in teacher_logits:
        none = torch.full_like(logits[..., 0], neutral)
        c = none if confidence == "none" else _confidence(logits, confidence).clamp(min=0)
        d = none if discrepancy == "none" else _discrepancy(logits, student_logits, discrepancy).clamp(min=0)
        scores.append(c * d if combine == "product" else c + discrepancy_weight * d)
    e = torch.stack(scores, -1)
    return share(e) if normalize == "share" else (e / temperature).softmax(-1)


@full_precision
def fused_logits(teacher_logits: Sequence[Tensor], weights: Tensor, standardize: bool = False) -> Tensor:
    """z = Σ_k ω_k z_k: k logits `[B, K]` and ω `[B, k]` → `[B, K]`.

    A teacher whose logits are larger dominates a sum of logits whatever ω says. `standardize` centres every teacher's logits per
    sample and scales them to one common spread, the mean of the teachers' standard deviations of that sample.
    """
    stacked = torch.stack(list(teacher_logits), 1)  # [B, k, K]
    if standardize:
        centred = stacked - stacked.mean(-1, keepdim=True)
        spread = centred.square().mean(-1, keepdim=True).sqrt()
        stacked = centred / spread.clamp(min=EPSILON) * spread.mean(1, keepdim=True)
    return (weights.to(stacked.dtype).unsqueeze(-1) * stacked).sum(1)
