"""The transformer over a CNN's features: what is loaded, what is frozen, what its tokens are made of."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from dtkd_edge.errors import RecipeError
from dtkd_edge.models import create_model
from dtkd_edge.models.weights import load_weights

NAME = "vit_hybrid_mobilenetv2_035"


def test_the_cnn_is_timms_and_all_else_is_new(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = timm.create_model("mobilenetv2_035", num_classes=7).eval()
    save_file(reference.state_dict(), tmp_path / "cnn.safetensors")
    model = create_model(NAME, 5, frames=2, size=64).eval()
    report = load_weights(model, str(tmp_path / "cnn.safetensors"))
    assert report is not None and report.layout == "timm"
    assert not any(name.startswith("backbone.") for name in report.missing)
    clips = torch.randn(2, 3, 2, 64, 64)
    with torch.inference_mode():
        features = model.forward_features(clips)
        for t in range(2):
            torch.testing.assert_close(features["frames"][:, :, t], reference.forward_features(clips[:, :, t]))


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_cnn_stays_as_it_was_loaded(freeze: bool) -> None:
    torch.manual_seed(0)
    model = create_model(NAME, 3, frames=2, size=64, freeze=freeze).train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}  # type: ignore[union-attr]
    model(torch.randn(4, 3, 2, 64, 64))["action"].square().sum().backward()
    stayed = all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())  # type: ignore[union-attr]
    assert stayed is freeze  # the statistics of its batch norms
    trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert ("backbone" in trained) is not freeze and {"embed", "time", "space", "encoder", "norm", "head"} <= trained


def test_tokens_attend_over_space_and_time() -> None:
    """Changing one frame changes the tokens of every other one."""
    torch.manual_seed(0)
    model = create_model(NAME, 3, frames=3, size=64).double().eval()
    clips = torch.randn(1, 3, 3, 64, 64, dtype=torch.float64)
    changed = clips.clone()
    changed[:, :, 1] += 1
    with torch.inference_mode():
        a, b = (model.forward_features(x) for x in (clips, changed))
    assert torch.equal(a["frames"][:, :, 0], b["frames"][:, :, 0])
    assert ((a["tokens"] - b["tokens"]).abs().amax((0, 1)) > 1e-9).all()


@pytest.mark.parametrize(("name", "depth", "lower"), [(NAME, 3, 1), ("vit_tubelet_tiny", 4, 2), ("vit_tubelet_tiny", 1, 1)])
def test_the_middle_is_what_the_lower_half_of_the_layers_gives(name: str, depth: int, lower: int) -> None:
    """With the upper layers taken out, the tokens are the middle's behind the last norm."""
    torch.manual_seed(0)
    model = create_model(name, 3, frames=2, size=64, depth=depth).eval()
    clips = torch.randn(2, 3, 2, 64, 64)
    assert model.info.middle == "middle"
    with torch.inference_mode():
        middle, before = (model.forward_features(clips)[tap] for tap in ("middle", "tokens"))
        model.encoder.layers = model.encoder.layers[:lower]  # type: ignore[union-attr, index, assignment]
        normed = model.norm(middle.movedim(1, -1)).movedim(-1, 1)  # type: ignore[operator]
        tokens = model.forward_features(clips)["tokens"]
    torch.testing.assert_close(tokens, normed)
    assert torch.allclose(before, tokens, atol=1e-3) == (depth == 1)


def test_what_is_no_cnn_is_refused() -> None:
    for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
        with torch.device("meta"), pytest.raises(RecipeError, match="no feature maps"):
            create_model(f"vit_hybrid_{name}", 3)
    with pytest.raises(RecipeError, match="timm has no model 'nothing'"):
        create_model("vit_hybrid_nothing", 3)
