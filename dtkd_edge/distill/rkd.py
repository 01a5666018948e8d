"""Relational knowledge distillation (Park, Kim, Lu, Cho: Relational knowledge distillation, CVPR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dtkd_edge.distill.precision import full_precision


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """x_j - x_i `[B, B, D]` and their lengths `[B, B]`, 0 with gradient 0 where two rows are equal.

    From the differences themselves: by the Gram matrix two equal rows would come out at a distance of rounding noise. Rows that
    differ by no more than float32's rounding are equal: their direction means nothing, and its gradient would be enormous.
    """
    difference = x.unsqueeze(0) - x.unsqueeze(1)
    lengths = torch.linalg.vector_norm(difference, dim=-1)
    noise = 1e-6 * torch.linalg.vector_norm(x.detach(), dim=-1).amax()
    return difference, torch.where(lengths > noise, lengths, 0)


def _normalised(lengths: Tensor) -> Tensor:
    """Distances divided by the mean of those that are not 0; all equal features give all zeros."""
    mean = lengths.sum() / (lengths > 0).sum().clamp(min=1)
    return lengths / torch.where(mean > 0, mean, 1)


def _cosines(difference: Tensor, lengths: Tensor) -> Tensor:
    """cos ∠(i, j, k), the angle at j between x_i and x_k, as `[j, i, k]`; 0 where an arm has no length."""
    arms = difference / torch.where(lengths > 0, lengths, 1).unsqueeze(-1)
    return arms @ arms.transpose(1, 2)


@full_precision
def relational_loss(student: Tensor, teacher: Tensor, *, distance: float = 1.0, angle: float = 2.0) -> Tensor:
    """RKD of embeddings, student `[B, D]` and teacher `[B, D']` → scalar: distance · L_D + angle · L_A.

        ψ_D(i, j)    = ‖x_i - x_j‖ / μ,  μ the mean distance of the batch's pairs that are apart
        ψ_A(i, j, k) = cos ∠ x_i x_j x_k
        L            = mean of Huber(ψ(student), ψ(teacher)), δ = 1, over pairs (triples) of different samples

    The reference code divides by B² and B³, counting a sample with itself as a zero; this is the mean over what is compared. A
    batch below 2 has no pair and one below 3 no triple: that part is 0. Equal features give neither a NaN value nor a NaN
    gradient. Below a batch of about 8 it is mostly noise: gather the batch of all devices first. Memory grows as B²·D + B³.
    """
    batch = student.shape[0]
    loss = student.sum() * 0  # keeps the graph: backward works on a batch of 1
    if batch < 2:
        return loss
    teacher = teacher.detach()
    student_arms, student_lengths = _differences(student)
    teacher_arms, teacher_lengths = _differences(teacher)
    if distance:
        pairs = F.smooth_l1_loss(_normalised(student_lengths), _normalised(teacher_lengths), reduction="sum")
        loss = loss + distance * pairs / (batch * (batch - 1))  # the diagonal is 0 in both
    if angle and batch > 2:
        huber = F.smooth_l1_loss(
            _cosines(student_arms, student_lengths), _cosines(teacher_arms, teacher_lengths), reduction="none"
        )
        different = 1 - torch.eye(batch, device=huber.device, dtype=huber.dtype)  # i = k: the cosine is 1 by definition
        loss = loss + angle * (huber * different).sum() / (batch * (batch - 1) * (batch - 2))
    return loss
