"""Published networks in the method: an X3D student under an X3D and a ViT teacher, from their published files to an artefact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model, get_model_weights
from train_cases import SMALL, with_sets

from dtkd_edge.distill.task import DistillationTask
from dtkd_edge.export import verify
from dtkd_edge.models import create_model
from dtkd_edge.recipe import DistillConfig


@pytest.mark.parametrize(
    ("tap", "vit", "frames", "size"), [("conv5", "swin3d_t", 4, 64), ("res3", "vit_tiny_patch16_224", 2, 32)]
)
def test_a_step_of_the_method_at_any_depth(tap: str, vit: str, frames: int, size: int) -> None:
    """Student, CNN teacher and ViT teacher have features of three sizes; the branch joins them on one grid."""
    torch.manual_seed(0)
    student = create_model("x3d_xs", {"verb": 3, "noun": 4}, frames=2, size=64)
    cnn = create_model("x3d_m", {"verb": 3, "noun": 4}, frames=4, size=32)
    teachers = {"cnn": cnn, "vit": create_model(vit, {"verb": 3, "noun": 4}, frames=frames, size=size)}
    for model in (student, cnn):  # a block whose last norm starts at zero gives its inner layers no gradient
        for name, parameter in model.named_parameters():
            if name.endswith("norm_c.weight"):
                torch.nn.init.ones_(parameter)
    task = DistillationTask(student, teachers, DistillConfig.model_validate({"branch": {"tap": tap}})).train()
    clips = torch.randint(0, 256, (4, 4, 64, 64, 3), dtype=torch.uint8)
    out = task(clips, {"verb": torch.tensor([0, 1, 2, 0]), "noun": torch.tensor([3, 2, 1, 0])})
    assert {"ce", "kd", "sdd", "align"} <= out["terms"].keys()
    assert all(torch.isfinite(value) and value >= 0 for value in out["terms"].values())
    assert out["residual_var"] > 0.01
    out["loss"].backward()
    lost = [name for name, parameter in student.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not lost
    assert all(parameter.grad is None for teacher in teachers.values() for parameter in teacher.parameters())


@pytest.mark.slow
def test_published_files_to_a_student_through_the_command_line(
    motion_root: Path, tmp_path: Path, main: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    published = get_model_weights("mvit_v2_s").DEFAULT.url
    torch.save(get_model("mvit_v2_s", weights=None).state_dict(), cache / Path(published).name)
    # The hub's file as pytorchvideo's own network writes it is tested in tests/models; here its names, from ours.
    torch.save({"model_state": create_model("x3d_xs", 400).state_dict()}, tmp_path / "X3D.pyth")
    x3d, one = f"weights: {tmp_path / 'X3D.pyth'}, frames: 4, size: 32", "train: {epochs: 1, batch_size: 32}"
    sets = [
        *(override for override in SMALL if not override.startswith(("student.", "teachers.", "train.epochs"))),
        f"data.root={motion_root}",
        f"student={{model: x3d_xs, {x3d}}}",
        f"teachers.cnn={{model: x3d_m, {x3d}, {one}}}",
        f"teachers.vit={{model: mvit_v2_s, weights: torchvision, frames: 4, size: 32, {one}}}",
        "train.epochs=1",
        "data.student_clips=16",
    ]
    monkeypatch.setattr(verify, "SECONDS", 0.05)  # how fast the artefact is is not looked at
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    code, _, said = main("train", *with_sets(sets), "--out", tmp_path / "run")
    assert code == 0, said
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    notes = [str(entry.get("note")) for entry in log]
    assert any(note.startswith("vit: torchvision (torchvision): ") and note.endswith("head replaced") for note in notes)
    assert sum("X3D.pyth: " in note and note.endswith("head replaced") for note in notes) == 2
    student = [entry for entry in log if entry.get("phase") == "student" and "epoch" in entry]
    assert len(student) == 1 and student[0]["residual_var"] > 0.01 and "loss_sdd" in student[0]
    code, _, said = main("export", tmp_path / "run", "--target", "onnx")
    assert code == 0, said
    manifest = json.loads((tmp_path / "run" / "export" / "onnx-fp32" / "manifest.json").read_text())
    assert manifest["model"]["name"] == "x3d_xs" and manifest["verify"]["max_abs"] < 1e-3
