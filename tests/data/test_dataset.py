"""What training and evaluation read."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_videos import pattern

from dtkd_edge.data.catalogue import Catalogue, open_split
from dtkd_edge.data.dataset import ClipDataset, FrameCache, make_loader
from dtkd_edge.data.motion import write_video
from dtkd_edge.preprocess import Preprocess, Sampling
from dtkd_edge.recipe import AugmentConfig, DataConfig
from dtkd_edge.video import read_clip, read_input

EIGHT = Sampling(frames=8)


def training(catalogue: Catalogue, **changes: Any) -> ClipDataset:
    values: dict[str, Any] = {"sampling": EIGHT, "size": 40, "resize_short": 40, "seed": 5, "cache_mb": 0}
    values |= {"augment": AugmentConfig(ratio=1.3, flip=True, color=0.3)}
    return ClipDataset(catalogue, **(values | changes))


def whole_epoch(dataset: ClipDataset, epoch: int) -> np.ndarray:
    dataset.set_epoch(epoch)
    return np.stack([dataset[i]["frames"].numpy() for i in range(len(dataset))])


@pytest.fixture
def large(tmp_path: Path) -> Catalogue:
    """Wider than what training needs, of different lengths and rates."""
    names = []
    for i, (count, rate) in enumerate([(5, 10), (30, 30), (17, 25)]):
        names.append(f"{i}.mp4")
        write_video(tmp_path / names[-1], pattern(count, 90, 160, i), rate)
    return Catalogue("x", tmp_path, names, {"action": np.arange(3)}, {"action": ["a", "b", "c"]})


def test_workers_scale_on_one_thread_each(clips: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, threads = training(clips), set()
    read = dataset.item

    def item(index: int, epoch: int) -> dict[str, Any]:
        threads.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return read(index, epoch)

    monkeypatch.setattr(dataset, "item", item)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert len(list(make_loader(dataset, 4, train=True, workers=2, seed=0))) == len(clips) // 4
        assert threads == {(False, 1)} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_reader_keeps_its_threads(clips: Catalogue) -> None:
    """Also one that has computed nothing before it reads."""
    before, counts = torch.get_num_threads(), []

    def read() -> None:
        list(make_loader(training(clips), 4, train=True, workers=2, seed=0))
        counts.append(torch.get_num_threads())

    torch.set_num_threads(3)
    try:
        reader = threading.Thread(target=read)
        reader.start()
        reader.join()
        assert counts == [3]
    finally:
        torch.set_num_threads(before)


def test_items(clips: Catalogue) -> None:
    item = training(clips)[9]
    assert item["frames"].shape == (8, 40, 40, 3)
    assert item["frames"].dtype == torch.uint8
    assert (item["labels"], item["index"]) == ({"action": 1}, 9)


@pytest.mark.parametrize("cache_mb", [0, 64])
@pytest.mark.parametrize("sampling", [EIGHT, Sampling(kind="dense", frames=6, stride=2, fps=15)])
def test_evaluation_is_the_deployed_preprocessing(large: Catalogue, sampling: Sampling, cache_mb: int) -> None:
    dataset = training(large, augment=None, resize_short=46, sampling=sampling, cache_mb=cache_mb)
    deployed = Preprocess(resize_short=46, crop=40, sampling=sampling)
    for _ in range(2):
        for i in range(3):
            assert (dataset[i]["frames"].numpy() == read_input(large.path(i), deployed)[0]).all()


def test_what_is_kept_in_memory_has_the_same_pixels(large: Catalogue, clips: Catalogue) -> None:
    for catalogue in (large, clips):
        for sampling in (EIGHT, Sampling(kind="dense", frames=4, stride=2, fps=12)):
            kept, read = (training(catalogue, cache_mb=mb, sampling=sampling) for mb in (64, 0))
            for epoch in range(2):
                assert (whole_epoch(kept, epoch) == whole_epoch(read, epoch)).all()
            assert kept.kept() and not read.kept()


def test_memory_stays_within_the_limit(clips: Catalogue) -> None:
    cache = FrameCache(2)
    dataset = training(clips, cache=cache)
    whole_epoch(dataset, 0)
    assert 0.8 * cache.limit < cache.used <= cache.limit
    assert dataset.memory() == pytest.approx(40 * 18 * 48 * 48 * 3, rel=0.3)


def test_a_set_much_larger_than_the_limit_is_not_decoded_whole(large: Catalogue) -> None:
    dataset = training(large.subset([1] * 400), cache_mb=1)
    assert dataset.memory() > 4 << 20
    dataset[0]
    assert dataset.cache.used == 0


def test_the_same_draw_for_the_same_seed_epoch_and_index(clips: Catalogue) -> None:
    first, second = training(clips), training(clips)
    assert (whole_epoch(first, 3) == whole_epoch(second, 3)).all()
    assert (whole_epoch(first, 3) != whole_epoch(first, 4)).any()
    assert (whole_epoch(first, 3) != whole_epoch(training(clips, seed=6), 3)).any()


def test_start_and_end_cut_the_file(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(30, dtype=np.uint8) * 8, 32 * 32 * 3).reshape(30, 32, 32, 3)
    write_video(tmp_path / "v.mp4", frames, 10)
    times = np.array([[1.0, 2.0]])
    catalogue = Catalogue("x", tmp_path, ["v.mp4"], {"action": np.array([0])}, {"action": ["a"]}, times=times)
    for augment in (None, AugmentConfig()):
        for cache_mb in (0, 64):
            dataset = training(
                catalogue, size=32, resize_short=32, augment=augment, cache_mb=cache_mb, sampling=Sampling(frames=10)
            )
            level = dataset[0]["frames"].numpy().mean((1, 2, 3)) / 8
            assert np.abs(level - np.arange(10, 20)).max() < 0.6


# --- loader ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2, None])
def test_batches(clips: Catalogue, workers: int | None) -> None:
    dataset = training(clips)
    loader = make_loader(dataset, 12, train=True, workers=workers, seed=1)
    batches = list(loader)
    assert len(batches) == len(loader) == 3  # 40 clips: the last 4 are left out
    assert batches[0]["frames"].shape == (12, 8, 40, 40, 3)
    assert batches[0]["labels"]["action"].dtype == torch.int64
    numbers = torch.cat([b["index"] for b in batches])
    assert len(set(numbers.tolist())) == 36
    assert (torch.cat([b["labels"]["action"] for b in batches]) == numbers % 8).all()
    row = int(batches[1]["index"][5])
    assert (batches[1]["frames"][5] == dataset[row]["frames"]).all()
    assert all(b["broken"] == [] for b in batches)


def test_the_order_depends_on_seed_and_epoch_alone(clips: Catalogue) -> None:
    def order(seed: int, epoch: int, workers: int) -> list[int]:
        dataset = training(clips, augment=AugmentConfig(), cache_mb=64)
        dataset.set_epoch(epoch)
        return torch.cat([b["index"] for b in make_loader(dataset, 10, train=True, workers=workers, seed=seed)]).tolist()

    assert order(0, 0, 0) == order(0, 0, 2) != order(0, 1, 0)
    assert order(0, 1, 0) != order(1, 1, 0)
    assert sorted(order(0, 0, 0)) == list(range(40))


def test_evaluation_takes_every_clip_in_order(clips: Catalogue) -> None:
    loader = make_loader(training(clips, augment=None), 12, train=False, workers=2, seed=0)
    assert len(loader) == 4
    assert torch.cat([b["index"] for b in loader]).tolist() == list(range(40))


def test_a_set_smaller_than_a_batch_is_one_batch(clips: Catalogue) -> None:
    loader = make_loader(training(clips.subset([0, 1, 2])), 12, train=True, workers=0, seed=0)
    assert [len(b["index"]) for b in loader] == [3]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", [None, AugmentConfig()])
@pytest.mark.parametrize("cache_mb", [0, 64])
def test_broken_clips_are_left_out_and_named(
    broken_folder: Path, workers: int, augment: AugmentConfig | None, cache_mb: int
) -> None:
    everything = open_split(DataConfig(kind="folder", root=broken_folder, val_share=0.01), "train")  # type: ignore[call-arg]
    dataset = training(everything, augment=augment, cache_mb=cache_mb)
    bad = {"empty.mp4", "truncated.mp4", "text.mp4", "gone.mp4", "zero.mp4"}
    for _ in range(2):
        seen: set[str] = set()
        for batch in make_loader(dataset, 2, train=False, workers=workers, seed=0):
            assert batch["frames"].shape[1:] == (8, 40, 40, 3)
            assert len(batch["frames"]) == len(batch["index"]) == len(batch["labels"]["action"])
            for index, message in batch["broken"]:
                name = everything.path(index).name
                assert name in message and "\n" not in message
                seen.add(name)
        assert seen == {everything.path(i).name for i in range(len(everything))} & bad
        assert len(seen) >= 4


def test_stopping_early_leaves_no_thread_at_work(clips: Catalogue) -> None:
    for batch in make_loader(training(clips), 4, train=True, workers=3, seed=0):
        assert len(batch["index"]) == 4
        break
    deadline = time.monotonic() + 20
    while any(t.name.startswith("clips") for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(t.name.startswith("clips") for t in threading.enumerate())


def test_a_defect_in_reading_is_not_swallowed(clips: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = training(clips)
    monkeypatch.setattr(dataset, "catalogue", None)
    with pytest.raises((TypeError, AttributeError)):
        list(make_loader(dataset, 4, train=True, workers=2, seed=0))


def test_a_one_frame_file_is_a_clip(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", pattern(1, 64, 64), 10)
    frames = read_clip(tmp_path / "one.mp4", EIGHT)
    assert frames.shape == (8, 64, 64, 3)
    assert (frames == frames[0]).all()
