"""VideoMAE against transformers' own classifier, through the hub's cache and through files of both ages."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dtkd_edge.errors import RecipeError
from dtkd_edge.models import create_model
from dtkd_edge.models.sources import transformers_weights
from dtkd_edge.models.weights import fit, load_weights

transformers = pytest.importorskip("transformers", reason="transformers (extra hf) is not installed")


def reference(classes: int = 7) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=32, num_frames=4, hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=classes
    )
    model = transformers.VideoMAEForVideoClassification(config).eval()
    for name, parameter in model.named_parameters():  # biases start at zero, and would hide a wrong name
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def logits(model: torch.nn.Module, clips: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model(clips.transpose(1, 2)).logits
    return out


def test_a_repository_of_the_hub_gives_transformers_logits(tmp_path: Path) -> None:
    expected = reference()
    # A folder is what transformers reads a downloaded repository from; OWNER/NAME is relative to it here.
    folder = tmp_path / "owner" / "name"
    expected.save_pretrained(folder)
    model = create_model("videomae_small", 7, frames=4, size=32).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        report = load_weights(model, "hf-hub:owner/name")
    assert report is not None and not report.missing and not report.unexpected
    clips = torch.randn(2, 3, 4, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(clips)["action"], logits(expected, clips), atol=1e-5, rtol=1e-5)
        features = model.forward_features(clips)
        assert features["tokens"].shape == (2, 384, 2, 2, 2)
        hidden = expected.videomae(clips.transpose(1, 2), output_hidden_states=True).hidden_states  # the first: before any layer
        middle = features["middle"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(middle, hidden[len(hidden) // 2], atol=1e-5, rtol=1e-5)


def test_a_pretrained_repository_without_a_classifier_leaves_the_head(tmp_path: Path) -> None:
    expected = reference()
    expected.videomae.save_pretrained(tmp_path / "owner" / "name")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        tensors = transformers_weights("VideoMAEForVideoClassification")("owner/name")
    assert not any(key.startswith("classifier") for key in tensors)
    report = fit(create_model("videomae_small", 2, frames=4, size=32), tensors, "hub")
    assert report.head_replaced and set(report.missing) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}


def test_an_older_file_names_its_biases_otherwise(tmp_path: Path) -> None:
    expected = reference()
    old = {re.sub(r"(q|v)(uery|alue)\.bias$", r"\1_bias", key): value for key, value in expected.state_dict().items()}
    assert {f"videomae.encoder.layer.3.attention.attention.{name}_bias" for name in "qv"} <= old.keys()
    save_file(old, tmp_path / "model.safetensors")
    model = create_model("videomae_small", 7, frames=4, size=32).eval()
    report = load_weights(model, str(tmp_path / "model.safetensors"))
    assert report is not None and report.layout == "transformers" and not report.missing and not report.unexpected
    clips = torch.randn(1, 3, 4, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(clips)["action"], logits(expected, clips), atol=1e-5, rtol=1e-5)


def test_clips_that_do_not_fit_the_patches() -> None:
    with pytest.raises(RecipeError, match="5 frames of 40 pixels"):
        create_model("videomae_base", 3, frames=5, size=40)
