"""Accuracy of a torch model over a loader, in the deploy preprocessing, one view per clip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dtkd_edge.models.base import VideoModel, fit_clip


@dataclass
class Scores:
    """Per head: logits `[n, K]` and labels `[n]`, in the catalogue's order; broken clips are left out, and said in `broken`."""

    logits: dict[str, NDArray[np.float32]]
    labels: dict[str, NDArray[np.int64]]
    broken: list[str] = field(default_factory=list)

    @classmethod
    def join(cls, parts: list[Scores]) -> Scores:
        """Of several parts of a catalogue, in their order."""
        heads = parts[0].logits
        return cls(
            {head: np.concatenate([part.logits[head] for part in parts]) for head in heads},
            {head: np.concatenate([part.labels[head] for part in parts]) for head in heads},
            [why for part in parts for why in part.broken],
        )

    def accuracy(self, head: str, k: int = 1) -> float:
        """Share of clips whose label is among the k highest logits."""
        logits, labels = self.logits[head], self.labels[head]
        if len(labels) == 0:
            return 0.0
        best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
        return float((best == labels[:, None]).any(1).mean())

    def table(self) -> dict[str, float]:
        """`{head}_top1`, `{head}_top5` (where there are more than five classes) and `n`."""
        out: dict[str, float] = {}
        for head, logits in self.logits.items():
            out[f"{head}_top1"] = self.accuracy(head)
            if logits.shape[1] > 5:
                out[f"{head}_top5"] = self.accuracy(head, 5)
        out["n"] = len(next(iter(self.labels.values())))
        return out

    @property
    def top1(self) -> float:
        """Mean over heads."""
        return float(np.mean([self.accuracy(head) for head in self.logits]))


@torch.inference_mode()
def evaluate(model: VideoModel, loader: Iterable[dict[str, Any]], device: torch.device) -> Scores:
    """Run the model in eval mode (and put it back as it was)."""
    was_training = model.training
    model.eval()
    logits: dict[str, list[torch.Tensor]] = {head: [] for head in model.heads}
    labels: dict[str, list[torch.Tensor]] = {head: [] for head in model.heads}
    broken: list[str] = []
    for batch in loader:
        broken += [why for _, why in batch.get("broken", [])]
        if batch["frames"] is None or len(batch["frames"]) == 0:
            continue
        out = model(fit_clip(batch["frames"].to(device, non_blocking=True), model.info))
        for head in model.heads:
            logits[head].append(out[head].float().cpu())
            labels[head].append(batch["labels"][head])
    model.train(was_training)

    def join(parts: list[torch.Tensor], width: int | None) -> Any:
        if not parts:
            return np.zeros((0, width) if width else (0,), np.float32 if width else np.int64)
        return torch.cat(parts).numpy()

    return Scores(
        {head: join(parts, model.heads[head]) for head, parts in logits.items()},
        {head: join(parts, None) for head, parts in labels.items()},
        broken,
    )
