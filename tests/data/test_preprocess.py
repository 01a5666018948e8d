"""The one preprocessing, against independent statements of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_videos import pattern
from PIL import Image
from pydantic import ValidationError

from dtkd_edge.preprocess import Preprocess, Sampling, resize_box

counts = st.integers(1, 400)


@given(counts, st.integers(1, 32), st.integers(1, 5))
def test_uniform_is_the_middle_of_each_segment(total: int, frames: int, views: int) -> None:
    sampling = Sampling(frames=frames)
    numbers = sampling.indices(total)
    assert numbers.tolist() == [[int((2 * k + 1) * total / (2 * frames)) for k in range(frames)]]
    several = sampling.indices(total, views=views)
    assert several.shape == (views, frames)
    assert (np.diff(several.T.reshape(-1)) >= 0).all()  # views are spread inside the segments
    assert 0 <= several.min() <= several.max() < total


def test_the_middle_is_exact_for_every_length() -> None:
    for frames in (4, 5, 7, 8, 13, 16, 32):
        for total in range(1, 400):
            middles = [(2 * k + 1) * total // (2 * frames) for k in range(frames)]
            assert Sampling(frames=frames).indices(total).tolist() == [middles], (total, frames)


@given(counts, st.integers(1, 32), st.integers(0, 5))
def test_uniform_training_draws_inside_each_segment(total: int, frames: int, seed: int) -> None:
    numbers = Sampling(frames=frames).indices(total, rng=np.random.default_rng(seed))[0]
    for k, number in enumerate(numbers):
        assert int(k * total / frames) - 1e-9 <= number <= min((k + 1) * total / frames, total - 1)


@given(counts, st.integers(1, 20), st.integers(1, 8), st.integers(0, 5), st.booleans(), st.integers(1, 4))
def test_dense_is_evenly_spaced_and_inside(total: int, frames: int, stride: int, seed: int, train: bool, views: int) -> None:
    sampling = Sampling(kind="dense", frames=frames, stride=stride)
    numbers = sampling.indices(total, rng=np.random.default_rng(seed) if train else None, views=views)
    assert numbers.shape == (1 if train else views, frames)
    assert 0 <= numbers.min() <= numbers.max() < total
    if (frames - 1) * stride < total:
        assert (np.diff(numbers) == stride).all()
        if not train and views == 1:
            assert abs((numbers[0, 0] + numbers[0, -1]) / 2 - (total - 1) / 2) <= 1  # the middle
    else:
        assert numbers[0, 0] == 0
        assert numbers[0, -1] == total - 1  # a short video repeats its last frame


def test_of_a_short_video_uniform_repeats_frames_evenly_and_dense_holds_the_last() -> None:
    assert Sampling(frames=8).indices(3).tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    assert Sampling(kind="dense", frames=8).indices(3).tolist() == [[0, 1, 2, 2, 2, 2, 2, 2]]


def test_dense_by_time() -> None:
    sampling = Sampling(kind="dense", frames=4, stride=2, fps=10)
    assert np.diff(sampling.indices(300, 30.0)).tolist() == [[6, 6, 6]]
    assert np.diff(sampling.indices(300, 5.0)).tolist() == [[1, 1, 1]]


def test_no_frame_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        Sampling().indices(0)


@given(
    st.integers(16, 120), st.integers(16, 120), st.integers(8, 40), st.integers(0, 30), st.sampled_from(["bilinear", "bicubic"])
)
def test_the_crop_is_scale_then_crop(height: int, width: int, crop: int, extra: int, interpolation: str) -> None:
    """Against scaling the whole frame with Pillow, then cropping, where that falls on whole pixels."""
    preprocess = Preprocess.model_validate(
        {"resize_short": crop + extra, "crop": crop, "sampling": Sampling(), "interpolation": interpolation}
    )
    image = pattern(1, height, width)[0]
    out = preprocess.frame(image)
    assert (out.shape, out.dtype) == ((crop, crop, 3), np.uint8)
    scale = preprocess.resize_short / min(height, width)
    long = width * scale if width >= height else height * scale
    if abs(long - round(long)) > 1e-9 or (round(long) - crop) % 2 or extra % 2:
        return
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    whole = np.asarray(Image.fromarray(image).resize((round(width * scale), round(height * scale)), method))
    top, left = (whole.shape[0] - crop) // 2, (whole.shape[1] - crop) // 2
    assert np.abs(out.astype(int) - whole[top : top + crop, left : left + crop]).max() <= 2


@given(st.floats(0, 40), st.floats(0, 30), st.floats(8, 60), st.floats(8, 60), st.integers(8, 50))
def test_handing_over_only_a_part_changes_nothing(left: float, top: float, wide: float, tall: float, size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 100, 3), dtype=np.uint8)
    box = (left, top, left + wide, top + tall)
    whole = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box))
    assert np.abs(resize_box(image, box, (size, size)).astype(int) - whole).max() <= 1


def test_spatial_views_slide_along_the_long_side() -> None:
    ramp = np.repeat(np.arange(160, dtype=np.uint8)[None, :, None], 80, 0).repeat(3, 2)
    preprocess = Preprocess(resize_short=80, crop=80, sampling=Sampling())  # type: ignore[call-arg]
    first = [int(preprocess.frame(ramp, view, 3)[0, 0, 0]) for view in range(3)]
    assert first == [0, 40, 80]
    down = [int(preprocess.frame(ramp.swapaxes(0, 1).copy(), view, 3)[0, 0, 0]) for view in range(3)]
    assert down == [0, 40, 80]


def test_golden_frame() -> None:
    """The pixels of one frame, kept: a library that scales otherwise would move every deployed accuracy."""
    y, x = np.mgrid[0:48, 0:64]
    image = np.stack([x * 4, y * 5, (x * y) % 256], -1).astype(np.uint8)
    out = Preprocess(resize_short=10, crop=8, sampling=Sampling()).frame(image)  # type: ignore[call-arg]
    assert out[:, :, 0][0].tolist() == GOLDEN_RED
    assert out[:, 0, 1].tolist() == GOLDEN_GREEN
    assert np.diag(out[:, :, 2]).tolist() == GOLDEN_BLUE


GOLDEN_RED = [59, 78, 97, 116, 136, 155, 174, 193]
GOLDEN_GREEN = [34, 57, 81, 105, 130, 154, 178, 201]
GOLDEN_BLUE = [99, 164, 133, 114, 120, 124, 124, 123]


def test_a_crop_that_does_not_fit() -> None:
    with pytest.raises(ValidationError, match="crop 40 is larger than resize_short 32"):
        Preprocess(resize_short=32, crop=40, sampling=Sampling())  # type: ignore[call-arg]
