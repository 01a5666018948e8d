"""Networks of different frames × strides: the frames that arrive at each, in training and in evaluation, from real files."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "data"))
from made_videos import numbered, numbers_shown

from dtkd_edge.artifact import Artifact
from dtkd_edge.data.catalogue import Catalogue
from dtkd_edge.data.dataset import ClipDataset
from dtkd_edge.data.motion import write_video
from dtkd_edge.distill.task import DistillationTask
from dtkd_edge.errors import RecipeError
from dtkd_edge.export import verify
from dtkd_edge.export.command import export
from dtkd_edge.models import VideoModel, create_model
from dtkd_edge.models.tiny import FrameCNN
from dtkd_edge.models.vit import TubeletViT
from dtkd_edge.preprocess import JointSampling, Sampling
from dtkd_edge.recipe import AugmentConfig, DistillConfig
from dtkd_edge.train.command import train
from dtkd_edge.train.engine import Engine
from dtkd_edge.train.teacher_cache import TeacherCache
from dtkd_edge.train.testing import evaluate_target
from dtkd_edge.video import Video

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"student": (5, 6, 24), "cnn": (8, 5, 32), "vit": (8, 4, 24)}  # frames, stride, size
WHOLE = AugmentConfig(scale=(1.0, 1.0))
VIDEOS = [(200, 30), (90, 30), (36, 30), (35, 30), (31, 30), (9, 30), (1, 30), (200, 60), (60, 15)]  # frames, rate
Arrivals = dict[tuple[int, int], list[np.ndarray]]


@pytest.fixture
def arrived(monkeypatch: pytest.MonkeyPatch) -> Arrivals:
    """By frames and stride: the frame numbers `[B, T]` of every batch that a network got."""
    seen: Arrivals = defaultdict(list)
    for kind in (FrameCNN, TubeletViT):

        def look(self: VideoModel, clips: torch.Tensor, then=kind.forward_features) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
            pictures = clips.detach().permute(0, 2, 3, 4, 1).numpy() * np.array(self.info.std) + np.array(self.info.mean)
            seen[self.info.frames, self.info.stride].append(numbers_shown(pictures))
            return then(self, clips)

        monkeypatch.setattr(kind, "forward_features", look)
    return seen


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    root = tmp_path_factory.mktemp("numbered")
    for i, (count, rate) in enumerate(VIDEOS):
        write_video(root / f"{i}.mp4", numbered(count), rate)
    names = [f"{i}.mp4" for i in range(len(VIDEOS))]
    return Catalogue("numbered", root, names, {"action": np.arange(len(VIDEOS)) % 2}, {"action": ["a", "b"]})


def network(name: str) -> VideoModel:
    frames, stride, size = SHAPES[name]
    options = {"dim": 24, "depth": 1, "num_heads": 2} if name == "vit" else {"width": 8}
    kind = "vit_tubelet_tiny" if name == "vit" else "tsm_tiny"
    return create_model(kind, 2, frames=frames, size=size, stride=stride, **options)


@pytest.fixture(scope="module")
def task() -> DistillationTask:
    torch.manual_seed(0)
    sampling = JointSampling.of(Sampling(kind="dense", frames=f, stride=s, fps=30) for f, s, _ in SHAPES.values())
    teachers = {name: network(name) for name in ("cnn", "vit")}
    return DistillationTask(network("student"), teachers, DistillConfig(), sampling=sampling)


def dataset(clips: Catalogue, sampling: JointSampling | None, **changes: object) -> ClipDataset:
    assert sampling is not None
    given: dict[str, object] = {"augment": WHOLE, "seed": 0, "cache_mb": 0, **changes}
    return ClipDataset(clips, sampling=sampling, size=32, resize_short=32, **given)  # type: ignore[arg-type]


def wanted(total: int, rate: float, frames: int, stride: int, draw: float) -> list[int]:
    """By definition: a window of 35 frames at 30 a second (8 × 5), placed at random; in it every network about its middle.
    Where it does not fit, the middle is the video's; what does not fit there starts with the video and holds its last frame."""
    times, last = rate / 30, total - 1
    window, span = 35 * times, (frames - 1) * stride * times
    middle = draw * (last - window) + window / 2 if window <= last else last / 2
    first = max(middle - span / 2, 0) if span <= last else 0
    return [min(int(first + k * stride * times + 0.5), last) for k in range(frames)]


@pytest.mark.parametrize(("seed", "cache_mb"), [(0, 0), (1, 64), (2, 0)])
def test_each_network_trains_on_its_own_frames_of_the_same_clip(
    videos: Catalogue, task: DistillationTask, arrived: Arrivals, seed: int, cache_mb: int
) -> None:
    data = dataset(videos, task.sampling, seed=seed, cache_mb=cache_mb)
    for epoch in (0, 1):
        arrived.clear()
        batch = torch.stack([data.item(i, epoch)["frames"] for i in range(len(videos))])
        with torch.no_grad():
            task(batch, {"action": torch.tensor(videos.labels())})
        for frames, stride, _ in SHAPES.values():
            (numbers,) = arrived[frames, stride]
            for i, (total, rate) in enumerate(VIDEOS):
                draw = np.random.default_rng([seed, epoch, i]).random()
                assert numbers[i].tolist() == wanted(total, rate, frames, stride, draw), (frames, stride, total, rate)


def test_only_frames_that_some_network_reads_are_decoded(
    videos: Catalogue, task: DistillationTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    decode = Video._decode

    def look(self: Video, numbers: np.ndarray, last: bool = False) -> list[np.ndarray]:
        asked.extend(numbers.tolist())
        return decode(self, numbers, last)

    monkeypatch.setattr(Video, "_decode", look)
    dataset(videos, task.sampling).item(0, 0)
    draw = np.random.default_rng([0, 0, 0]).random()
    read = {number for frames, stride, _ in SHAPES.values() for number in wanted(200, 30, frames, stride, draw)}
    assert asked == sorted(read) and len(read) < 5 + 8 + 8


def test_stored_and_live_teachers_agree(videos: Catalogue, task: DistillationTask, tmp_path: Path) -> None:
    data = dataset(videos, task.sampling, views=2)
    cache = TeacherCache(tmp_path, task, data, Engine("cpu"), 0)
    index = torch.tensor([7, 0, 4])
    for epoch in (0, 1):
        cache.set_epoch(epoch)
        live = task.teach(torch.stack([data.item(int(i), epoch)["frames"] for i in index]))
        for name, stored in cache.read(index).items():
            for tap, wanted in live[name].features.items():
                largest = wanted.abs().max()
                torch.testing.assert_close(stored.features[tap] / largest, wanted / largest, atol=1e-3, rtol=0)
    alone = dataset(videos, JointSampling.of(list(task.sampling.parts[1:])), views=2)  # type: ignore[union-attr]
    other = TeacherCache(tmp_path, task, alone, Engine("cpu"), 0)
    assert set(other.folders.values()).isdisjoint(cache.folders.values())


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("folder")
    for side, count in (("train", 16), ("val", 4)):
        for i in range(count):
            path = root / side / "ab"[i % 2] / f"{i}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, numbered(64 + i), 30)
    once = "train: {epochs: 1, batch_size: 8}"
    return [
        *(f"data.{value}" for value in (f"root={root}", "sampling=dense", "fps=30", "cache_mb=0", "student_clips=null")),
        "augment={scale: [1.0, 1.0]}",
        "student={model: tsm_tiny, frames: 5, stride: 6, size: 24, options: {width: 8}}",
        f"teachers.cnn={{model: tsm_tiny, frames: 8, stride: 5, size: 32, options: {{width: 8}}, {once}}}",
        "teachers.vit={model: vit_tubelet_tiny, frames: 8, size: 24, options: {dim: 24, depth: 1, num_heads: 2}, " + once + "}",
        "data.stride=4",  # of the ViT, which does not say it
        "train={epochs: 1, batch_size: 8}",
        "threads=1",
    ]


def test_a_run_of_three_samplings(overrides: list[str], arrived: Arrivals, tmp_path: Path) -> None:
    run = train("folder", overrides=overrides, out=tmp_path / "run")
    alone, both, scored = 2, 2, 1  # batches: of a teacher's own training, of the student's, of one evaluation
    assert len(arrived[8, 5]) == len(arrived[8, 4]) == alone + 2 * scored + both
    assert len(arrived[5, 6]) == both + 2 * scored
    for (_, stride), batches in arrived.items():
        assert (np.diff(np.concatenate(batches)) == stride).all()
    cnn, vit, student = (np.concatenate(arrived[shape][first:]) for shape, first in (((8, 5), -2), ((8, 4), -2), ((5, 6), 0)))
    middles = [numbers[:16, [0, -1]].mean(1) for numbers in (cnn, vit, student)]  # of the student's two batches
    assert np.ptp(middles, axis=0).max() <= 1 and np.ptp(middles[0]) > 5
    for name, (frames, stride, _) in SHAPES.items():
        card = json.loads((run / ("student.json" if name == "student" else f"teachers/{name}.json")).read_text())
        sampling = card["preprocess"]["sampling"]
        assert (card["frames"], card["stride"], sampling["frames"], sampling["stride"]) == (frames, stride, frames, stride)
    arrived.clear()
    evaluate_target(run, [], (1, 1))
    assert list(arrived) == [(5, 6)]
    middles = np.concatenate(arrived[5, 6])[:, 2]
    assert sorted(middles.tolist()) == [32, 32, 33, 33]  # of 64 to 67 frames


def test_a_network_without_a_stride_is_named_before_anything_is_written(overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"teachers\.vit: data\.sampling dense needs a stride") as refused:
        train("folder", overrides=[*overrides, "data.stride=null"], out=tmp_path / "run")
    assert "teachers.vit.stride=8" in str(refused.value.hint) and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_exported_student_samples_as_it_was_trained(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "SECONDS", 0.05)  # how fast the artefact is is not looked at
    train("folder", overrides=[*overrides, "distill.method=ce"], out=tmp_path / "run")
    manifest = Artifact.open(export(tmp_path / "run", target="onnx")).manifest
    sampling = manifest.preprocess.sampling
    assert manifest.model.stride == sampling.stride == 6 and (sampling.kind, sampling.fps) == ("dense", 30)
