"""The teacher cache: what it stores is what the teachers say, once, and only for what it was made from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from train_cases import with_sets

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.data.catalogue import Catalogue, open_split
from dtkd_edge.data.dataset import ClipDataset
from dtkd_edge.distill.task import DistillationTask
from dtkd_edge.errors import DataError
from dtkd_edge.models.registry import create_model
from dtkd_edge.preprocess import Sampling
from dtkd_edge.recipe import AugmentConfig, DistillConfig
from dtkd_edge.train import loop, teacher_cache
from dtkd_edge.train.checkpoint import TrainState, save_state
from dtkd_edge.train.command import train
from dtkd_edge.train.engine import Engine
from dtkd_edge.train.teacher_cache import TeacherCache, cache_key

HEADS = {"action": 8}
CPU = Engine("cpu")
VIT_TAP = create_model("vit_tubelet_tiny", HEADS, size=24).info.last_tap


@pytest.fixture
def clips(small: list[str]) -> Catalogue:
    return open_split(recipes.load("quickstart", small).data, "train").subset(range(40))


def dataset(clips: Catalogue, *, seed: int = 0, views: int | None = 2, low: float = 0.6) -> ClipDataset:
    augment = AugmentConfig(scale=(low, 1.0), color=0.2)
    sampling = Sampling(kind="uniform", frames=8)
    return ClipDataset(clips, sampling=sampling, size=24, resize_short=24, augment=augment, seed=seed, cache_mb=64, views=views)


def task_of(config: DistillConfig) -> DistillationTask:
    torch.manual_seed(0)
    cnn = create_model("tsm_tiny", HEADS, frames=8, size=24, width=8)
    vit = create_model("vit_tubelet_tiny", HEADS, frames=8, size=24, dim=24, depth=2, num_heads=2)
    return DistillationTask(create_model("tsm_tiny", HEADS, frames=8, size=24), {"cnn": cnn, "vit": vit}, config)


@pytest.fixture(scope="module")
def task() -> DistillationTask:
    return task_of(DistillConfig())


@pytest.mark.parametrize(("epoch", "vit_tap"), [(0, VIT_TAP), (3, VIT_TAP), (1, "middle")])
def test_what_is_read_is_what_the_teachers_say_of_that_view(tmp_path: Path, clips: Catalogue, epoch: int, vit_tap: str) -> None:
    task, data = task_of(DistillConfig(vit_tap="middle" if vit_tap == "middle" else "last")), dataset(clips)
    cache = TeacherCache(tmp_path, task, data, CPU, 0)
    cache.set_epoch(epoch)
    index = torch.tensor([31, 2, 17])
    taught = cache.read(index)
    frames = torch.stack([data.item(int(i), epoch)["frames"] for i in index])
    for name, said in task.teach(frames).items():
        read = taught[name]
        for stored, live in (
            *zip(read.features.values(), said.features.values(), strict=True),
            (read.pooled, said.pooled),
            (read.logits["action"], said.logits["action"]),
        ):
            largest = live.abs().flatten(1).amax(1).view(-1, *[1] * (live.ndim - 1))
            torch.testing.assert_close(stored / largest, live / largest, atol=5e-4, rtol=0)  # eps of float16 / 2
        assert list(read.features) == list(said.features) == (["stage3", "stage2", "stage1"] if name == "cnn" else [vit_tap])
        assert all(value.dtype == torch.float32 for value in read.features.values())
    other = torch.stack([data.item(int(i), epoch + 1)["frames"] for i in index])
    assert not torch.allclose(taught["vit"].features[vit_tap], task.teach(other)["vit"].features[vit_tap], atol=2e-2)


def test_each_view_is_asked_for_once_and_every_process_reads_it(
    tmp_path: Path, task: DistillationTask, clips: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    teach = task.teach

    def counted(frames: torch.Tensor, only: set[str], to_store: bool) -> object:
        asked.append(len(frames))
        return teach(frames, only, to_store=to_store)

    monkeypatch.setattr(task, "teach", counted)
    cache = TeacherCache(tmp_path, task, dataset(clips), CPU, 0)
    for epoch in range(5):
        cache.set_epoch(epoch)
    assert sum(asked) == 2 * 2 * len(clips)  # two teachers, two views
    again = TeacherCache(tmp_path, task, dataset(clips), CPU, 0)
    again.set_epoch(1)
    assert sum(asked) == 2 * 2 * len(clips)
    cache.set_epoch(7)
    one, other = cache.read(torch.arange(4)), again.read(torch.arange(4))
    assert torch.equal(one["vit"].features[VIT_TAP], other["vit"].features[VIT_TAP])


def test_the_key_is_of_all_that_the_outputs_depend_on(task: DistillationTask, clips: Catalogue, tmp_path: Path) -> None:
    cnn = task.teachers["cnn"]
    own = cache_key(cnn, dataset(clips))
    assert own == cache_key(cnn, dataset(clips, views=7))  # more views leave the first ones as they are
    others = [
        cache_key(task.teachers["vit"], dataset(clips)),
        cache_key(cnn, dataset(clips, seed=1)),
        cache_key(cnn, dataset(clips, low=0.7)),
        cache_key(cnn, dataset(clips), "bf16"),
        cache_key(cnn, dataset(clips), "fp32", (2, 5, 5)),
        cache_key(cnn, dataset(clips), taps=["stage3"]),
        cache_key(cnn, dataset(clips.subset(range(39)))),
    ]
    changed = create_model("tsm_tiny", HEADS, frames=8, size=24, width=8)
    changed.load_state_dict(cnn.state_dict())
    assert cache_key(changed, dataset(clips)) == own
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-6
    others.append(cache_key(changed, dataset(clips)))
    path = clips.path(3)
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    others.append(cache_key(cnn, dataset(clips)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len({own, *others}) == 1 + len(others)


def test_a_broken_clip_has_no_output(tmp_path: Path, task: DistillationTask, clips: Catalogue) -> None:
    root = tmp_path / "set"
    shutil.copytree(clips.root, root)
    here = Catalogue(
        "copy", root, [clips.path(i).relative_to(clips.root) for i in range(16)], {"action": clips.labels()[:16]}, clips.classes
    )
    here.path(5).write_bytes(b"")
    cache = TeacherCache(tmp_path / "cache", task, dataset(here), CPU, 0)
    cache.set_epoch(0)
    others = torch.tensor([*range(5), *range(6, 16)])
    assert not cache.read(others)["cnn"].features["stage3"].isnan().any()
    with pytest.raises(DataError, match=rf"has no outputs of {here.path(5)}, which did not decode then"):  # it was mended since
        cache.read(torch.arange(16))


def test_a_stop_while_a_view_is_filled_leaves_no_half_of_it(
    tmp_path: Path, task: DistillationTask, clips: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    teach = task.teach

    def breaks(frames: torch.Tensor, only: set[str], to_store: bool) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return teach(frames, only, to_store=to_store)

    monkeypatch.setattr(task, "teach", breaks)
    cache = TeacherCache(tmp_path, task, dataset(clips), CPU, 0)
    with pytest.raises(KeyboardInterrupt):
        cache.set_epoch(0)
    assert not list(tmp_path.rglob("*.npy"))
    cache.set_epoch(0)
    assert cache.read(torch.arange(len(clips)))["vit"].features[VIT_TAP].isfinite().all()


class Stop(Exception): ...


def student_losses(run: Path) -> list[float]:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if entry.get("phase") == "student" and "loss" in entry]


def test_a_resumed_run_with_a_cache_is_bit_for_bit_the_one_that_was_not_stopped(tmp_path: Path, small: list[str]) -> None:
    overrides = [*small, "train.epochs=4", "teachers.views=2"]
    whole = train("quickstart", overrides=overrides, out=tmp_path / "whole")
    views = sorted(p.name for p in (whole / "teachers" / "cache").glob("vit-*/view-*"))
    assert views == ["view-000", "view-001"]

    def save_then_stop(path: Path, state: TrainState) -> None:
        save_state(path, state)
        if path.stem == "student" and state.epoch == 1:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_state", save_then_stop)
        with pytest.raises(Stop):
            train("quickstart", overrides=overrides, out=tmp_path / "stopped")
    resumed = train("quickstart", overrides=overrides, out=tmp_path / "stopped", resume=True)
    assert (resumed / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()


def test_a_cached_run_ends_where_one_with_the_same_views_and_live_teachers_ends(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To what half precision of the stored outputs leaves of it after three epochs."""
    cached = train("quickstart", overrides=[*small, "teachers.views=2"], out=tmp_path / "cached")

    def live(self: TeacherCache, index: torch.Tensor) -> object:
        frames = torch.stack([self.data.item(int(i), self.data.epoch)["frames"] for i in index])
        return self.task.teach(frames)

    monkeypatch.setattr(teacher_cache.TeacherCache, "read", live)
    asked = train("quickstart", overrides=[*small, "teachers.views=2"], out=tmp_path / "asked")
    one, other = student_losses(cached), student_losses(asked)
    assert len(one) == 3 and one == pytest.approx(other, rel=0.01)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_too_little_room_is_said_before_the_first_view(
    tmp_path: Path, small: list[str], main: Callable[..., tuple[int, str, str]]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    try:
        sets = with_sets([*small, "teachers.views=500", f"teachers.cache={disk}"])
        code, _, said = main("train", *sets, "--out", "run")
        assert code == 3 and "the teacher cache would take" in said, said
        assert "lower teachers.views" in said and "Traceback" not in said
    finally:
        subprocess.run(["umount", "--lazy", disk], check=False)


def test_all_clips_broken(tmp_path: Path, task: DistillationTask, clips: Catalogue) -> None:
    root = tmp_path / "set"
    root.mkdir()
    (root / "a.mp4").write_bytes(b"")
    here = Catalogue("none", root, ["a.mp4"], {"action": np.zeros(1, np.int64)}, clips.classes)
    with pytest.raises(DataError, match="no clip decodes"):
        TeacherCache(tmp_path / "cache", task, dataset(here), CPU, 0).set_epoch(0)
