"""The generated classes: one frame says nothing, motion says it all."""

from __future__ import annotations

import numpy as np
import pytest

from dtkd_edge.data import scene

KINDS = [("motion", 8), ("order", 16)]


@pytest.mark.parametrize(("kind", "count"), KINDS)
def test_classes(kind: str, count: int) -> None:
    assert len(set(scene.CLASSES[kind])) == count


def test_order_classes_come_in_pairs_of_the_same_motions() -> None:
    pairs = [tuple(name.split("-then-")) for name in scene.ORDERS]
    assert all((b, a) in pairs for a, b in pairs)
    first = [a for a, _ in pairs]
    assert all(first.count(motion) == 2 for motion in scene.MOTIONS)  # neither half tells the class


@pytest.mark.parametrize(("kind", "count"), KINDS)
@pytest.mark.parametrize("frame", [0, 5, -1])
def test_position_angle_and_size_are_uniform_at_every_instant_in_every_class(kind: str, count: int, frame: int) -> None:
    low, high = np.log(scene.DIAMETER)
    n = 1500
    for label in range(count):
        motions = scene.CLASSES[kind][label].split("-then-")
        rng = np.random.default_rng([7, label])
        state = np.array([scene._path(motions, 12, rng)[frame] for _ in range(n)])
        turns = np.stack([state[:, 0], state[:, 1], state[:, 2] / (2 * np.pi), (state[:, 3] - low) / (high - low)])
        # A uniform phase has mean resultant length 0; by chance above 4/sqrt(n) with probability e^-16.
        assert np.abs(np.exp(2j * np.pi * turns).mean(1)).max() < 4 / np.sqrt(n)


def test_the_paths_move_as_their_names_say() -> None:
    rng = np.random.default_rng(0)
    for name, axis, sign in [("left", 0, -1), ("down", 1, 1), ("clockwise", 2, 1), ("zoom-out", 3, -1)]:
        path = scene._path([name], 16, rng)
        steps = np.diff(path, axis=0)
        moved = np.sign(np.median(steps, 0))
        assert moved[axis] == sign
        assert not np.delete(steps, axis, 1).any()


def _gray(frames: np.ndarray, side: int) -> np.ndarray:
    block = frames.shape[1] // side
    return frames.reshape(len(frames), side, block, side, block, 3).mean((2, 4, 5)) / 255


def _probe(features: np.ndarray, labels: np.ndarray, train: int, strength: float) -> float:
    """Accuracy of a ridge classifier on the clips after the first `train`."""
    features = (features - features[:train].mean(0)) / (features[:train].std(0) + 1e-6)
    x, y = np.c_[features, np.ones(len(features))], np.eye(labels.max() + 1)[labels]
    weights = np.linalg.solve(x[:train].T @ x[:train] + strength * np.eye(x.shape[1]), x[:train].T @ y[:train])
    return float(((x[train:] @ weights).argmax(1) == labels[train:]).mean())


def _flow(gray: np.ndarray) -> np.ndarray:
    """Mean motion along x, y, round the object and out of it, by the gradient constraint, over four spans of the clip."""
    out = []
    for part in np.array_split(np.arange(len(gray) - 1), 4):
        totals = np.zeros(4)
        for t in part:
            mean = (gray[t] + gray[t + 1]) / 2
            dy, dx = (np.roll(mean, -1, a) - np.roll(mean, 1, a) for a in (0, 1))
            dt = gray[t + 1] - gray[t]
            weight = np.abs(mean - np.median(mean)) ** 2
            phase = np.exp(2j * np.pi * np.arange(len(mean)) / len(mean))
            cx, cy = (np.angle((weight.sum(a) * phase).sum()) / (2 * np.pi) * len(mean) for a in (0, 1))
            place = np.arange(len(mean))
            x = ((place - cx + len(mean) / 2) % len(mean) - len(mean) / 2)[None, :]
            y = ((place - cy + len(mean) / 2) % len(mean) - len(mean) / 2)[:, None]
            round_, out_ = x * dy - y * dx, x * dx + y * dy
            totals += [-(g * dt).sum() / ((g**2).sum() + 1e-6) for g in (dx, dy, round_, out_)]
        out.append(totals / len(part) * len(gray))
    return np.clip(np.concatenate(out), -20, 20)


@pytest.fixture(scope="module", params=KINDS)
def rendered(request: pytest.FixtureRequest) -> tuple[list[np.ndarray], np.ndarray, int]:
    kind, count = request.param
    labels = np.arange(1000) % count
    clips = [scene.render(kind, int(k), np.random.default_rng([3, i]), 24)[0] for i, k in enumerate(labels)]
    return clips, labels, count


@pytest.mark.parametrize("frame", [0, 6, -1])
def test_a_linear_probe_on_one_frame_is_near_chance(rendered: tuple[list[np.ndarray], np.ndarray, int], frame: int) -> None:
    clips, labels, count = rendered
    pixels = np.stack([clip[frame].reshape(-1) for clip in clips]) / 255
    chance = 1 / count
    deviation = np.sqrt(chance * (1 - chance) / 400)
    for strength in (10, 1000):
        assert _probe(pixels, labels, 600, strength) < chance + 4 * deviation


def test_a_linear_probe_on_motion_is_far_above_chance(rendered: tuple[list[np.ndarray], np.ndarray, int]) -> None:
    clips, labels, count = rendered
    flow = np.stack([_flow(_gray(clip, 24)) for clip in clips])
    assert _probe(flow, labels, 600, 10) > 4 / count


def test_clips_differ_in_length_and_rate_and_follow_the_seed() -> None:
    made = [scene.render("motion", 0, np.random.default_rng([1, i]), 24) for i in range(20)]
    assert len({len(frames) for frames, _ in made}) > 3
    assert len({fps for _, fps in made}) > 3
    again, fps = scene.render("motion", 0, np.random.default_rng([1, 4]), 24)
    assert fps == made[4][1]
    assert (again == made[4][0]).all()
