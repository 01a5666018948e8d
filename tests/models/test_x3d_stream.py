"""X3D frame by frame, against its definition over a whole video: plain 3-D convolutions in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtkd_edge.models import create_model
from dtkd_edge.models.base import VideoModel

pytestmark = pytest.mark.usefixtures("one_thread")
HEADS = {"verb": 3, "noun": 2}


def trained(model: VideoModel) -> VideoModel:
    """Statistics and weights that are not the initial ones; every block must count."""
    generator = torch.Generator().manual_seed(0)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.running_mean.copy_(normal(module.running_mean) * 0.1)
                module.running_var.copy_(normal(module.running_var).abs() * 0.3 + 0.7)
                module.weight.copy_(normal(module.weight).abs() * 0.3 + 0.5)
                module.bias.copy_(normal(module.bias) * 0.1)
        for parameter in model.head_parameters():
            parameter.copy_(normal(parameter) * 0.1)
    return model.double().eval()


def convolve(weights: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    """3-D convolution over a video whose past is empty: k-1 zero frames in front and none behind."""
    weight = weights[f"{name}.weight"]
    _, per_group, time, height, width = weight.shape
    x = torch.cat([x.new_zeros(*x.shape[:2], time - 1, *x.shape[3:]), x], 2)
    bias, groups = weights.get(f"{name}.bias"), x.shape[1] // per_group
    return F.conv3d(x, weight, bias, (1, stride, stride), (0, height // 2, width // 2), groups=groups)


def norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    parts = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *parts, eps=1e-5)


def window(x: Tensor, t: int, frames: int, late: int) -> Tensor:
    """`[B, C, L]` → the mean of the last `frames` values up to t; those before `late` answer for no frame of the video."""
    part = x[:, :, max(t - frames + 1, late) : t + 1]
    return part.mean(2) if part.shape[2] else torch.zeros_like(x[:, :, 0])


def by_definition(weights: dict[str, Tensor], video: Tensor, frames: int, *, centred: bool) -> list[dict[str, Tensor]]:
    """Video `[B, 3, L, H, W]` → the logits after each of its L frames.

    centred: the weights look (k-1)/2 frames ahead, so an answer is about the frame so long ago; the shortcut beside it is of
    that frame too, and what is older than the first frame is no answer.
    """
    x = convolve(weights, "blocks.0.conv.conv_xy", convolve(weights, "blocks.0.conv.conv_t", video, 2))
    x, late = F.relu(norm(weights, "blocks.0.norm", x)), 2
    for stage in range(1, 5):
        number = 0
        while (block := f"blocks.{stage}.res_blocks.{number}") + ".branch2.conv_a.weight" in weights:
            stride, late = 2 if number == 0 else 1, late + 1
            short = x
            if f"{block}.branch1_conv.weight" in weights:
                short = convolve(weights, f"{block}.branch1_conv", x, stride)
            if f"{block}.branch1_norm.weight" in weights:
                short = norm(weights, f"{block}.branch1_norm", short)
            if centred:
                short = torch.cat([torch.zeros_like(short[:, :, :1]), short[:, :, :-1]], 2)
            y = F.relu(norm(weights, f"{block}.branch2.norm_a", convolve(weights, f"{block}.branch2.conv_a", x)))
            y = norm(weights, f"{block}.branch2.norm_b.0", convolve(weights, f"{block}.branch2.conv_b", y, stride))
            if number % 2 == 0:
                mean = y.mean((3, 4))
                past = [window(mean, t, frames, late if centred else 0) for t in range(y.shape[2])]
                gate = torch.stack(past, 2)[..., None, None]
                gate = F.relu(convolve(weights, f"{block}.branch2.norm_b.1.block.0", gate))
                y = y * torch.sigmoid(convolve(weights, f"{block}.branch2.norm_b.1.block.2", gate))
            y = norm(weights, f"{block}.branch2.norm_c", convolve(weights, f"{block}.branch2.conv_c", F.silu(y)))
            x = F.relu(short + y)
            number += 1
    features = F.relu(norm(weights, "blocks.5.pool.pre_norm", convolve(weights, "blocks.5.pool.pre_conv", x))).mean((3, 4))
    out = []
    for t in range(video.shape[2]):
        pooled = window(features, t, frames, late if centred else 0)[..., None, None, None]
        pooled = F.relu(convolve(weights, "blocks.5.pool.post_conv", pooled)).flatten(1)
        logits = F.linear(pooled, weights["blocks.5.proj.weight"], weights["blocks.5.proj.bias"])
        out.append(dict(zip(HEADS, logits.split(list(HEADS.values()), 1), strict=True)))
    return out


@pytest.mark.parametrize(("causal", "length"), [(True, 14), (False, 36)])
def test_frame_by_frame_is_the_whole_video_by_definition(causal: bool, length: int) -> None:
    """From the first frame on until the label has come and the window is full, and beyond."""
    model = trained(create_model("x3d_xs", HEADS, frames=5, size=32, causal=causal))
    form = model.stream_form().double().eval()
    assert form.delay == (0 if causal else 28)
    video = torch.randn(1, 3, length, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want = by_definition(model.state_dict(), video, 5, centred=not causal)
    states = list(form.states(1).values())
    spread = 0.0
    with torch.no_grad():
        for t, frame in enumerate(video.unbind(2)):
            got, states = form(frame, states)
            for head in HEADS:
                torch.testing.assert_close(got[head], want[t][head], atol=1e-9, rtol=1e-9)
            spread = max(spread, float((want[t]["verb"] - want[0]["verb"]).abs().max()))
    assert spread > 1e-3  # the logits do change from frame to frame


def test_a_causal_x3d_is_its_own_stream_and_never_looks_ahead() -> None:
    model = trained(create_model("x3d_xs", HEADS, frames=6, size=32, causal=True))
    form = model.stream_form().double().eval()
    clips = torch.randn(2, 3, 6, 32, 32, dtype=torch.float64)
    later = clips.clone()
    later[:, :, 4:] += 1
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_features(clips)["conv5"][:, :, :4], model.forward_features(later)["conv5"][:, :, :4]
        )
        states = None
        for t in range(6):
            got, states = form(clips[:, :, t], states)
            want = model(clips[:, :, : t + 1])
            for head in HEADS:
                torch.testing.assert_close(got[head], want[head], atol=1e-9, rtol=1e-9)
        assert form.reference(model) is model
        free = create_model("x3d_xs", HEADS, frames=6, size=32).double().eval()
        free.load_state_dict(model.state_dict(), strict=True)  # the same weights, another function
        assert (free(clips)["verb"] - model(clips)["verb"]).abs().max() > 1e-3
