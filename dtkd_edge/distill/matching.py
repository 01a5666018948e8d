"""Where features meet: which tap of a student is held against which tap of a teacher.

A CNN teacher of the student's kind has the student's stages, so that each of them can be matched. Matching several stages is
almost as old as distillation of features (Zagoruyko and Komodakis, ICLR 2017). A ViT has no such stages, and one of its taps is
read: the last, or the one half-way up (`vit_tap`), where its tokens still tell what is where. The last ones serve one vector,
their mean or the class token, and with a mean they keep little of their place (Raghu et al., Do vision transformers see like
convolutional neural networks?, NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from dtkd_edge.distill import sdd
from dtkd_edge.errors import RecipeError
from dtkd_edge.models.base import ModelInfo
from dtkd_edge.recipe import DistillConfig

_PHI_SEED = {"cnn": 1, "vit": 2}  # φ is not in a checkpoint: these numbers must stay
_STAGE_SEED = 10  # of φ one stage before the last, and so on


def tap_pairs(student: ModelInfo, teacher: ModelInfo, name: str, config: DistillConfig) -> dict[str, str]:
    """Student's tap → tap of the teacher "cnn" or "vit", last ones first. With `align_taps: all`, the stages of a CNN pair from
    the last one back, as many as the network with fewer has."""
    ours, theirs = list(student.taps)[::-1], [tap for tap in list(teacher.taps)[::-1] if tap != "middle"]
    if name == "vit" and config.vit_tap == "middle":
        if teacher.middle is None:
            raise RecipeError(f"distill.vit_tap: middle: {teacher.name} has no such features", "--set distill.vit_tap=last")
        return {ours[0]: teacher.middle}
    pairs = dict(zip(ours, theirs, strict=False))
    return pairs if name == "cnn" and config.align_taps == "all" else {ours[0]: theirs[0]}


class Projections(nn.ModuleDict):
    """φ of one teacher, by the names of its taps; no parameters, nothing in a checkpoint."""

    def __init__(self, name: str, teacher: ModelInfo, taps: list[str], config: DistillConfig) -> None:
        super().__init__()
        options = config.branch
        for number, tap in enumerate(taps):
            seed = _STAGE_SEED + number if number else _PHI_SEED[name]
            self[tap] = sdd.FixedProjection(teacher.taps[tap], options.channels, options.grid, seed)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Taps `[B, C, T, H, W]` → φ of them `[B, channels, *grid]`, the last one first."""
        projections = [cast(sdd.FixedProjection, project) for project in self.values()]
        return dict(zip(self, sdd.project_standardised(projections, [features[tap] for tap in self]), strict=True))


class Matching(nn.Module):
    """P of every pair of taps: a 1×1×1 convolution of the student's features that is to give φ of the teacher's. Never
    exported."""

    def __init__(self, student: ModelInfo, pairs: Mapping[str, str], config: DistillConfig) -> None:
        super().__init__()
        options = config.branch
        self.pairs = dict(pairs)
        self.project = nn.ModuleDict({t: sdd.LinearMap(student.taps[t], options.channels, options.grid) for t in pairs})

    def forward(self, student: Mapping[str, Tensor], phi: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Taps of the student `[B, C, T, H, W]` and φ of the teacher's by tap → predictions and targets of unit variance, a pair
        of `[B, channels, *grid]` for each pair of taps."""
        predictions = [self.project[ours](student[ours]) for ours in self.pairs]
        targets, _ = sdd.unit_variances([phi[theirs] for theirs in self.pairs.values()])
        return predictions, targets


def mean_distance(predictions: list[Tensor], targets: list[Tensor], kind: str) -> Tensor:
    """`feature_distance` averaged over pairs of taps, a scalar: as large for many taps as for one."""
    ours, theirs = (torch.stack([sdd.to_places(x) for x in taps]) for taps in (predictions, targets))
    return sdd.feature_distance(ours, theirs, kind)
