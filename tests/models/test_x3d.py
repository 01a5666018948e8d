"""X3D against pytorchvideo, and published checkpoints into it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dtkd_edge.models import create_model
from dtkd_edge.models.weights import load_weights

SIZES = {"x3d_xs": (4, 160), "x3d_s": (13, 160), "x3d_m": (16, 224), "x3d_l": (16, 312)}


def hub(name: str, model_num_class: int) -> nn.Module:
    """pytorchvideo's network, with statistics that are not the initial ones and logits instead of probabilities."""
    models = pytest.importorskip("pytorchvideo.models.hub", reason="pytorchvideo 0.1.5 is not installed")
    torch.manual_seed(0)
    model = getattr(models, name)(model_num_class=model_num_class)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.4, 0.8)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    model.blocks[-1].activation = None
    return model.eval()


@pytest.mark.parametrize("name", ["x3d_xs", *(pytest.param(n, marks=pytest.mark.slow) for n in ("x3d_s", "x3d_m", "x3d_l"))])
def test_pytorchvideos_state_dict_is_ours_and_so_are_its_logits(name: str) -> None:
    reference = hub(name, 400)
    model = create_model(name, 400).eval()
    assert (model.info.frames, model.info.size) == SIZES[name]
    model.load_state_dict(reference.state_dict(), strict=True)
    clips = torch.randn(1, 3, model.info.frames, model.info.size, model.info.size)
    with torch.inference_mode():
        features = model.forward_features(clips)
        logits = model.forward_head(features)["action"]
        x, want = clips, {}
        for i, block in enumerate(reference.blocks[:-1]):
            x = want[f"res{i + 1}"] = block(x)
        pool = reference.blocks[-1].pool
        want["conv5"] = pool.pre_act(pool.pre_norm(pool.pre_conv(x)))
        expected = reference.blocks[-1](x)
    assert logits.std() > 1e-3
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    for tap, value in features.items():
        torch.testing.assert_close(value, want[tap], atol=1e-4, rtol=1e-5)
    assert features["conv5"].shape == (1, 432, model.info.frames, *[-(-model.info.size // 32)] * 2)


def test_the_sizes_are_all_stated_against_the_reference() -> None:
    """The small clips that the quick tests run: every size's names and shapes are pytorchvideo's."""
    for name in SIZES:
        want = {key: value.shape for key, value in hub(name, 7).state_dict().items()}
        assert {key: value.shape for key, value in create_model(name, 7).state_dict().items()} == want


def test_a_hub_checkpoint_loads_through_weights_and_another_head_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "X3D_XS.pyth"
    reference = hub("x3d_xs", 400)
    torch.save({"model_state": reference.state_dict(), "optimizer_state": {}, "cfg": "", "epoch": 3}, file)
    whole = load_weights(create_model("x3d_xs", 400), str(file))
    assert whole is not None and not whole.missing and not whole.unexpected and not whole.head_replaced
    model = create_model("x3d_xs", {"verb": 5, "noun": 3})
    report = load_weights(model, str(file))
    assert report is not None and report.head_replaced
    assert report.missing == ["blocks.5.proj.weight", "blocks.5.proj.bias"]
    assert torch.equal(model.state_dict()["blocks.0.norm.weight"], reference.state_dict()["blocks.0.norm.weight"])


# Ours → PySlowFast's, stated apart from the code's own table, in the other direction.
TO_PYSLOWFAST: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^blocks\.0\.conv\.conv_t\.", "s1.pathway0_stem.conv_xy."),
    (r"^blocks\.0\.conv\.conv_xy\.", "s1.pathway0_stem.conv."),
    (r"^blocks\.0\.norm\.", "s1.pathway0_stem.bn."),
    (r"^blocks\.5\.pool\.pre_conv\.", "head.conv_5."),
    (r"^blocks\.5\.pool\.pre_norm\.", "head.conv_5_bn."),
    (r"^blocks\.5\.pool\.post_conv\.", "head.lin_5."),
    (r"^blocks\.5\.proj\.", "head.projection."),
    (r"^blocks\.(\d)\.res_blocks\.(\d+)\.", lambda m: f"s{int(m[1]) + 1}.pathway0_res{m[2]}."),
    (r"branch1_conv", "branch1"),
    (r"branch1_norm", "branch1_bn"),
    (r"branch2\.conv_(\w)", r"branch2.\1"),
    (r"branch2\.norm_([ac])", r"branch2.\1_bn"),
    (r"branch2\.norm_b\.0", "branch2.b_bn"),
    (r"branch2\.norm_b\.1\.block\.0", "branch2.se.fc1"),
    (r"branch2\.norm_b\.1\.block\.2", "branch2.se.fc2"),
]


def test_a_pyslowfast_checkpoint_gives_the_function_of_pyslowfasts_network(tmp_path: Path) -> None:
    """Its names, and its norm on the first stage's projection, which pytorchvideo's network lacks."""
    reference = hub("x3d_xs", 400)
    reference.blocks[-1].pool.pool = nn.AdaptiveAvgPool3d(1)  # for clips of 64 pixels
    norm = nn.BatchNorm3d(24).eval()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 1.5)
    reference.blocks[1].res_blocks[0].branch1_norm = norm
    published = {}
    for key, value in reference.state_dict().items():
        for pattern, replacement in TO_PYSLOWFAST:
            key = re.sub(pattern, replacement, key)  # noqa: PLW2901
        published[key] = value
    assert "s2.pathway0_res0.branch1_bn.running_var" in published and "s5.pathway0_res6.branch2.c.weight" in published
    torch.save({"model_state": published}, tmp_path / "x3d_xs.pyth")
    model = create_model("x3d_xs", 400, size=64).eval()
    report = load_weights(model, str(tmp_path / "x3d_xs.pyth"))
    assert report is not None and report.layout == "PySlowFast" and not report.missing
    clips = torch.randn(2, 3, 4, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(clips)["action"], reference(clips), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [{"action": 4}, {"verb": 3, "noun": 2}])
def test_every_head_has_its_own_rows_and_gradients(heads: dict[str, int]) -> None:
    model = create_model("x3d_xs", heads).eval()
    logits = model.forward_head({"conv5": torch.randn(2, 432, 2, 3, 3)})
    assert {head: tuple(value.shape) for head, value in logits.items()} == {head: (2, k) for head, k in heads.items()}
    first = next(iter(heads))
    logits[first].sum().backward()
    weight, _ = model.head_parameters()
    assert weight.grad is not None
    touched = weight.grad.abs().sum(1) > 0
    assert touched.tolist() == [True] * heads[first] + [False] * (sum(heads.values()) - heads[first])
