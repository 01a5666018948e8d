"""The rules that DTKD is compared with, as pure functions. How they are put together is the table in `methods.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtkd_edge.distill.datw import entropy, share
from dtkd_edge.distill.precision import full_precision

__all__ = [
    "StageLogits",
    "dist_loss",
    "dkd_loss",
    "entropy_weights",
    "label_weights",
    "ofa_loss",
    "weighted_feature_loss",
]


@torch.no_grad()
@full_precision
def entropy_weights(teacher_logits: Sequence[Tensor]) -> Tensor:
    """EBKD (Kwon et al., Adaptive knowledge distillation based on entropy, ICASSP 2020): k × `[B, K]` → ω `[B, k]`.

    ω_k = 1 - H_k / Σ_j H_j, divided by k - 1 so that a row sums to 1; equal weights where every teacher is certain.
    """
    entropies = torch.stack([entropy(logits) for logits in teacher_logits], -1)
    teachers = entropies.shape[-1]
    if teachers == 1:
        return torch.ones_like(entropies)
    return share((1 - share(entropies)) / (teachers - 1))


@torch.no_grad()
@full_precision
def label_weights(teacher_logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """CA-MKD (Zhang, Chen, Wang: Confidence-aware multi-teacher KD, ICASSP 2022): k × `[B, K]`, labels `[B]` → ω `[B, k]`.

    ω_k = (1 - exp(CE_k) / Σ_j exp(CE_j)) / (k - 1); for two teachers that is p_1(y) / (p_1(y) + p_2(y)).
    """
    ce = torch.stack([F.cross_entropy(logits, labels, reduction="none") for logits in teacher_logits], -1)
    teachers = ce.shape[-1]
    return torch.ones_like(ce) if teachers == 1 else (1 - ce.softmax(-1)) / (teachers - 1)


@full_precision
def weighted_feature_loss(
    predictions: Sequence[Sequence[Tensor]], targets: Sequence[Sequence[Tensor]], weights: Tensor
) -> Tensor:
    """CA-MKD's feature part: mean_b Σ_k ω_bk · mean over taps and positions of (pred_k - target_k)², for k teachers a list of
    `[B, C, T, H, W]`, one for each tap, and ω `[B, k]` → scalar.

    The reference weighs features by how well the teacher's classifier reads the student's projected ones; here they take ω of the
    logits, and targets of unit variance instead of raw features, so that the weight does not depend on a teacher's scale.
    """

    def error(taps: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        return torch.stack([(p - t.detach()).square().flatten(1).mean(1) for p, t in zip(taps, wanted, strict=True)]).mean(0)

    errors = torch.stack([error(*pair) for pair in zip(predictions, targets, strict=True)], -1)
    return (weights.detach() * errors).sum(-1).mean()


@full_precision
def dkd_loss(
    student_logits: Tensor,
    target_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled KD (Zhao et al., CVPR 2022): two `[B, K]`, labels `[B]` → scalar, T² (α · TCKD + β · NCKD).

    TCKD: KL of (p_y, 1 - p_y), teacher ‖ student. NCKD: KL of the softmax over the classes other than y. 0 for NCKD where K = 2.
    """
    target_logits = target_logits.detach()
    classes = student_logits.shape[-1]
    others = torch.arange(classes - 1, device=labels.device)
    others = others + (others >= labels[:, None])  # [B, K-1] columns without y; boolean indexing would wait for the device

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(logits / temperature, -1)
        rest = log_p.gather(1, others)
        binary = torch.stack([log_p.gather(1, labels[:, None])[:, 0], rest.logsumexp(-1)], -1)
        return binary, F.log_softmax(rest, -1)

    (student_binary, student_rest), (target_binary, target_rest) = split(student_logits), split(target_logits)
    tckd = F.kl_div(student_binary, target_binary, reduction="batchmean", log_target=True)
    nckd = F.kl_div(student_rest, target_rest, reduction="batchmean", log_target=True)
    return temperature**2 * (alpha * tckd + beta * nckd)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation along the last dimension; 0, with gradient 0, where one of the two is constant."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return F.cosine_similarity(a, b, dim=-1, eps=1e-8)


@full_precision
def dist_loss(
    student_logits: Tensor, target_logits: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """DIST (Huang et al., Knowledge distillation from a stronger teacher, NeurIPS 2022): two `[B, K]` → scalar.

    T² (β · mean over samples of 1 - ρ(row_S, row_T) + γ · mean over classes of 1 - ρ(column_S, column_T)), ρ Pearson's
    correlation, of softmax(z/T). A batch of 1 has no relation within a class: that part is 0 then.
    """
    student = (student_logits / temperature).softmax(-1)
    target = (target_logits.detach() / temperature).softmax(-1)
    loss = beta * (1 - _pearson(student, target)).mean()
    if student.shape[0] > 1:
        loss = loss + gamma * (1 - _pearson(student.T, target.T)).mean()
    return temperature**2 * loss


@full_precision
def ofa_loss(
    student_logits: Tensor, target_logits: Tensor, labels: Tensor, *, epsilon: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """OFA-KD (Hao et al., One-for-all, NeurIPS 2023): two `[B, K]`, labels `[B]` → scalar.

    mean_b Σ_c -[(p_T(c) + 1[c = y])^ε - 1[c = y]] · log p_S(c), p = softmax(z/T). With ε = 1 it is the cross entropy with p_T.
    The reference adds up the losses of the student's stages; the task takes their mean, whatever the number of stages.
    """
    truth = F.one_hot(labels, student_logits.shape[-1]).to(student_logits.dtype)
    weight = ((target_logits.detach() / temperature).softmax(-1) + truth) ** epsilon - truth
    return -(weight * F.log_softmax(student_logits / temperature, -1)).sum(-1).mean()


class StageLogits(nn.Module):
    """OFA's branch of one stage: features `[B, C, T, H, W]` → `{head: logits [B, K]}`. For training only."""

    def __init__(self, channels: int, heads: dict[str, int]) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv3d(channels, channels, 1, bias=False), nn.GroupNorm(1, channels), nn.ReLU())
        self.linear = nn.ModuleDict({head: nn.Linear(channels, classes) for head, classes in heads.items()})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        pooled = self.mix(features).mean((2, 3, 4))
        return {head: linear(pooled) for head, linear in self.linear.items()}
