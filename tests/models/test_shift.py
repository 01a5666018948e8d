"""The shift against an independent statement of its definition, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtkd_edge.models.shift import fold_time, temporal_shift, unfold_time


def by_definition(x: torch.Tensor, frames: int, fold: int, causal: bool) -> torch.Tensor:
    """Element by element: which frame each channel group is read from; outside the clip it is zero."""
    rows, channels, _, _ = x.shape
    n = channels // fold
    out = torch.zeros_like(x)
    for row in range(rows):
        clip, t = divmod(row, frames)
        for c in range(channels):
            if causal:
                step = -1 if c < n else 0
            else:
                step = 1 if c < n else -1 if c < 2 * n else 0
            if 0 <= t + step < frames:
                out[row, c] = x[clip * frames + t + step, c]
    return out


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    frames=st.integers(1, 6),
    channels=st.integers(2, 19),
    fold=st.sampled_from([2, 4, 8]),
    causal=st.booleans(),
)
def test_shift_is_its_definition(batch: int, frames: int, channels: int, fold: int, causal: bool) -> None:
    x = torch.randn(batch * frames, channels, 2, 3, dtype=torch.float64)
    assert torch.equal(temporal_shift(x, frames, fold, causal), by_definition(x, frames, fold, causal))


@pytest.mark.parametrize("causal", [False, True])
def test_gradient_goes_back_to_where_the_value_came_from(causal: bool) -> None:
    x = torch.randn(8, 16, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    (temporal_shift(x, 4, 8, causal) * weight).sum().backward()
    # The shift is linear, so its gradient is its adjoint: <S x, w> = <x, S' w> for every x.
    probe = torch.randn_like(x)
    left = (by_definition(probe.detach(), 4, 8, causal) * weight).sum()
    assert x.grad is not None
    torch.testing.assert_close(left, (probe * x.grad).sum())


def test_causal_shift_never_sees_the_future() -> None:
    x = torch.randn(5, 16, 2, 2)
    later = x.clone()
    later[3:] += 1
    assert torch.equal(temporal_shift(x, 5, causal=True)[:3], temporal_shift(later, 5, causal=True)[:3])
    assert not torch.equal(temporal_shift(x, 5)[:3], temporal_shift(later, 5)[:3])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_keeps_the_memory_layout(layout: torch.memory_format, causal: bool) -> None:
    """A shift that loses channels-last makes training of a shifted CNN on a CPU nearly twice as slow."""
    x = torch.randn(8, 24, 5, 6).contiguous(memory_format=layout)
    shifted = temporal_shift(x, 4, 8, causal)
    assert shifted.is_contiguous(memory_format=layout)
    assert torch.equal(shifted, by_definition(x, 4, 8, causal))


def test_fold_and_unfold_are_inverse() -> None:
    x = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(unfold_time(fold_time(x), 4), x)
