"""Augmentation: one draw per clip, and what it must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_videos import pattern
from PIL import Image

from dtkd_edge.data.augment import augment, color_jitter, random_crop, resize, shrink, working_side
from dtkd_edge.data.mirror import flip_warning, mirrored
from dtkd_edge.data.rand_augment import FILL, OPERATIONS, STRENGTHS, rand_augment
from dtkd_edge.recipe import AugmentConfig


@settings(max_examples=50, deadline=None)
@given(st.integers(24, 90), st.integers(24, 90), st.integers(8, 60), st.integers(0, 9), st.floats(0.05, 1), st.floats(1, 2))
def test_any_frame_size(height: int, width: int, size: int, seed: int, low: float, ratio: float) -> None:
    config = AugmentConfig(scale=(low, 1.0), ratio=ratio, flip=True, color=0.5)
    frames = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    out = augment(np.stack([shrink(f, working_side(size, config)) for f in frames]), size, config, np.random.default_rng(seed))
    assert (out.shape, out.dtype) == ((2, size, size, 3), np.uint8)
    assert out.flags.c_contiguous


@settings(max_examples=50, deadline=None)
@given(*[st.integers(8, 90)] * 4, st.integers(1, 3), st.booleans(), st.integers(0, 9))
def test_scaling_is_pillows_within_one_grey_level(
    height: int, width: int, tall: int, wide: int, count: int, of_a_larger_one: bool, seed: int
) -> None:
    """Which is the deployed preprocessing's: a student must not see other pixels in training than on the device."""
    frames = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    if of_a_larger_one:
        frames = np.pad(frames, ((0, 0), (2, 5), (3, 4), (0, 0)))[:, 2:-5, 3:-4]
    frames.flags.writeable = False  # as a decoder's are
    theirs = np.stack([np.asarray(Image.fromarray(f).resize((wide, tall), Image.Resampling.BILINEAR)) for f in frames])
    ours = resize(frames, (tall, wide))
    assert ours.dtype == np.uint8 and np.abs(ours.astype(int) - theirs).max() <= 1


def test_all_frames_of_a_clip_are_treated_alike() -> None:
    frames = np.repeat(pattern(1, 48, 64), 5, 0)
    config = AugmentConfig(scale=(0.3, 0.8), ratio=1.5, flip=True, color=0.4)
    for seed in range(6):
        out = augment(frames, 32, config, np.random.default_rng(seed))
        assert (out == out[0]).all()


def test_the_crop_covers_the_asked_area_and_the_whole_frame() -> None:
    """A ramp whose value is the place: the crop's borders can be read from it."""
    y, x = np.mgrid[0:100, 0:200]
    frames = np.stack([x, y * 2, y * 0], -1)[None].astype(np.uint8)
    rng = np.random.default_rng(0)
    lefts, areas = [], []
    for _ in range(300):
        out = random_crop(frames, 20, AugmentConfig(scale=(0.25, 0.64), ratio=1.2), rng)[0].astype(float)
        wide = (out[10, -1, 0] - out[10, 0, 0]) / 19 * 20
        tall = (out[-1, 10, 1] - out[0, 10, 1]) / 2 / 19 * 20
        areas.append(wide * tall / 100**2)
        lefts.append(out[10, 0, 0] - wide / 40)
    assert 0.22 < min(areas) < 0.3
    assert 0.6 < max(areas) < 0.68
    assert min(lefts) < 8
    assert max(lefts) > 110


def test_no_crop_and_no_colour_is_the_frame_itself() -> None:
    frames = pattern(3, 40, 40)
    same = augment(frames, 40, AugmentConfig(scale=(1, 1)), np.random.default_rng(0))
    assert (same == frames).all()


def test_half_of_the_clips_are_mirrored() -> None:
    frames = pattern(1, 40, 40)
    config = AugmentConfig(scale=(1, 1), flip=True)
    mirrored = 0
    for seed in range(100):
        out = augment(frames, 40, config, np.random.default_rng(seed))
        assert (out == frames).all() or (out == frames[:, :, ::-1]).all()
        mirrored += int((out != frames).any())
    assert 30 < mirrored < 70


def test_colour_jitter_is_brightness_contrast_and_saturation() -> None:
    """Against the three steps done one after the other, in floats."""
    frames = (pattern(2, 16, 16) // 3 + 60).astype(np.uint8)  # far from black and white, so nothing is clipped
    out = color_jitter(frames, 0.2, np.random.default_rng(3))
    saturation, contrast, brightness = np.random.default_rng(3).uniform(0.8, 1.2, 3)
    luma = np.array([0.299, 0.587, 0.114])
    x = frames.astype(float)
    grey = (x @ luma)[..., None]
    x = grey + saturation * (x - grey)
    mean = (frames @ luma).mean()
    x = mean + contrast * (x - mean)
    assert np.abs(out - brightness * x).max() < 0.51


def test_shrink_never_enlarges_and_keeps_the_shape() -> None:
    assert shrink(pattern(2, 30, 40)[0], 30).shape == (30, 40, 3)
    assert shrink(pattern(2, 90, 160)[0], 45).shape == (45, 80, 3)
    assert shrink(pattern(2, 160, 90)[0], 45).shape == (80, 45, 3)


def test_rand_augment_draws_by_the_clips_own_generator_and_treats_frames_alike() -> None:
    frames = np.repeat(pattern(1, 48, 64), 4, 0)
    before = torch.get_rng_state()
    seen = []
    for seed in range(40):
        out = rand_augment(frames, 2, 15, np.random.default_rng(seed))
        assert (out.shape, out.dtype) == (frames.shape, np.uint8) and (out == out[0]).all()
        assert (rand_augment(frames, 2, 15, np.random.default_rng(seed)) == out).all()
        seen.append(out.tobytes())
    assert len(set(seen)) > 25
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "theirs"), [
    ("identity", "Identity"), ("shear x", "ShearX"), ("shear y", "ShearY"), ("translate x", "TranslateX"),
    ("translate y", "TranslateY"), ("rotate", "Rotate"), ("brightness", "Brightness"), ("color", "Color"),
    ("contrast", "Contrast"), ("sharpness", "Sharpness"), ("posterize", "Posterize"), ("solarize", "Solarize"),
    ("auto contrast", "AutoContrast"), ("equalize", "Equalize"),
])  # fmt: skip
@pytest.mark.parametrize("magnitude", [0, 7, 30])
def test_rand_augments_operations_are_torchvisions(name: str, theirs: str, magnitude: int) -> None:
    """Against torchvision's class with its operation and sign fixed; its fill and interpolation are set to ours."""
    from torchvision.transforms import InterpolationMode, v2

    reference = v2.RandAugment(1, magnitude, interpolation=InterpolationMode.BILINEAR, fill=FILL)
    reference._AUGMENTATION_SPACE = {theirs: v2.RandAugment._AUGMENTATION_SPACE[theirs]}
    video = torch.from_numpy(pattern(2, 48, 64)).permute(0, 3, 1, 2)
    signed, operation = OPERATIONS[name]
    ours = [operation(video, sign * magnitude / STRENGTHS) for sign in ((1, -1) if signed else (1,))]
    found = []
    torch.manual_seed(0)
    for _ in range(12):  # of either sign
        out = reference(video)
        near = [torch.equal(out, mine) or (out.int() - mine.int()).abs().float().mean() < 0.05 for mine in ours]
        assert any(near)
        found.append(near)
    assert all(any(column) for column in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["swipe left", "swipe right", "up"], [("swipe left", "swipe right")]),
        (["SwipeRight", "SwipeLeft", "left_arm"], [("SwipeLeft", "SwipeRight")]),
        (["turn_clockwise", "turn_counter-clockwise"], [("turn_clockwise", "turn_counter-clockwise")]),
        (["anti clockwise", "clockwise"], [("anti clockwise", "clockwise")]),
        (["spin cw", "spin CCW"], [("spin CCW", "spin cw")]),
        (["from left to right", "from right to left"], [("from left to right", "from right to left")]),
        (["left hook", "right jab", "upright", "upleft", "leftover"], []),
    ],
)
def test_classes_that_a_mirror_swaps(names: list[str], pairs: list[tuple[str, str]]) -> None:
    assert mirrored(names) == pairs
    assert len(flip_warning(True, {"action": names})) == len(pairs) and not flip_warning(False, {"action": names})
