"""mixup and CutMix: what a batch becomes, and that a training with them learns from both labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dtkd_edge.distill.task import DistillationTask
from dtkd_edge.errors import RecipeError
from dtkd_edge.models import create_model
from dtkd_edge.recipe import AugmentConfig, DistillConfig
from dtkd_edge.train.command import train
from dtkd_edge.train.mixing import mix


def clips(count: int, height: int = 12, width: int = 16) -> torch.Tensor:
    """Every clip of one grey value, all different."""
    values = (torch.arange(count) * (255 // count)).to(torch.uint8)
    return values.view(-1, 1, 1, 1, 1).expand(count, 3, height, width, 3).clone()


@given(seed=st.integers(0, 10_000), count=st.integers(2, 9), kind=st.sampled_from(["mixup", "cutmix"]))
def test_every_clip_holds_the_shares_that_are_said(seed: int, count: int, kind: str) -> None:
    torch.manual_seed(seed)
    frames = clips(count)
    mixture = mix(frames, AugmentConfig.model_validate({kind: 0.8}))
    assert mixture is not None and 0 <= mixture.share <= 1
    assert sorted(mixture.partner.tolist()) == list(range(count))
    for b, clip in enumerate(mixture.frames):
        own, other = float(frames[b, 0, 0, 0, 0]), float(frames[mixture.partner[b], 0, 0, 0, 0])
        assert float(clip.float().mean()) == pytest.approx(mixture.share * own + (1 - mixture.share) * other, abs=0.51)
        assert torch.equal(clip, clip[:1].expand_as(clip))  # the same in every frame


def test_off_by_default() -> None:
    assert mix(clips(4), AugmentConfig()) is None


def test_cross_entropy_is_shared_out() -> None:
    torch.manual_seed(0)
    task = DistillationTask(create_model("tsm_tiny", 4, frames=4, size=24), {}, DistillConfig(method="ce")).eval()
    frames = torch.randint(0, 255, (6, 4, 24, 24, 3), dtype=torch.uint8)
    y, z = torch.randint(0, 4, (2, 6))
    result = task(frames, {"action": y}, shared=({"action": z}, 0.3))
    logits = result["output"]["action"]
    want = 0.3 * F.cross_entropy(logits, y) + 0.7 * F.cross_entropy(logits, z)
    assert result["loss"].item() == pytest.approx(want.item(), rel=1e-6)


def test_a_training_with_both(small: list[str], tmp_path: Path) -> None:
    mixed = [*small, "augment.mixup=0.4", "augment.cutmix=1.0", "train.epochs=1"]
    run = train("quickstart", overrides=[*mixed, "distill.method=ce"], out=tmp_path / "run")
    assert (run / "metrics.json").is_file()
    with pytest.raises(RecipeError, match=r"leave teachers\.views out"):
        train("quickstart", overrides=[*mixed, "teachers.views=2"], out=tmp_path / "other")
