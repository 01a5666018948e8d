"""torchvision's video networks: their weights come through torchvision's own cache, and give torchvision's own logits."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from dtkd_edge.errors import CheckpointError, NotHereError
from dtkd_edge.models import VideoModel, create_model
from dtkd_edge.models.weights import load_weights

# name → frames, size of a clip that takes seconds
CLIPS = {
    "r2plus1d_18": (4, 32),
    "s3d": (8, 32),
    "mvit_v1_b": (4, 64),
    "mvit_v2_s": (4, 64),
    "swin3d_t": (4, 64),
    "swin3d_s": (2, 32),
    "swin3d_b": (2, 32),
}


def reference(name: str, classes: int = 400) -> nn.Module:
    torch.manual_seed(0)
    model = get_model(name, weights=None, num_classes=classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    if name == "s3d":
        model.avgpool = nn.AdaptiveAvgPool3d(1)  # its window is larger than a small clip's features
    if name.startswith("mvit"):  # built for 16 × 224²; the grid of patches is what its forward reads
        positions = model.pos_encoding
        positions.temporal_size, positions.spatial_size = 2, (16, 16)
        if name == "mvit_v1_b":
            positions.temporal_pos, positions.spatial_pos = (nn.Parameter(torch.randn(n, 96) * 0.02) for n in (2, 16 * 16))
    return model.eval()


def ours(name: str, classes: int | dict[str, int] = 400) -> VideoModel:
    frames, size = CLIPS[name]
    return create_model(name, classes, frames=frames, size=size).eval()


def into_cache(name: str, home: Path, monkeypatch: pytest.MonkeyPatch, classes: int = 400) -> nn.Module:
    """What a download leaves: the file under its published name in TORCH_HOME."""
    monkeypatch.setenv("TORCH_HOME", str(home))
    model = reference(name, classes)
    file = home / "hub" / "checkpoints" / Path(get_model_weights(name).DEFAULT.url).name
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model


@pytest.mark.parametrize("name", [*list(CLIPS)[:5], *(pytest.param(n, marks=pytest.mark.slow) for n in list(CLIPS)[5:])])
def test_weights_torchvision_gives_torchvisions_logits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = into_cache(name, tmp_path, monkeypatch)
    model = ours(name)
    report = load_weights(model, "torchvision")
    assert report is not None and not report.missing and not report.unexpected and not report.head_replaced
    clips = torch.randn(2, 3, model.info.frames, model.info.size, model.info.size)
    with torch.inference_mode():
        want = expected(clips)
        assert want.std() > 1e-3
        torch.testing.assert_close(model(clips)["action"], want, atol=1e-5, rtol=1e-5)
    weights = get_model_weights(name).DEFAULT
    assert model.info.mean == tuple(weights.transforms.keywords.get("mean", (0.43216, 0.394666, 0.37645)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_tsm_takes_torchvisions_resnet(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ImageNet: all but its classifier. With a fold larger than any channel count nothing is shifted, and only it is left."""
    expected = into_cache(name, tmp_path, monkeypatch, classes=1000)
    model = create_model(f"tsm_{name}", 5, frames=2, size=64, fold=10**6).eval()
    report = load_weights(model, "torchvision")
    assert report is not None and report.head_replaced and report.unexpected == ["fc.bias", "fc.weight"]
    assert report.missing == ["head.linear.action.weight", "head.linear.action.bias"]
    clips = torch.randn(1, 3, 2, 64, 64)
    frames = clips[0].transpose(0, 1)
    theirs = nn.Sequential(*list(expected.children())[:-2])
    with torch.inference_mode():
        want = theirs(frames)
        assert want.std() > 1e-3
        torch.testing.assert_close(model.forward_features(clips)["final"][0].transpose(0, 1), want, atol=1e-4, rtol=1e-4)


def test_another_class_count_replaces_the_head_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into_cache("r2plus1d_18", tmp_path, monkeypatch)
    report = load_weights(ours("r2plus1d_18", {"verb": 4, "noun": 3}), "torchvision:KINETICS400_V1")
    assert report is not None and report.head_replaced and report.missing == ["head.weight", "head.bias"]
    with pytest.raises(CheckpointError, match=r"no IMAGENET1K.*one of: KINETICS400_V1"):
        load_weights(ours("r2plus1d_18"), "torchvision:IMAGENET1K")


def test_a_download_that_does_not_come_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(NotHereError, match=r"torchvision's weights of swin3d_t cannot be had: .*\(fetch them once") as caught:
        load_weights(ours("swin3d_t"), "torchvision")
    assert "\n" not in str(caught.value)


def test_a_publisher_without_that_model() -> None:
    with pytest.raises(CheckpointError, match=r"timm has none of s3d.*torchvision"):
        load_weights(ours("s3d"), "timm")


def test_s3d_averages_overlapping_windows_as_torchvision_does() -> None:
    model, theirs = create_model("s3d", 5).eval(), get_model("s3d", weights=None, num_classes=5).eval()
    report = load_into(model, theirs)
    assert not report
    features = torch.randn(2, 1024, 4, 8, 9)
    want = theirs.classifier(theirs.avgpool(features)).mean((2, 3, 4))
    torch.testing.assert_close(model.forward_head({"mixed5": features})["action"], want, atol=1e-5, rtol=1e-5)


def load_into(model: VideoModel, theirs: nn.Module) -> list[str]:
    """Missing keys of torchvision's state dict in ours."""
    tensors = model.layouts()["torchvision"](dict(theirs.state_dict()))
    return list(model.load_state_dict(tensors, strict=False).missing_keys)
