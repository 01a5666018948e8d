"""MViT against torchvision's and pytorchvideo's networks: published names load whole, positions of another grid are scaled."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model
from torchvision.models.video.mvit import MultiscaleAttention

from dtkd_edge.models import VideoModel, create_model
from dtkd_edge.models.mvit_attention import replace_attention
from dtkd_edge.models.weights import fit, load_weights

# torchvision's names → PySlowFast's
TO_PYSLOWFAST = [
    (r"^conv_proj", "patch_embed.proj"),
    (r"^pos_encoding\.class_token", "cls_token"),
    (r"^pos_encoding\.(\w+)_pos", r"pos_embed_\1"),
    (r"^head\.1", "head.projection"),
    (r"attn\.project\.0", "attn.proj"),
    (r"pool_(\w)\.pool", r"pool_\1"),
    (r"pool_(\w)\.norm_act\.0", r"norm_\1"),
    (r"mlp\.0", "mlp.fc1"),
    (r"mlp\.3", "mlp.fc2"),
    (r"^(blocks\.\d+)\.project", r"\1.proj"),
]


def small(name: str, classes: int = 400) -> VideoModel:
    return create_model(name, classes, frames=4, size=64).eval()


def torchvisions(name: str) -> Any:
    """torchvision's network for 4 × 64², of which it builds 16 × 224² only."""
    torch.manual_seed(0)
    model: Any = get_model(name, weights=None).eval()
    positions = model.pos_encoding
    positions.temporal_size, positions.spatial_size = 2, (16, 16)
    if name == "mvit_v1_b":
        positions.temporal_pos, positions.spatial_pos = (nn.Parameter(torch.randn(n, 96) * 0.02) for n in (2, 16 * 16))
    return model


def pytorchvideos(**sizes: int) -> nn.Module:
    pytest.importorskip("pytorchvideo", reason="pytorchvideo is not installed")
    from pytorchvideo.models.hub.vision_transformers import mvit_video_base_config
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

    torch.manual_seed(2)
    model: nn.Module = create_multiscale_vision_transformers(**{**mvit_video_base_config, **sizes}).eval()
    return model


def pooled_norms(model: nn.Module) -> list[nn.LayerNorm]:
    """The norms of pooled queries, keys and values."""
    return [m for name, m in model.named_modules() if isinstance(m, nn.LayerNorm) and re.search(r"attn\.norm_[qkv]$", name)]


def agree(model: VideoModel, expected: nn.Module) -> None:
    clips = torch.randn(1, 3, model.info.frames, model.info.size, model.info.size)
    with torch.inference_mode():
        want = expected(clips)
        assert want.std() > 1e-2
        torch.testing.assert_close(model(clips)["action"], want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
@pytest.mark.parametrize("separate", [False, True], ids=["qkv", "q, k, v"])
def test_pyslowfasts_mvit_loads_whole(name: str, separate: bool, tmp_path: Path) -> None:
    expected = torchvisions(name)
    published: dict[str, Tensor] = {}
    for key, value in expected.state_dict().items():
        for pattern, replacement in TO_PYSLOWFAST:
            key = re.sub(pattern, replacement, key)  # noqa: PLW2901
        if "attn.qkv" in key and separate:
            published.update((key.replace("qkv", part), rows) for part, rows in zip("qkv", value.chunk(3), strict=True))
        else:
            published[key] = value.reshape(1, -1, 96) if re.match("cls_token|pos_embed", key) else value
    widens = "blocks.0.proj.weight" if name == "mvit_v1_b" else "blocks.1.proj.weight"
    assert {widens, "blocks.3.attn.norm_k.bias", "blocks.3.attn.pool_v.weight"} <= published.keys()
    torch.save({"model_state": published}, tmp_path / "MVIT.pyth")
    model = small(name)
    report = load_weights(model, str(tmp_path / "MVIT.pyth"))
    assert report is not None and report.layout == "PySlowFast" and not report.missing and not report.unexpected
    agree(model, expected)


def test_pytorchvideos_hub_mvit_loads_whole_and_agrees(tmp_path: Path) -> None:
    expected = pytorchvideos(spatial_size=64, temporal_size=4)
    torch.save({"model_state": expected.state_dict()}, tmp_path / "MVIT_B_16x4.pyth")
    model, theirs = small("mvit_v1_b"), torchvisions("mvit_v1_b")
    report = load_weights(model, str(tmp_path / "MVIT_B_16x4.pyth"))
    assert report is not None and report.layout == "pytorchvideo" and not report.missing and not report.unexpected
    # The one difference that is not a name, as docs/models.md says.
    norms = pooled_norms(expected)
    assert len(norms) == 35 and {norm.eps for norm in norms} == {1e-5}
    for norm in norms:
        norm.eps = 1e-6
    agree(model, expected)
    theirs.load_state_dict(
        {re.sub(r"^head\.", "head.1.", key.removeprefix("backbone.")): value for key, value in model.state_dict().items()}
    )
    agree(model, theirs)


def test_what_pytorchvideos_other_epsilon_changes_is_little() -> None:
    expected, model = pytorchvideos(spatial_size=64, temporal_size=4), small("mvit_v1_b")
    fit(model, dict(expected.state_dict()), "MVIT_B_16x4.pyth")
    clips = torch.randn(2, 3, 4, 64, 64)
    with torch.inference_mode():
        want = expected(clips)
        assert 1e-5 < (model(clips)["action"] - want).abs().max() < 0.01 * want.std()


@pytest.mark.slow
@pytest.mark.parametrize("frames", [16, 32])
def test_the_hubs_sizes_load_as_they_are(frames: int) -> None:
    """mvit_base_16x4 and mvit_base_32x3, at 224²."""
    expected, model = pytorchvideos(temporal_size=frames), create_model("mvit_v1_b", 400, frames=frames).eval()
    report = fit(model, dict(expected.state_dict()), "hub")
    assert len(report.loaded) == len(model.state_dict()) and not report.unexpected
    for norm in pooled_norms(expected):
        norm.eps = 1e-6
    if frames == 16:
        agree(model, expected)


def test_positions_of_another_grid_are_scaled_as_pyslowfast_scales_them() -> None:
    """It scales the sum of both tables trilinearly: 16 × 224² to 4 × 64²."""
    torch.manual_seed(0)
    published, model = get_model("mvit_v1_b", weights=None), small("mvit_v1_b")
    report = fit(model, dict(published.state_dict()), "mvit_v1_b.pth")
    assert report.layout == "torchvision" and not report.missing and not report.unexpected
    summed = published.pos_encoding.temporal_pos[:, None] + published.pos_encoding.spatial_pos
    cells = summed.reshape(8, 56, 56, 96).permute(3, 0, 1, 2)[None]
    want = F.interpolate(cells, (2, 16, 16), mode="trilinear")[0].flatten(1).t()
    positions: Any = model.backbone.pos_encoding  # type: ignore[attr-defined]
    got = (positions.temporal_pos[:, None] + positions.spatial_pos).flatten(0, 1)
    torch.testing.assert_close(got, want)


def test_tables_that_are_no_grid_are_left_to_be_refused() -> None:
    model, file = small("mvit_v1_b"), dict(torchvisions("mvit_v1_b").state_dict())
    file |= {"pos_encoding.spatial_pos": torch.zeros(7, 96), "pos_encoding.temporal_pos": torch.zeros(())}
    report = fit(model, file, "odd.pth")
    assert set(report.missing) == {f"backbone.pos_encoding.{name}_pos" for name in ("spatial", "temporal")}


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_mvits_class_token_is_no_feature(name: str) -> None:
    model = create_model(name, 3, frames=3, size=62).eval()  # 2 × 16² patches, as 4 × 64² has
    with torch.inference_mode():
        features = model.forward_features(torch.randn(2, 3, 3, 62, 62))
    assert features["class"].shape == (2, 768, 1, 1, 1)
    assert features["tokens"].shape == (2, 768, 2, 2, 2)  # 64 / 32
    assert features["stage1"].shape[2:] == (2, math.ceil(62 / 4), 16)
    assert model.info.last_tap == "tokens"


@pytest.mark.parametrize(
    ("grid", "pools"),
    [((2, 7, 7), ((1, 1, 1), (1, 1, 1))), ((4, 8, 6), ((1, 1, 1), (1, 4, 4))), ((3, 8, 8), ((1, 2, 2), (1, 1, 1)))],
    ids=["a key per query", "fewer keys", "fewer queries"],
)
@pytest.mark.parametrize(("with_class", "relative"), [(True, True), (False, True), (True, False)])
def test_fused_attention_is_torchvisions(grid: Any, pools: Any, with_class: bool, relative: bool) -> None:
    """Outputs and all gradients, in float64, with positions that weigh as much as what is seen."""
    torch.manual_seed(0)
    queries, keys = ([3, 3, 3], list(pools[0])), ([3, 3, 3], list(pools[1]))
    sizes = {"kernel_q": queries[0], "stride_q": queries[1], "kernel_kv": keys[0], "stride_kv": keys[1]}
    theirs = MultiscaleAttention(
        list(grid), 20, 24, 2, residual_pool=True, residual_with_cls_embed=with_class, rel_pos_embed=relative, **sizes
    ).double()
    for table in (theirs.rel_pos_t, theirs.rel_pos_h, theirs.rel_pos_w) if relative else ():
        nn.init.normal_(table)
    ours = copy.deepcopy(theirs)
    replace_attention(ours)
    assert type(ours) is not type(theirs) and ours.state_dict().keys() == theirs.state_dict().keys()
    outputs = []
    for attention in (theirs, ours):
        tokens = torch.randn(2, 1 + math.prod(grid), 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        out, pooled = attention(tokens.requires_grad_(), grid)
        out.square().sum().backward()
        outputs.append([out, tokens.grad, *(p.grad for p in attention.parameters()), torch.tensor(pooled)])
    assert outputs[0][0].std() > 0.1
    for want, got in zip(*outputs, strict=True):
        torch.testing.assert_close(got, want)


def test_fused_attention_scales_its_tables_as_torchvision_does() -> None:
    """To a grid that is not the one it was made for."""
    torch.manual_seed(0)
    theirs = MultiscaleAttention([8, 14, 14], 16, 16, 1, [], [3, 3, 3], [], [1, 2, 2], True, False, True)
    for table in (theirs.rel_pos_t, theirs.rel_pos_h, theirs.rel_pos_w):
        nn.init.normal_(table)
    ours = copy.deepcopy(theirs)
    replace_attention(ours)
    tokens = torch.randn(1, 1 + 3 * 9 * 10, 16)
    torch.testing.assert_close(ours(tokens, (3, 9, 10))[0], theirs(tokens, (3, 9, 10))[0])
