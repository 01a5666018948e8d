"""Batches of clips, read ahead by threads.

Threads and not processes: the decoder and Pillow let go of the interpreter lock, decoded clips are kept once and not once per
worker, nothing is copied between processes (so no shared-memory limit of a container is met), and Ctrl-C leaves nothing behind.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from dtkd_edge.data.dataset import ClipDataset


class Loader:
    """Iterates over one epoch, `dataset.epoch` at the time it starts. See make_loader for what a batch holds."""

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        *,
        train: bool,
        workers: int | None,
        seed: int,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.workers = workers
        self.shard = shard

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size * self.shard[1])
        return whole + (1 if rest and not (self.train and whole) else 0)

    def batches(self, epoch: int) -> list[list[int]]:
        """Clip numbers of every batch of this rank; in training shuffled by (seed, epoch) alone. The ranks' batches together are
        those of one process with batches as large as all of theirs."""
        count, (rank, world) = len(self.dataset), self.shard
        order = np.random.default_rng([self.seed, epoch]).permutation(count) if self.train else np.arange(count)
        size = self.batch_size * world
        together = [order[i * size : (i + 1) * size] for i in range(len(self))]
        shares = [len(numbers) // world for numbers in together]  # as many for every rank, also where there is no whole batch
        return [numbers[rank * n : (rank + 1) * n].tolist() for numbers, n in zip(together, shares, strict=True)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self.dataset.epoch
        workers = self.workers
        if workers is None:  # what is in memory needs so little work that handing it over costs more
            workers = 0 if self.dataset.kept() else min(len(os.sched_getaffinity(0)), 8)
        if workers == 0:
            for batch in self.batches(epoch):
                yield self._collate([self.dataset.item(index, epoch) for index in batch])
            return
        # A clip's scaling by all cores, times as many clips at once as there are workers, would be more threads than cores.
        # A thread that has computed nothing yet takes the count that any thread set last: the reader's own is settled before.
        torch.get_num_threads()
        pool = ThreadPoolExecutor(workers, "clips", initializer=partial(torch.set_num_threads, 1))
        ahead: deque[list[Future[dict[str, Any]]]] = deque()
        depth = 2 + -(-2 * workers // self.batch_size)
        try:
            for batch in self.batches(epoch):
                ahead.append([pool.submit(self.dataset.item, index, epoch) for index in batch])
                if len(ahead) >= depth:
                    yield self._collate([item.result() for item in ahead.popleft()])
            while ahead:
                yield self._collate([item.result() for item in ahead.popleft()])
        finally:  # also when the reader stops early
            pool.shutdown(wait=False, cancel_futures=True)

    def _collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        good = [item for item in items if "broken" not in item]
        if good and self.shard[1] > 1:  # ranks wait for each other: all need batches of the same size
            good = [good[i % len(good)] for i in range(len(items))]
        crop, frames = self.dataset.preprocess.crop, self.dataset.sampling.frames
        none = torch.empty((0, frames, crop, crop, 3), dtype=torch.uint8)  # every clip of the batch is broken
        return {
            "frames": torch.stack([item["frames"] for item in good]) if good else none,
            "labels": {
                head: torch.tensor([item["labels"][head] for item in good], dtype=torch.int64)
                for head in self.dataset.catalogue.classes
            },
            "index": torch.tensor([item["index"] for item in good], dtype=torch.int64),
            "broken": [(item["index"], item["broken"]) for item in items if "broken" in item],
        }


def make_loader(
    dataset: ClipDataset, batch_size: int, *, train: bool, workers: int | None, seed: int, shard: tuple[int, int] = (0, 1)
) -> Loader:
    """Batches `{"frames": uint8 [B, T, S, S, 3], "labels": {head: long [B]}, "index": long [B], "broken": [(index, why)]}`.

    Clips that do not decode are left out of the batch and listed. Training shuffles, and leaves the last, short batch out
    where the set is larger than one batch. workers: threads that read ahead; 0: read when asked; none: one per core, at most 8,
    until everything is in memory. shard: (rank, number of ranks), for training: each reads its part of every batch, and a
    broken clip is then stood in for by another one of the batch.
    """
    return Loader(dataset, batch_size, train=train, workers=workers, seed=seed, shard=shard)
