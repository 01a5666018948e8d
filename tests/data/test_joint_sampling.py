"""One clip for several networks: which frames of it each of them gets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtkd_edge.preprocess import JointSampling, Sampling

networks = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), min_size=1, max_size=4)


def dense(shapes: list[tuple[int, int]], fps: float | None = None) -> list[Sampling]:
    return [Sampling(kind="dense", frames=frames, stride=stride, fps=fps) for frames, stride in shapes]


@given(st.integers(1, 200), networks, st.integers(0, 5))
def test_every_network_gets_its_own_frames_about_one_middle(total: int, shapes: list[tuple[int, int]], seed: int) -> None:
    joint = JointSampling.of(dense(shapes))
    numbers = joint.indices(total, rng=np.random.default_rng(seed))
    assert len(numbers) == joint.frames == sum(frames for frames, _ in set(shapes))
    assert 0 <= numbers.min() <= numbers.max() < total
    window = max((frames - 1) * stride for frames, stride in shapes)
    middles = []
    for frames, stride in shapes:
        own = numbers[joint.picks(frames, stride)]
        span = (frames - 1) * stride
        assert own.tolist() == [min(own[0] + k * stride, total - 1) for k in range(frames)]  # evenly, then the last one again
        if span >= total:
            assert own[0] == 0
        else:
            middles.append(own[0] + span / 2)
    if window < total:  # half a frame of rounding at either
        assert max(middles) - min(middles) <= 1


@given(st.integers(1, 200), networks)
def test_evaluated_together_they_get_what_each_gets_alone(total: int, shapes: list[tuple[int, int]]) -> None:
    samplings = dense(shapes)
    joint = JointSampling.of(samplings)
    numbers = joint.indices(total)
    for (frames, stride), alone in zip(shapes, samplings, strict=True):
        assert (numbers[joint.picks(frames, stride)] == alone.indices(total)[0]).all()


@given(st.integers(1, 200), st.sampled_from(["uniform", "dense"]), st.integers(1, 20), st.integers(1, 8), st.integers(0, 5))
def test_networks_of_one_sampling_draw_as_one(total: int, kind: str, frames: int, stride: int, seed: int) -> None:
    one = Sampling.model_validate({"kind": kind, "frames": frames, "stride": stride, "fps": 20})
    joint = JointSampling.of([one, one, one])
    drawn, alone = np.random.default_rng(seed), np.random.default_rng(seed)
    assert (joint.indices(total, 30.0, rng=drawn) == one.indices(total, 30.0, rng=alone)[0]).all()
    assert drawn.random() == alone.random()  # and what is drawn after it stays the same


def test_uniform_clips_are_as_long_as_the_longest_network() -> None:
    joint = JointSampling.of([Sampling(frames=8), Sampling(frames=13), Sampling(frames=4)])
    assert joint.frames == 13 and joint.picks(8, 1) == slice(None)
    assert (joint.indices(90) == Sampling(frames=13).indices(90)[0]).all()


def test_published_networks_on_one_clip() -> None:
    joint = JointSampling.of(dense([(13, 6), (16, 5), (16, 4)], fps=30))
    numbers = joint.indices(300, 30.0)  # the middle is 149.5
    assert numbers[joint.picks(13, 6)].tolist() == list(range(114, 187, 6))
    assert numbers[joint.picks(16, 5)].tolist() == list(range(112, 188, 5))
    assert numbers[joint.picks(16, 4)].tolist() == list(range(120, 181, 4))
    twice = joint.indices(600, 60.0)
    assert np.diff(twice[joint.picks(16, 5)]).tolist() == [10] * 15
    with pytest.raises(ValueError, match="no network of 8 × 2"):
        joint.picks(8, 2)
