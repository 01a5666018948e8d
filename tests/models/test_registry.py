"""Every registered model builds, keeps its promises about shapes and taps, and takes the clip that it declares."""

import pytest
import torch

from dtkd_edge.errors import MissingDependency, RecipeError
from dtkd_edge.models import create_model, fit_clip, list_models
from dtkd_edge.models.registry import entries
from dtkd_edge.models.shift import Shift

EXAMPLES = {
    "tsm_*": [("tsm_mobilenetv2_035", 64), ("tsm_resnet18", 64), ("tsm_mobilenetv3_large_100", 64), ("tsm_efficientnet_b0", 64)],
    "vit_tubelet": [("vit_tubelet", 96)],
    "vit_*": [("vit_tiny_patch16_224", 32), ("vit_deit_tiny_patch16_224", 32)],
    "vit_hybrid_*": [("vit_hybrid_mobilenetv2_035", 64), ("vit_hybrid_resnet18", 64)],
    "mvit_v2_s": [("mvit_v2_s", 64)],
    **{f"videomae_{size}": [(f"videomae_{size}", 32)] for size in ("small", "base", "large")},
}
FRAMES = {"s3d": 8, "slowfast_r50_4x16": 8}  # instead of 4: fewer they cannot take
SLOW = {"x3d_l", "swin3d_s", "swin3d_b", "videomae_base", "videomae_large"}  # larger ones of a family
ALL = [
    pytest.param(example, size, marks=[pytest.mark.slow] if example in SLOW else [])
    for name in list_models()
    for example, size in EXAMPLES.get(name, [(name, 40)])
]


@pytest.mark.parametrize(("name", "size"), ALL)
def test_model_keeps_its_declaration(name: str, size: int) -> None:
    if name.startswith("videomae"):
        pytest.importorskip("transformers", reason="transformers (extra hf) is not installed")
    frames = FRAMES.get(name, 4)
    model = create_model(name, {"verb": 5, "noun": 3}, size=size, frames=frames).eval()
    clips = torch.randn(2, 3, frames, size, size)
    with torch.inference_mode():
        features = model.forward_features(clips)
    assert {k: v.shape[1] for k, v in features.items()} == model.info.taps
    assert all(v.ndim == 5 and v.shape[0] == 2 for v in features.values())
    assert {head: tuple(v.shape) for head, v in model(clips).items()} == {"verb": (2, 5), "noun": (2, 3)}
    head = {id(p) for p in model.head_parameters()}
    assert head and head < {id(p) for p in model.parameters()}


@pytest.mark.parametrize("name", ["tsm_tiny", "tsm_resnet_tiny", "tsm_mobilenetv2_035", "vit_tubelet_tiny"])
def test_time_matters(name: str) -> None:
    """The reversed clip gives other logits: the network is no bag of frames."""
    torch.manual_seed(0)
    model = create_model(name, 4, size=48, frames=8).eval().double()
    if name == "vit_tubelet_tiny":  # position embeddings start near zero
        torch.nn.init.normal_(model.position)  # type: ignore[arg-type]
    clips = torch.randn(1, 3, 8, 48, 48, dtype=torch.float64)
    forward, backward = model(clips)["action"], model(clips.flip(2))["action"]
    assert (forward - backward).abs().max() > 1e-8  # a bag of frames differs by rounding, 1e-15, at most


def test_a_model_declares_the_roles_it_is_registered_with() -> None:
    for entry in entries():
        for example, size in EXAMPLES.get(entry.name, [(entry.name, 40)]):
            try:
                with torch.device("meta"):
                    model = create_model(example, 3, size=size)
            except MissingDependency:
                continue
            assert model.info.roles == entry.roles


def test_an_option_that_a_model_does_not_have_is_named() -> None:
    with pytest.raises(RecipeError, match="x3d_s: it has no option pad_type") as caught:
        create_model("x3d_s", 3, pad_type="same")
    assert "take it out" in caught.value.hint


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="tsm_tiny"):
        create_model("tsn_tiny", 3)


def test_unknown_timm_model_and_unknown_option() -> None:
    with pytest.raises(RecipeError, match="no model 'mobilenetv9'"):
        create_model("tsm_mobilenetv9", 3)
    with pytest.raises(RecipeError, match="no_such_option"):
        create_model("tsm_tiny", 3, no_such_option=1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tsm_tiny", {"width": "abc"}),
        ("tsm_tiny", {"fold": 0}),
        ("tsm_tiny", {"dropout": 2}),
        ("tsm_tiny", {"heads": 3}),
        ("vit_tubelet_tiny", {"dim": 50, "num_heads": 4}),
        ("tsm_mobilenetv2_035", {"mean": "abc"}),
    ],
)
def test_options_that_no_model_can_have_are_the_recipes_fault(name: str, options: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=f"{name}.*{next(iter(options))}"):
        create_model(name, 3, size=48, **options)  # type: ignore[arg-type]


NOT_SHIFTED = ("convnext_tiny", "densenet121", "mobilenetv4_conv_small", "ghostnet_100", "mobileone_s0", "repvgg_a0",
               "resnetv2_50", "res2net50_26w_4s", "dla34", "gernet_s", "fastvit_t8", "vgg11")  # fmt: skip
SHIFTED = ("resnext50_32x4d", "wide_resnet50_2", "seresnet50", "ecaresnet26t", "regnety_004", "hrnet_w18", "efficientnetv2_rw_t",
           "tinynet_a", "mnasnet_100", "mixnet_s", "fbnetc_100", "spnasnet_100", "hardcorenas_a")  # fmt: skip


@pytest.mark.parametrize("name", NOT_SHIFTED)
def test_a_network_without_residual_blocks_is_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(RecipeError, match="no residual block"):
        create_model(f"tsm_{name}", 3)


@pytest.mark.parametrize("name", SHIFTED)
def test_families_of_residual_blocks_are_shifted(name: str) -> None:
    with torch.device("meta"):
        model = create_model(f"tsm_{name}", 3, frames=2, size=64).eval()
        features = model.forward_features(torch.zeros(1, 3, 2, 64, 64))
    assert {tap: value.shape[1] for tap, value in features.items()} == model.info.taps
    assert sum(isinstance(module, Shift) for module in model.modules()) >= 4


def test_fit_clip_gives_each_network_its_own_view_of_the_same_clip() -> None:
    frames = torch.randint(0, 256, (2, 8, 40, 40, 3), dtype=torch.uint8)
    same = create_model("tsm_tiny", 3, frames=8, size=40).info
    other = create_model("tsm_tiny", 3, frames=4, size=20).info
    clips = fit_clip(frames, same)
    restored = (clips * 0.225 + 0.45) * 255
    torch.testing.assert_close(restored.permute(0, 2, 3, 4, 1), frames.float(), atol=1e-3, rtol=0)
    small = fit_clip(frames, other)
    assert small.shape == (2, 3, 4, 20, 20)
    # Frames are the middles of four equal parts of the eight: 1, 3, 5, 7.
    picked = fit_clip(frames[:, [1, 3, 5, 7]], create_model("tsm_tiny", 3, frames=4, size=20).info)
    assert torch.equal(small, picked)
