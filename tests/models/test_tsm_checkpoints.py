"""Published TSM checkpoints: their names on torchvision's weights give torchvision's logits where nothing is shifted.

The names are those of mit-han-lab/temporal-shift-module (ops/models.py, archs/mobilenet_v2.py) and of mmaction2's backbones
(resnet_tsm.py, mobilenet_v2_tsm.py), stated here from torchvision's side and apart from the code's tables.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from dtkd_edge.models import VideoModel, create_model
from dtkd_edge.models.weights import load_weights

DEPTHS = (1, 2, 3, 4, 3, 3, 1)  # MobileNetV2's blocks per stage


def reference(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = get_model(name, weights=None, num_classes=400)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model.eval()


def mit_resnet(key: str) -> str:
    key = re.sub(r"^(layer\d\.\d+\.conv1)\.", r"\1.net.", key)
    return "module." + (key.replace("fc.", "new_fc.") if key.startswith("fc.") else f"base_model.{key}")


def mmaction_resnet(key: str) -> str:
    if key.startswith("fc."):
        return key.replace("fc.", "cls_head.fc_cls.")
    key = re.sub(r"downsample\.0", "downsample.conv", re.sub(r"downsample\.1", "downsample.bn", key))
    key = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", key)
    key = re.sub(r"\bconv(\d)\.(?!bn)", r"conv\1.conv.", key)
    return "backbone." + re.sub(r"^(layer\d\.\d+\.conv1\.conv)\.", r"\1.net.", key)


def mit_mobilenet(key: str) -> str:
    """features.N.conv: convolution, norm, activation in one row, where torchvision nests the first two of three."""
    if key.startswith("classifier.1."):
        return key.replace("classifier.1.", "module.new_fc.")
    if match := re.match(r"features\.(\d+)\.conv\.(.*)", key):
        number, rest = int(match[1]), match[2]
        if number == 1:
            places = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}
        else:
            places = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}
        place = next(p for p in places if rest.startswith(f"{p}."))
        shifted = ".net" if places[place] == "0" and number not in SHIFTLESS else ""
        key = f"features.{number}.conv.{places[place]}{shifted}{rest.removeprefix(place)}"
    return f"module.base_model.{key}"


# The first block of each stage has no skip connection (the last stage's only block too), and so no shift.
SHIFTLESS = {1 + sum(DEPTHS[:stage]) for stage in range(len(DEPTHS))}


def mmaction_mobilenet(key: str) -> str:
    if key.startswith("classifier.1."):
        return key.replace("classifier.1.", "cls_head.fc_cls.")
    parts = {"0": "conv", "1": "bn"}
    if match := re.match(r"features\.(0|18)\.([01])\.(.*)", key):
        return f"backbone.conv{1 if match[1] == '0' else 2}.{parts[match[2]]}.{match[3]}"
    match = re.match(r"features\.(\d+)\.conv\.(.*)", key)
    assert match
    number, rest, stage = int(match[1]), match[2], 0
    block = number - 1
    while block >= DEPTHS[stage]:
        block, stage = block - DEPTHS[stage], stage + 1
    last = 1 if number == 1 else 2
    places = {f"{i}.{j}": f"{i}.{parts[str(j)]}" for i in range(last) for j in (0, 1)}
    places |= {f"{last}": f"{last}.conv", f"{last + 1}": f"{last}.bn"}
    place = next(p for p in places if rest.startswith(f"{p}."))
    found = places[place]
    if found.startswith("0.") and number not in SHIFTLESS:
        found = found.replace("0.", "0.net.")
    return f"backbone.layer{stage + 1}.{block}.conv.{found}{rest.removeprefix(place)}"


def without_shifts(model: VideoModel) -> VideoModel:
    for module in model.modules():
        if hasattr(module, "fold"):
            module.fold = 10**6
    return model.eval()


@pytest.mark.parametrize(
    ("theirs", "ours", "rename", "layout", "known"),
    [
        ("resnet18", "resnet18", mit_resnet, "mit-han-lab", "module.base_model.layer4.1.conv1.net.weight"),
        ("resnet50", "resnet50", mmaction_resnet, "mmaction2", "backbone.layer1.0.conv1.conv.net.weight"),
        ("resnet50", "resnet50", mit_resnet, "mit-han-lab", "module.base_model.layer1.0.downsample.0.weight"),
        ("mobilenet_v2", "mobilenetv2_100", mit_mobilenet, "mit-han-lab", "module.base_model.features.3.conv.0.net.weight"),
        ("mobilenet_v2", "mobilenetv2_100", mmaction_mobilenet, "mmaction2", "backbone.layer2.1.conv.0.net.conv.weight"),
    ],
)
def test_a_published_tsm_loads_whole(theirs, ours, rename, layout, known, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    expected = reference(theirs)
    published = {rename(key): value for key, value in expected.state_dict().items()}
    assert known in published and len(published) == len(expected.state_dict())
    torch.save({"state_dict": published, "epoch": 50}, tmp_path / "tsm.pth")
    model = create_model(f"tsm_{ours}", 400, frames=2, size=64)
    report = load_weights(model, str(tmp_path / "tsm.pth"))
    model, expected = model.double(), expected.double()
    assert report is not None and report.layout == layout
    assert not report.missing and not report.unexpected and not report.head_replaced
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        logits = without_shifts(model)(images.transpose(0, 1)[None])["action"]
        torch.testing.assert_close(logits[0], expected(images).mean(0), atol=1e-9, rtol=1e-9)


def test_a_published_classifier_has_no_place_among_two_heads(tmp_path: Path) -> None:
    published = {mit_resnet(key): value for key, value in reference("resnet18").state_dict().items()}
    torch.save(published, tmp_path / "tsm.pth")
    report = load_weights(create_model("tsm_resnet18", {"verb": 4, "noun": 5}, size=64), str(tmp_path / "tsm.pth"))
    assert report is not None and report.head_replaced and len(report.missing) == 4
    assert len(report.unexpected) == 2
