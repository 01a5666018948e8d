"""SlowFast against pytorchvideo, and published checkpoints into it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dtkd_edge.errors import RecipeError
from dtkd_edge.models import create_model
from dtkd_edge.models.weights import load_weights

# name → α, the lateral kernels' length: configs/Kinetics of PySlowFast
SETTINGS = {"slowfast_r50_4x16": (8, 5), "slowfast_r50_8x8": (4, 7)}


def hub(name: str, classes: int = 400) -> nn.Module:
    """pytorchvideo's network, with statistics that are not the initial ones."""
    models = pytest.importorskip("pytorchvideo.models.hub", reason="pytorchvideo 0.1.5 is not installed")
    from pytorchvideo.models.slowfast import create_slowfast

    torch.manual_seed(0)
    alpha, kernel = SETTINGS[name]
    if name == "slowfast_r50_8x8":
        model = models.slowfast_r50(model_num_class=classes)
    else:  # not in the hub: its builder, with PySlowFast's setting
        model = create_slowfast(
            model_num_class=classes,
            slowfast_fusion_conv_kernel_size=(kernel, 1, 1),
            slowfast_fusion_conv_stride=(alpha, 1, 1),
            head_pool_kernel_sizes=((32 // alpha, 7, 7), (32, 7, 7)),
        )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return model.eval()


def pathways(clips: torch.Tensor, alpha: int) -> list[torch.Tensor]:
    """PackPathway of pytorchvideo's tutorial and pack_pathway_output of PySlowFast."""
    frames = clips.shape[2]
    return [clips.index_select(2, torch.linspace(0, frames - 1, frames // alpha).long()), clips]


@pytest.mark.parametrize("size", [32, pytest.param(224, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SETTINGS)
def test_pytorchvideos_state_dict_is_ours_and_so_are_its_logits(name: str, size: int) -> None:
    reference = hub(name)
    model = create_model(name, 400, size=size).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    if size != 224:
        reference.blocks[5].pool = nn.ModuleList([nn.AdaptiveAvgPool3d(1)] * 2)
    clips = torch.randn(1, 3, 32, size, size)
    alpha = SETTINGS[name][0]
    with torch.inference_mode():
        features = model.forward_features(clips)
        logits = model.forward_head(features)["action"]
        expected = reference(pathways(clips, alpha))
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert features["res5"].shape == (1, 2304, 32 // alpha, size // 32, size // 32)
    assert [tap.shape[1] for tap in features.values()] == [256, 512, 1024, 2304]


# Ours → PySlowFast's, stated apart from the code's own table, in the other direction.
TO_PYSLOWFAST: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^blocks\.0\.multipathway_blocks\.(\d)\.conv\.", r"s1.pathway\1_stem.conv."),
    (r"^blocks\.0\.multipathway_blocks\.(\d)\.norm\.", r"s1.pathway\1_stem.bn."),
    (r"^blocks\.(\d)\.multipathway_fusion\.conv_fast_to_slow", lambda m: f"s{int(m[1]) + 1}_fuse.conv_f2s"),
    (r"^blocks\.(\d)\.multipathway_fusion\.norm", lambda m: f"s{int(m[1]) + 1}_fuse.bn"),
    (
        r"^blocks\.(\d)\.multipathway_blocks\.(\d)\.res_blocks\.(\d+)\.",
        lambda m: f"s{int(m[1]) + 1}.pathway{m[2]}_res{m[3]}.",
    ),
    (r"^blocks\.6\.proj\.", "head.projection."),
    (r"branch1_conv", "branch1"),
    (r"branch1_norm", "branch1_bn"),
    (r"branch2\.conv_(\w)", r"branch2.\1"),
    (r"branch2\.norm_(\w)", r"branch2.\1_bn"),
]


def test_a_pyslowfast_checkpoint_loads_whole(tmp_path: Path) -> None:
    reference = hub("slowfast_r50_8x8").state_dict()
    published = {}
    for key, value in reference.items():
        for pattern, replacement in TO_PYSLOWFAST:
            key = re.sub(pattern, replacement, key)  # noqa: PLW2901
        published[key] = value
    assert {"s4_fuse.conv_f2s.weight", "s5.pathway1_res2.branch2.c_bn.bias", "head.projection.weight"} <= published.keys()
    torch.save({"model_state": published}, tmp_path / "slowfast.pyth")
    model = create_model("slowfast_r50_8x8", 400)
    report = load_weights(model, str(tmp_path / "slowfast.pyth"))
    assert report is not None and report.layout == "PySlowFast" and not report.missing and not report.unexpected
    assert all(torch.equal(value, reference[key]) for key, value in model.state_dict().items())


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(RecipeError, match="12 frames with alpha 8"):
        create_model("slowfast_r50_4x16", 3, frames=12)
    assert create_model("slowfast_r50_4x16", 3, frames=12, alpha=4).info.frames == 12
