"""`dtkd-edge eval`: test views of whole videos, for a run's torch student or for an exported artefact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge import recipe as recipes
from dtkd_edge.artifact import MANIFEST, Artifact
from dtkd_edge.console import progress, say
from dtkd_edge.data.catalogue import open_split
from dtkd_edge.errors import DataError, InputError, VideoError
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.runs import find_run
from dtkd_edge.video import read_input

# uint8 RGB [views, T, S, S, 3] → {head: logits [views, K]}
Predict = Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]


def evaluate_target(target: Path | None, overrides: list[str], views: tuple[int, int]) -> dict[str, Any]:
    """Mean of the softmax over temporal × spatial views of every validation clip → top-1, top-5 per head."""
    predict, preprocess, labels, run, name = _open(target)
    source = run / "recipe.yaml" if run is not None else "folder"
    config = recipes.load(source, overrides)
    catalogue = open_split(config.data, "val")
    for head, names in catalogue.classes.items():
        if labels.get(head) != list(names):
            raise DataError(
                f"{name}: its {len(labels.get(head, []))} classes of head {head} are not the data set's {len(names)}",
                "evaluate on the data that it was trained for",
            )
    hits: dict[str, list[tuple[bool, bool]]] = {head: [] for head in labels}
    broken = 0
    with progress("eval", len(catalogue)) as bar:
        for i in range(len(catalogue)):
            clip = catalogue[i]
            bar.advance()
            try:
                frames = read_input(
                    clip.path, preprocess, temporal_views=views[0], spatial_views=views[1], start=clip.start, end=clip.end
                )
            except VideoError as error:
                broken += 1
                say(f"skipped: {error.message}")
                continue
            for head, logits in predict(frames).items():
                order = np.argsort(-softmax(logits).mean(0), kind="stable")
                label = clip.labels[head]
                hits[head].append((bool(order[0] == label), bool(label in order[:5])))
    if broken == len(catalogue):
        raise DataError("no validation clip decodes", "look at them with: dtkd-edge data check")
    heads = {}
    for head, pairs in hits.items():
        heads[head] = {"top1": float(np.mean([a for a, _ in pairs]))}
        if len(labels[head]) > 5:
            heads[head]["top5"] = float(np.mean([b for _, b in pairs]))
    return {
        "target": name,
        "views": f"{views[0]}x{views[1]}",
        "n": len(catalogue) - broken,
        "broken": broken,
        "heads": heads,
    }


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Over the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    out: NDArray[np.float64] = shifted / shifted.sum(-1, keepdims=True)
    return out


def _open(target: Path | None) -> tuple[Predict, Preprocess, dict[str, list[str]], Path | None, str]:
    """What evaluates, how it is fed, its labels, and the run that it belongs to."""
    if target is not None and (target / MANIFEST).is_file():
        from dtkd_edge.deploy.backends import open_backend

        artifact = Artifact.open(target)
        backend = open_backend(artifact)
        size = artifact.manifest.input.shape[0]

        def batches(frames: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            # A static graph takes its own batch: fill the last one up, and cut the answer.
            step = size if size > 0 else len(frames)
            parts = []
            for at in range(0, len(frames), step):
                part = frames[at : at + step]
                filled = np.concatenate([part, np.repeat(part[-1:], step - len(part), 0)])
                parts.append({head: logits[: len(part)] for head, logits in backend.run(filled).items()})
            return {head: np.concatenate([p[head] for p in parts]) for head in parts[0]}

        run = target.resolve().parent.parent  # RUN/export/ARTEFACT
        owner = run if (run / "recipe.yaml").is_file() else None
        return batches, artifact.manifest.preprocess, artifact.manifest.labels, owner, str(target)
    if target is not None and not target.is_dir():
        raise InputError(f"{target}: no such run or artefact", "give a run folder or an exported folder")
    folder = find_run(target)
    import torch

    from dtkd_edge.models.base import fit_clip
    from dtkd_edge.models.saved import load_model

    model, card = load_model(folder / "student")

    @torch.inference_mode()
    def run_torch(frames: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        out = model(fit_clip(torch.from_numpy(frames), model.info))
        return {head: logits.numpy() for head, logits in out.items()}

    return run_torch, card.preprocess, card.labels, folder, str(folder)
