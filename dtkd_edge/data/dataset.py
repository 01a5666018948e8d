"""Clips as training reads them: decoded, sampled, cropped, and kept in memory while they fit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dtkd_edge.data.augment import augment, shrink, working_side
from dtkd_edge.data.catalogue import Catalogue, Clip
from dtkd_edge.data.loader import Loader, make_loader
from dtkd_edge.errors import VideoError
from dtkd_edge.preprocess import JointSampling, Preprocess, Sampling
from dtkd_edge.recipe import AugmentConfig
from dtkd_edge.video import Source

__all__ = ["ClipDataset", "FrameCache", "Loader", "make_loader"]

Frames = NDArray[np.uint8]
WORTH_KEEPING = 0.25  # share of a data set
KNOWN = 4096  # clips whose path and labels are made once: of a set in memory they are a fifth of what an item costs


class FrameCache:
    """Arrays by key, up to a limit in MB; what does not fit is not kept. Threads may share it, and data sets too."""

    def __init__(self, limit_mb: int) -> None:
        self.limit = limit_mb << 20
        self.used = 0
        self._kept: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable) -> Any:
        return self._kept.get(key)

    def room(self, size: int) -> bool:
        """Whether so many bytes would still fit."""
        return self.used + size <= self.limit

    def put(self, key: Hashable, value: Any, size: int) -> None:
        with self._lock:
            if key not in self._kept and self.room(size):
                self._kept[key] = value
                self.used += size


class ClipDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Item i: `{"frames": uint8 [T, size, size, 3], "labels": {head: int}, "index": i}`, or `{"broken": why, "index": i}`.

    augment given: training. Frames are sampled at random, then cropped, mirrored and recoloured, all of it drawn from
    (seed, epoch, index) alone, so that a resumed run sees what the interrupted one would have seen; views: how many such
    draws a clip has, one per epoch in turn, where they are to come again (none: every epoch's is new). augment None:
    evaluation, exactly the deployed preprocessing `Preprocess(resize_short, crop=size, sampling)`.

    sampling: of one network, or of all that share the clips; T is its `frames`.

    Training first scales large frames down to the short side that its smallest crop needs, whether they are then kept in
    memory or not: so the pixels do not depend on what happened to fit.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        sampling: Sampling | JointSampling,
        size: int,
        resize_short: int,
        augment: AugmentConfig | None,
        seed: int,
        cache_mb: int,
        cache: FrameCache | None = None,
        views: int | None = None,
    ) -> None:
        self.catalogue = catalogue
        self.sampling = sampling if isinstance(sampling, JointSampling) else JointSampling.of([sampling])
        self.preprocess = Preprocess(resize_short=resize_short, crop=size, sampling=self.sampling.parts[0])
        self.augment = augment
        self.seed = seed
        self.views = views
        self.epoch = 0
        self.cache = FrameCache(cache_mb) if cache is None else cache
        self._estimate: float | None = None
        self._clip = lru_cache(KNOWN)(catalogue.__getitem__)

    def set_epoch(self, epoch: int) -> None:
        """Later items are those of that epoch."""
        self.epoch = epoch

    def view(self, epoch: int) -> int:
        """The number that an epoch's augmentation is drawn with: its own, or one of `views` that come round again."""
        return epoch if self.views is None else epoch % self.views

    def describe(self) -> dict[str, Any]:
        """All that the frames of an item depend on beside the clip and the view."""
        augment = None if self.augment is None else self.augment.model_dump(mode="json")
        others = [part.model_dump(mode="json") for part in self.sampling.parts[1:]]
        return {
            "preprocess": self.preprocess.model_dump(mode="json"),
            "augment": augment,
            "seed": self.seed,
            **({"also": others} if others else {}),
        }

    def __len__(self) -> int:
        return len(self.catalogue)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.item(index, self.epoch)

    def item(self, index: int, epoch: int) -> dict[str, Any]:
        clip = self._clip(index)
        try:
            frames = self._eval_frames(clip) if self.augment is None else self._train_frames(clip, index, epoch)
        except VideoError as error:
            return {"broken": str(error), "index": index}
        return {"frames": torch.from_numpy(frames), "labels": clip.labels, "index": index}

    def kept(self) -> bool:
        """Whether nearly all clips are in memory by now (a few may be broken, or left out of the last, short batch)."""
        if len(self.cache) < 0.9 * len(self):
            return False
        return sum(self._key(self._clip(index)) in self.cache for index in range(len(self))) >= 0.9 * len(self)

    def memory(self) -> float:
        """Bytes that keeping every clip would take, judged by a few of them."""
        if self._estimate is None:
            sizes = []
            for index in np.unique(np.linspace(0, len(self) - 1, 8).astype(int)):
                clip = self.catalogue[int(index)]
                try:
                    video = clip.open()
                    count = self.sampling.frames if self.augment is None else video.span(clip.start, clip.end)[1]
                    sizes.append(count * self._frame_bytes(video.read(np.zeros(1, np.int64))))
                except VideoError:
                    continue
            self._estimate = float(np.mean(sizes)) * len(self) if sizes else 0.0
        return self._estimate

    def _key(self, clip: Clip) -> Hashable:
        evaluation = (self.preprocess, self.sampling)
        kind = evaluation if self.augment is None else working_side(self.preprocess.crop, self.augment)
        return (clip.path, clip.start, clip.end, clip.frames, kind)

    def _frame_bytes(self, frames: Frames) -> int:
        """Bytes of one kept frame of a video that has these frames."""
        if self.augment is None:
            return 3 * self.preprocess.crop**2
        height, width = frames.shape[1:3]
        scale = min(working_side(self.preprocess.crop, self.augment) / min(height, width), 1.0)
        return 3 * round(height * scale) * round(width * scale)

    def _eval_frames(self, clip: Clip) -> Frames:
        key = self._key(clip)
        kept: Frames | None = self.cache.get(key)
        if kept is not None:
            return kept.copy()
        video = clip.open()
        first, total = video.span(clip.start, clip.end)
        numbers = first + self.sampling.indices(total, video.fps)
        frames = video.read(numbers, self.preprocess.frame, last=True)
        if self.cache.room(frames.nbytes):
            self.cache.put(key, frames.copy(), frames.nbytes)
        return frames

    def _train_frames(self, clip: Clip, index: int, epoch: int) -> Frames:
        assert self.augment is not None
        short = working_side(self.preprocess.crop, self.augment)
        rng = np.random.default_rng([self.seed, self.view(epoch), index])
        key = self._key(clip)
        kept: tuple[Frames, float] | None = self.cache.get(key)
        if kept is not None:
            frames, fps = kept
            return self._augmented(frames.__getitem__, self.sampling.indices(len(frames), fps, rng=rng), rng)
        video = clip.open()
        first, total = video.span(clip.start, clip.end)
        numbers = self.sampling.indices(total, video.fps, rng=rng)
        if self._keeps(video, first, total):
            try:
                frames = video.read(first + np.arange(total), partial(shrink, short=short))
            except VideoError:  # perhaps only frames that are not asked for are broken
                pass
            else:
                self.cache.put(key, (frames, video.fps), frames.nbytes)
                return self._augmented(frames.__getitem__, numbers, rng)
        read = partial(video.read, each=partial(shrink, short=short), last=True)
        return self._augmented(lambda wanted: read(first + wanted), numbers, rng)

    def _augmented(
        self, read: Callable[[NDArray[np.int64]], Frames], numbers: NDArray[np.int64], rng: np.random.Generator
    ) -> Frames:
        """Frames by number, under one draw; those that several networks read are cropped once."""
        assert self.augment is not None
        if len(self.sampling.parts) == 1:
            return augment(read(numbers), self.preprocess.crop, self.augment, rng)
        once, where = np.unique(numbers, return_inverse=True)
        return augment(read(once), self.preprocess.crop, self.augment, rng)[where]

    def _keeps(self, video: Source, first: int, total: int) -> bool:
        """Whether to decode that part of the video whole and keep it. Not where only a small share of the set would fit:
        there, whole clips cost more to decode than they save."""
        if not self.cache.room(total) or self.cache.limit < WORTH_KEEPING * self.memory():
            return False
        return self.cache.room(total * self._frame_bytes(video.read(np.array([first]))))
