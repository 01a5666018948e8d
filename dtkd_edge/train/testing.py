"""`dtkd-edge eval`: test views of whole videos, for a run's torch student or for an exported artefact."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.artifact import MANIFEST, Artifact
from dtkd_edge.console import progress, say
from dtkd_edge.data.catalogue import Catalogue, open_split
from dtkd_edge.data.lists import note_trained_on
from dtkd_edge.errors import DataError, InputError, VideoError
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.runs import find_run
from dtkd_edge.train.scores import Scores
from dtkd_edge.train.submission import check_data
from dtkd_edge.video import read_input

# uint8 RGB [views, T, S, S, 3] → {head: logits [views, K]}
Predict = Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]


@dataclass
class Evaluation:
    """result: what is printed. scores: log-probabilities of the model's classes. labels: their names, per head. numbers: per head
    the model's class number of each of the catalogue's classes, -1 where it has none."""

    result: dict[str, Any]
    scores: Scores
    labels: dict[str, list[str]]
    catalogue: Catalogue
    numbers: dict[str, list[int]]


def evaluate_target(
    target: Path | None, overrides: list[str], views: tuple[int, int], data: Path | None = None, *, submission: bool = False
) -> Evaluation:
    """Mean of the softmax over temporal × spatial views of every validation clip.

    data: other labelled videos than the run's own, a folder or a csv list. Their classes are matched to the model's by name;
    clips of classes that it does not know are counted and left out. submission: every segment is wanted, labelled or not, and no
    video may be missing.
    """
    other = None if data is None else recipes.data_at(data, overrides)  # refused before a network is read
    predict, preprocess, labels, run, name = _open(target, overrides)
    if other is not None:
        config = other
    elif run is not None:
        config = recipes.load_run(run, overrides).data
    else:
        config = recipes.load("folder", overrides).data
    if submission:
        config = config.model_copy(update={"max_missing": 0.0})
    catalogue = open_split(config, "val", unlabelled=submission)
    if other is not None and run is not None:
        note_trained_on(catalogue, recipes.load_run(run).data)
    for line in catalogue.notes:
        say(line)
    if submission:
        check_data(catalogue)
    numbers = _match(labels, catalogue.classes, name)
    probabilities: dict[str, list[NDArray[np.float64]]] = {head: [] for head in labels}
    wanted: dict[str, list[int]] = {head: [] for head in labels}
    index: list[int] = []
    broken = 0
    known = list(range(len(catalogue)))
    if not submission:
        known = [i for i in known if min(numbers[head][catalogue.labels(head)[i]] for head in labels) >= 0]
    unknown = len(catalogue) - len(known)
    with progress("eval", len(known)) as bar:
        for i, frames in _read_ahead(catalogue, known, preprocess, views):
            bar.advance()
            if isinstance(frames, VideoError):
                broken += 1
                say(f"skipped: {frames.message}")
                continue
            index.append(i)
            for head, logits in predict(frames).items():
                probabilities[head].append(softmax(logits).mean(0))
                label = catalogue.labels(head)[i]
                wanted[head].append(numbers[head][label] if label >= 0 else -1)
    if not index:
        raise DataError("no validation clip decodes", f"look at them with: {config.check_command}")
    with np.errstate(divide="ignore"):  # a probability of 0 is a score of -inf
        logs = {head: np.log(np.stack(rows)) for head, rows in probabilities.items()}
    scores = Scores(logs, {head: np.array(own) for head, own in wanted.items()}, index=np.array(index))
    scored = catalogue.labelled and all((own >= 0).all() for own in scores.labels.values())
    parts = {part: scores.part(masks) for part, masks in catalogue.parts.items()} if scored else {}
    result = {
        "target": name,
        "views": f"{views[0]}x{views[1]}",
        "n": len(scores),
        "broken": broken,
        **({"unknown": unknown} if unknown else {}),
        "heads": {head: _row(scores, head) for head in scores.heads} if scored else {},
        **({"parts": parts} if parts else {}),
    }
    return Evaluation(result, scores, labels, catalogue, numbers)


def _read_ahead(
    catalogue: Catalogue, numbers: list[int], preprocess: Preprocess, views: tuple[int, int]
) -> Iterator[tuple[int, NDArray[np.uint8] | VideoError]]:
    """Clips as model input, in order, read by threads a few clips ahead (the decoder lets go of the interpreter lock)."""

    def read(number: int) -> NDArray[np.uint8] | VideoError:
        clip = catalogue[number]
        try:
            return read_input(
                clip.open(), preprocess, temporal_views=views[0], spatial_views=views[1], start=clip.start, end=clip.end
            )
        except VideoError as error:
            return error

    workers = min(len(os.sched_getaffinity(0)), 8)
    with ThreadPoolExecutor(workers, thread_name_prefix="eval") as pool:
        ahead: deque[tuple[int, Future[NDArray[np.uint8] | VideoError]]] = deque()
        try:
            for number in numbers:
                ahead.append((number, pool.submit(read, number)))
                if len(ahead) > workers:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _row(scores: Scores, head: str) -> dict[str, float]:
    row = scores.tops(head)
    if head in scores.labels:
        row["mean_class"] = scores.mean_class_accuracy(head)
    return row


def _match(labels: dict[str, list[str]], classes: dict[str, list[str]], name: str) -> dict[str, list[int]]:
    """For each head the model's class number of each of the data set's classes, by name; -1 where it has none."""
    numbers: dict[str, list[int]] = {}
    for head, own in labels.items():
        known = {label: i for i, label in enumerate(own)}
        numbers[head] = [known.get(label, -1) for label in classes.get(head, [])]
        if max(numbers[head], default=-1) < 0:
            raise DataError(
                f"{name}: none of its {len(own)} classes of head {head} is among the data set's {len(classes.get(head, []))}",
                "evaluate on the data that it was trained for",
            )
        strange = [label for label, number in zip(classes[head], numbers[head], strict=True) if number < 0]
        if strange:
            say(f"{name}: does not know {len(strange)} of the data set's {len(classes[head])} classes, such as {strange[0]!r}")
    return numbers


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Over the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    out: NDArray[np.float64] = shifted / shifted.sum(-1, keepdims=True)
    return out


def _open(target: Path | None, overrides: list[str]) -> tuple[Predict, Preprocess, dict[str, list[str]], Path | None, str]:
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
    from dtkd_edge.train.engine import find_device
    from dtkd_edge.train.memory import InParts, keep_freed_memory, memory_errors

    keep_freed_memory()
    model, card = load_model(folder / "student")
    device = find_device(recipes.load(folder / "recipe.yaml", overrides).device)
    with memory_errors(str(folder), "--set device=cpu takes the CPU"):
        model.to(device)
    ask = InParts(lambda frames: model(fit_clip(frames.to(device), model.info)), "evaluation")

    @torch.inference_mode()
    def run_torch(frames: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return {head: logits.cpu().numpy() for head, logits in ask(torch.from_numpy(frames)).items()}

    return run_torch, card.preprocess, card.labels, folder, str(folder)
