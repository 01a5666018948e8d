"""Accuracy of a torch model over a loader, in the deploy preprocessing, one view per clip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from dtkd_edge.models.base import VideoModel, fit_clip
from dtkd_edge.train.memory import InParts
from dtkd_edge.train.scores import Scores


@torch.inference_mode()
def evaluate(model: VideoModel, loader: Iterable[dict[str, Any]], device: torch.device) -> Scores:
    """Run the model in eval mode (and put it back as it was), on parts of a batch where the memory is short."""
    was_training = model.training
    model.eval()
    logits: dict[str, list[torch.Tensor]] = {head: [] for head in model.heads}
    labels: dict[str, list[torch.Tensor]] = {head: [] for head in model.heads}
    index: list[torch.Tensor] = []
    broken: list[str] = []
    run = InParts(lambda frames: model(fit_clip(frames.to(device, non_blocking=True), model.info)), "evaluation")
    for batch in loader:
        broken += [why for _, why in batch.get("broken", [])]
        if batch["frames"] is None or len(batch["frames"]) == 0:
            continue
        out = run(batch["frames"])
        index.append(batch["index"])
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
        join(index, None),
    )
