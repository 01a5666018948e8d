"""Which epoch of a training scored highest on the validation clips, and its weights where `train.keep` asks for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from dtkd_edge.models.base import VideoModel
from dtkd_edge.train.scores import Scores

CLEARLY = 2.0  # standard errors


@dataclass
class Best:
    """Of the epochs that were evaluated so far (they count from 1 on). top1: of `action`, or of the first head; last: the newest
    epoch's. weights: the model's, on the CPU."""

    epoch: int = 0
    top1: float = -1.0
    last: float = -1.0
    clips: int = 0
    weights: dict[str, torch.Tensor] | None = None

    @classmethod
    def read(cls, saved: dict[str, Any] | None, keep: str) -> Best:
        """As a checkpoint has it. Where the best weights are wanted and were not kept so far, the search begins anew."""
        found = cls(**saved) if saved else cls()
        if keep == "last":
            found.weights = None
        elif found.weights is None:
            return cls()
        return found

    def look(self, epoch: int, scores: Scores, model: VideoModel | None) -> None:
        """Take note of an epoch; of equal ones the later is the best. model: whose weights to keep, if any."""
        head = "action" if "action" in scores.heads else scores.heads[0]
        self.last, self.clips = float(scores.accuracy(head)), len(scores)
        if self.last < self.top1:
            return
        self.epoch, self.top1 = epoch, self.last
        if model is not None:
            self.weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    @property
    def clearly_better(self) -> bool:
        """Than the last epoch: by more than chance makes of so few clips."""
        share = (self.top1 + self.last) / 2
        return self.top1 - self.last > CLEARLY * math.sqrt(share * (1 - share) / max(self.clips, 1))

    def words(self, epochs: int, section: str) -> str:
        """What deserves to be said at the end of a training of so many epochs, or nothing. section: of the recipe, with its
        settings."""
        if self.epoch in (0, epochs):
            return ""
        best = f"validation top-1 {self.top1:.3f} in epoch {self.epoch}"
        if self.weights is not None:
            return f"kept: the best, {best}; the last: {self.last:.3f}"
        return f"best {best}, kept: the last, {self.last:.3f} ({section}.keep=best keeps the best)" if self.clearly_better else ""
