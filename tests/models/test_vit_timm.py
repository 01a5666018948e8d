"""timm's ViTs over frames: their features, and their weights through timm's own cache."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from dtkd_edge.errors import CheckpointError, RecipeError
from dtkd_edge.models import create_model
from dtkd_edge.models.weights import load_weights

NAME = "vit_tiny_patch16_224"


def test_frames_and_tokens_are_timms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = timm.create_model(NAME, num_classes=7).eval()
    save_file(reference.state_dict(), tmp_path / "vit.safetensors")
    model = create_model(NAME, 5, frames=2).eval()
    report = load_weights(model, str(tmp_path / "vit.safetensors"))
    assert report is not None and report.layout == "timm" and report.head_replaced
    assert all(name.startswith(("pool.", "head.")) for name in report.missing)
    clips = torch.randn(2, 3, 2, 224, 224)
    halfway: list[torch.Tensor] = []
    reference.blocks[5].register_forward_hook(lambda _m, _i, output: halfway.append(output))  # of twelve
    with torch.inference_mode():
        features = model.forward_features(clips)
        for t in range(2):
            x = reference.forward_features(clips[:, :, t])
            torch.testing.assert_close(features["frames"][:, :, t, 0, 0], reference.forward_head(x, pre_logits=True))
            for row, column in ((0, 0), (3, 11)):
                torch.testing.assert_close(features["tokens"][:, :, t, row, column], x[:, 1 + 14 * row + column])
                torch.testing.assert_close(features["middle"][:, :, t, row, column], halfway[-1][:, 1 + 14 * row + column])


def test_the_pooling_attends_over_time() -> None:
    torch.manual_seed(0)
    model = create_model(NAME, 5, frames=4, size=32).double().eval()
    frames = torch.randn(1, 192, 4, 1, 1, dtype=torch.float64)
    logits, swapped = (model.forward_head({"frames": x})["action"] for x in (frames, frames.flip(2)))
    assert (logits - swapped).abs().max() > 1e-6
    # The mean of the values weighted by softmax(qk/√d), written out.
    pool, d = model.pool, 192 // 8
    x = frames[0, :, :, 0, 0].T + pool.pos_embed  # type: ignore[union-attr]
    q = pool.q(pool.latent[0]).view(8, d)  # type: ignore[operator, index]
    k, v = pool.kv(x).view(4, 2, 8, d).unbind(1)  # type: ignore[operator]
    weights = (torch.einsum("hd,thd->ht", q, k) / d**0.5).softmax(1)
    assert weights.shape == (8, 4)
    mixed = pool.proj(torch.einsum("ht,thd->hd", weights, v).reshape(1, -1))  # type: ignore[operator]
    mixed = mixed + pool.mlp(pool.norm(mixed))  # type: ignore[operator]
    torch.testing.assert_close(model.head(mixed)["action"], logits)


@pytest.mark.parametrize("name", ["vit_deit_tiny_patch16_224", "vit_eva02_tiny_patch14_224"])
def test_other_vits_of_timm_under_the_prefix(name: str) -> None:
    model = create_model(name, {"verb": 3, "noun": 2}, frames=2, size=56 if "patch14" in name else 32).eval()
    side = 4 if "patch14" in name else 2
    clips = torch.randn(1, 3, 2, model.info.size, model.info.size)
    with torch.inference_mode():
        features = model.forward_features(clips)
        assert features["tokens"].shape == features["middle"].shape == (1, 192, 2, side, side)
        assert {head: tuple(v.shape) for head, v in model(clips).items()} == {"verb": (1, 3), "noun": (1, 2)}


def test_what_is_no_vit_is_refused() -> None:
    with pytest.raises(RecipeError, match="SwinTransformer is no plain ViT"):
        create_model("vit_swin_tiny_patch4_window7_224", 3)
    with pytest.raises(RecipeError, match="timm has no model 'huge_x'"):
        create_model("vit_huge_x", 3)


def hub_repository(
    cache: Path, repository: str, name: str, file: str = "model.safetensors", classes: int = 10, **config: object
) -> Path:
    """What a download from the hub leaves in its cache; the path of its weights. Other files than safetensors are not written."""
    torch.manual_seed(0)
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    if file == "model.safetensors":
        save_file(timm.create_model(name, num_classes=classes).state_dict(), snapshot / file)
    pretrained = {"num_classes": classes, "input_size": [3, 224, 224], **config}
    (snapshot / "config.json").write_text(
        json.dumps({"architecture": name, "num_classes": classes, "pretrained_cfg": pretrained})
    )
    return snapshot / file


LOAD = """
import sys
from dtkd_edge.errors import CheckpointError
from dtkd_edge.models import create_model
from dtkd_edge.models.weights import load_weights
for name, size, source in zip(*[iter(sys.argv[1:])] * 3):
    try:
        print(load_weights(create_model(name, 4, frames=2, size=int(size)), source).line())
    except CheckpointError as error:
        print(error)
"""


def test_timm_and_the_hub_through_their_cache(tmp_path: Path) -> None:
    """In a process of its own, because the hub's library reads its cache's place when it is imported."""
    hub_repository(tmp_path / "hub", timm.get_pretrained_cfg(NAME).hf_hub_id, NAME)
    hub_repository(tmp_path / "hub", timm.get_pretrained_cfg("mobilenetv2_050").hf_hub_id, "mobilenetv2_050", classes=1000)
    hub_repository(tmp_path / "hub", "someone/net", "resnet18")
    arguments = [NAME, "64", "timm", NAME, "224", "timm:augreg_in21k_ft_in1k", "tsm_resnet18", "64", "hf-hub:someone/net"]
    lines = loaded(tmp_path, *arguments, "tsm_mobilenetv2_050", "64", "timm")
    assert all("0 unexpected, head replaced" in line for line in lines[:2])
    assert lines[2].startswith("hf-hub:someone/net (timm): ") and "head replaced" in lines[2]
    # ImageNet's classifier for ours: weight and bias.
    assert re.fullmatch(r"timm \(timm\): \d+ tensors loaded, 2 missing, 2 unexpected, head replaced", lines[3])


def test_code_in_a_repository_of_the_hub_is_never_run(tmp_path: Path) -> None:
    """timm before 1.0.26 ran that of a repository which names its file."""
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(marker)!r}, 'w').close()",)

    hub = tmp_path / "hub"
    for file in (
        hub_repository(hub, "someone/named", "resnet18", "evil.pth", hf_hub_filename="evil.pth"),
        hub_repository(hub, "someone/usual", "resnet18", "pytorch_model.bin"),
    ):
        torch.save({"state_dict": Hostile()}, file)
    lines = loaded(tmp_path, "tsm_resnet18", "64", "hf-hub:someone/named", "tsm_resnet18", "64", "hf-hub:someone/usual")
    assert all("hold more than tensors, and code in a file is never run" in line for line in lines)
    assert not marker.exists()


def loaded(home: Path, *arguments: str) -> list[str]:
    """What LOAD says, with `home` as the hub's folder; one line per name, size, source."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert len(lines) * 3 == len(arguments), done.stderr
    return lines


def test_a_tag_or_repository_that_is_none() -> None:
    with pytest.raises(CheckpointError, match=r"timm has no vit_tiny_patch16_224.nonsense.*augreg_in21k"):
        load_weights(create_model(NAME, 3, size=32), "timm:nonsense")
    with pytest.raises(CheckpointError, match="write hf-hub:OWNER/NAME"):
        load_weights(create_model(NAME, 3, size=32), "hf-hub:nonsense")
