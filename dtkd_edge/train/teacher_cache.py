"""What the teachers say about a fixed set of views of every clip, stored once: later epochs run without teachers.

A view is one draw of the training augmentation. Epoch e of the student shows view e mod V, so that the student sees V crops of
each clip and not a new one in every epoch; in return the teachers run V times over the clips, whatever the number of epochs and
of methods compared.

FOLDER/TEACHER-KEY/view-V/
    tap-TAP.npy           float16 [clips, C, T', H', W'], a tap on the branch's grid; memory-mapped when read
    pooled.npy            float16 [clips, C], the mean of all of the last tap
    head-HEAD.npy         float16 [clips, K], the logits
    ….scale.npy           float32 [clips], what a clip's values are to be multiplied by: half precision then neither overflows
                          nor loses features that are small throughout; NaN for clips that did not decode

KEY is a hash of the teacher's weights, the clips (path, size, time of change) and of all that makes a view and its outputs.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from dtkd_edge.data.dataset import ClipDataset
from dtkd_edge.data.loader import Loader
from dtkd_edge.distill.sdd import Grid
from dtkd_edge.distill.task import DistillationTask, TeacherOutput
from dtkd_edge.errors import DataError, InputError
from dtkd_edge.files import atomic_folder, one_at_a_time
from dtkd_edge.models.base import VideoModel
from dtkd_edge.train.engine import Engine
from dtkd_edge.train.memory import InParts

FILL_BATCH = 32
SCALE, HEAD, TAP = ".scale", "head-", "tap-"
Array = NDArray[Any]


class _Share(Loader):
    """One rank's part of the batches."""

    part = slice(None)

    def batches(self, epoch: int) -> list[list[int]]:
        return super().batches(epoch)[self.part]


class TeacherCache:
    """The teachers' outputs for `data`'s views, filled view by view when an epoch first needs one."""

    def __init__(self, folder: Path, task: DistillationTask, data: ClipDataset, engine: Engine, workers: int | None) -> None:
        assert data.views is not None
        self.task, self.data, self.engine, self.device, self.workers = task, data, engine, engine.device, workers
        # Per teacher, so that a method that reads one of the two finds what a method that reads both has stored; in dense
        # sampling only where both teachers read the same frames: a clip is placed by the longest network that reads it.
        made_with = (engine.precision, task.config.branch.grid)
        self.folders = {
            name: folder / f"{name}-{cache_key(t, data, *made_with, task.stored_taps[name])}" for name, t in task.teachers.items()
        }
        self._view = -1
        self._maps: dict[str, dict[str, Array]] = {}

    def set_epoch(self, epoch: int, note: Callable[[str], None] = lambda _: None) -> None:
        """Make the view of that epoch ready: filled, if it was not, and mapped. note: told how far it is."""
        view = self.data.view(epoch)
        if view == self._view:
            return
        for name, folder in self.folders.items():
            path = folder / f"view-{view:03d}"
            if not self.engine.agree(path.is_dir()):
                # Trainings side by side share what one of them has stored; within one, all ranks store it together.
                # Rank 0 waits for the lock, and says so again and again: a collective that waits as long would time out.
                with one_at_a_time(path, lambda: self.engine.agree(True)) if self.engine.main else nullcontext():
                    while self.engine.agree(False):
                        pass
                    if not self.engine.agree(path.is_dir()):
                        self._fill(name, view, path, note)
            self._maps[name] = {file.name[:-4]: np.load(file, mmap_mode="r") for file in sorted(path.glob("*.npy"))}
        self._view = view

    def read(self, index: Tensor) -> dict[str, TeacherOutput]:
        """What the method reads of the teachers' outputs for clips by number `[B]`, in float32 on the device."""
        numbers = index.numpy()
        taught = {}
        for name, arrays in self._maps.items():
            if (lacking := numbers[np.isnan(arrays["pooled" + SCALE][numbers])]).size:
                clip = self.data.catalogue[int(lacking[0])].path
                raise DataError(
                    f"{self.folders[name]}: has no outputs of {clip}, which did not decode then",
                    "remove that folder: it is filled again",
                )
            heads = {key: self._value(arrays, HEAD + key, numbers) for key in self.task.student.heads}
            taps = {tap: self._value(arrays, TAP + tap, numbers) for tap in self.task.read_taps[name]}
            taught[name] = TeacherOutput(heads, taps, self._value(arrays, "pooled", numbers))
        return taught

    def _value(self, arrays: Mapping[str, Array], key: str, numbers: Array) -> Tensor:
        value = torch.from_numpy(arrays[key][numbers]).to(self.device).float()
        scale = torch.from_numpy(arrays[key + SCALE][numbers]).to(self.device)
        return value * scale.view(-1, *[1] * (value.ndim - 1))

    def _fill(self, name: str, view: int, path: Path, note: Callable[[str], None]) -> None:
        """Run one teacher over all clips, each rank over its share of the batches. A view is put in place whole: who stops here
        starts this view again."""
        loader = _Share(self.data, FILL_BATCH, train=False, workers=self.workers, seed=0)
        loader.part = slice(self.engine.rank, None, self.engine.world)
        with atomic_folder(path) if self.engine.main else nullcontext() as own:
            aside: Path = self.engine.agree(own)  # type: ignore[assignment]  # rank 0 has one
            outputs = self._outputs(name, loader, view)
            first = next(outputs, None)
            shapes = self.engine.gather({key: tuple(v.shape[1:]) for key, v in first[1].items()} if first else {})
            if not any(shapes):
                root = self.data.catalogue.root
                raise DataError(
                    f"{root}: no clip decodes", f"look at them with: dtkd-edge data check RECIPE --set data.root={root}"
                )
            if self.engine.main:
                self._make_files(aside, max(shapes, key=len))
            self.engine.wait()
            arrays = {file.name[:-4]: np.load(file, mmap_mode="r+") for file in sorted(aside.glob("*.npy"))}
            for number, (index, values) in enumerate(chain([first] if first else [], outputs)):
                note(f"teacher {name}, view {view + 1}/{self.data.views}: {100 * number * self.engine.world // len(loader)} %")
                for key, value in values.items():
                    scale = value.float().abs().flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny)
                    scaled = value.float() / scale.view(-1, *[1] * (value.ndim - 1))
                    arrays[key][index] = scaled.half().cpu().numpy()
                    arrays[key + SCALE][index] = scale.cpu().numpy()
            for array in arrays.values():
                array.flush()
            self.engine.wait()
        self.engine.wait()

    @torch.no_grad()
    def _outputs(self, name: str, loader: Loader, view: int) -> Iterator[tuple[Array, dict[str, Tensor]]]:
        """Clip numbers and what the teacher says of them, batch by batch."""

        def ask(frames: Tensor) -> dict[str, Tensor]:
            with self.engine.autocast():
                output = self.task.teach(frames.to(self.device), only={name}, to_store=True)[name]
            heads = {HEAD + head: value for head, value in output.logits.items()}
            taps = {TAP + tap: value for tap, value in output.features.items()}
            return {**taps, "pooled": output.pooled, **heads}

        teach = InParts(ask, f"teachers.views: the outputs of {name}")
        for batch in self._batches(loader, view):
            yield batch["index"].numpy(), teach(batch["frames"])

    def _make_files(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Empty arrays on disk, after a look at the room for all views: not when hours were spent on the first ones."""
        assert self.data.views is not None
        clips = len(self.data)
        wanted = clips * self.data.views * sum(2 * math.prod(shape) + 4 for shape in shapes.values())
        free = shutil.disk_usage(folder).free
        if wanted > free:
            raise InputError(
                f"{folder.parent.parent}: the teacher cache would take {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
                "lower teachers.views, leave it out, or give teachers.cache another folder",
            )
        for key, shape in shapes.items():
            open_memmap(folder / f"{key}.npy", "w+", np.float16, (clips, *shape))
            open_memmap(folder / f"{key}{SCALE}.npy", "w+", np.float32, (clips,))[:] = np.nan

    def _batches(self, loader: Loader, view: int) -> Iterable[dict[str, Any]]:
        before = self.data.epoch
        self.data.set_epoch(view)
        try:
            yield from (batch for batch in loader if len(batch["index"]))
        finally:
            self.data.set_epoch(before)


def cache_key(
    teacher: VideoModel, data: ClipDataset, precision: str = "fp32", grid: Grid = (4, 5, 5), taps: Sequence[str] = ()
) -> str:
    """16 hex digits that change with whatever the stored outputs depend on."""
    digest = hashlib.sha256(f"4 {precision} {grid} {list(taps)}".encode())
    for name, value in teacher.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(repr(teacher.info).encode())
    digest.update(json.dumps(data.describe(), sort_keys=True).encode())
    for clip in (data.catalogue[index] for index in range(len(data))):
        changed = tuple(clip.state()) or None
        frames = "" if clip.frames is None else f" {clip.frames}"
        digest.update(f"{clip.path} {clip.start} {clip.end} {changed}{frames}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
