"""Learning-rate schedule and parameter groups."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtkd_edge.distill.task import DistillationTask
from dtkd_edge.models import VideoModel, create_model
from dtkd_edge.recipe import DistillConfig, OptimConfig
from dtkd_edge.train.schedule import layer_depths, learning_rate, make_optimizer, set_learning_rate


def alone(model: VideoModel) -> DistillationTask:
    return DistillationTask(model, {}, DistillConfig(method="ce"))


@given(total=st.integers(1, 500), warmup=st.floats(0, 0.9), schedule=st.sampled_from(["cosine", "step", "constant"]))
def test_rate_rises_then_never_rises_again(total: int, warmup: float, schedule: str) -> None:
    config = OptimConfig.model_validate({"warmup": warmup, "schedule": schedule})
    rates = [learning_rate(config, step, total) for step in range(total)]
    assert all(0 <= r <= 1 for r in rates)
    top = rates.index(max(rates))
    assert all(a <= b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[top:]))


def test_cosine_is_half_way_in_the_middle_and_nearly_zero_at_the_end() -> None:
    config = OptimConfig(warmup=0.0)
    assert learning_rate(config, 0, 100) == 1.0
    assert math.isclose(learning_rate(config, 50, 100), 0.5)
    assert learning_rate(config, 99, 100) < 1e-3


def test_steps_fall_at_their_milestones() -> None:
    config = OptimConfig(warmup=0.0, schedule="step", milestones=[0.5, 0.75], gamma=0.1)
    rates = [learning_rate(config, step, 100) for step in (0, 49, 50, 74, 75, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    for wrong in ([0.5, 0.5], [0.0], [0.2, 1.0]):
        with pytest.raises(ValueError, match="milestones"):
            OptimConfig(milestones=wrong)


def test_layer_decay_lowers_the_rate_block_by_block() -> None:
    model = create_model("vit_tubelet_tiny", 4, frames=8, size=32)
    optimizer = make_optimizer(OptimConfig(lr=0.1, layer_decay=0.5, head_lr=2), alone(model))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rate = {name: rates[id(p)] for name, p in model.named_parameters()}
    blocks = [rate[f"encoder.layers.{i}.linear1.weight"] for i in range(4)]
    assert blocks == pytest.approx([0.1 * 0.5 ** (4 - i) for i in range(4)])
    assert rate["head.linear.action.weight"] == pytest.approx(0.2)
    assert rate["position"] == min(rate.values())


@pytest.mark.parametrize(("name", "blocks"), [("swin3d_t", 12), ("mvit_v2_s", 16), ("s3d", 12), ("r2plus1d_18", 12)])
def test_blocks_are_counted_whatever_holds_them(name: str, blocks: int) -> None:
    with torch.device("meta"):
        model = create_model(name, 4)
    depths = layer_depths(model)
    named = {key: depths[id(parameter)] for key, parameter in model.named_parameters()}
    assert max(named.values()) == blocks + 1
    assert {depths[id(parameter)] for parameter in model.head_parameters()} == {blocks + 1}


def test_what_joins_two_stages_goes_with_the_block_before() -> None:
    with torch.device("meta"):
        model = create_model("swin3d_t", 4)
    depths = layer_depths(model)
    named = {key.removeprefix("backbone."): depths[id(parameter)] for key, parameter in model.named_parameters()}
    keys = ["patch_embed.proj.weight", "features.0.0.norm1.weight", "features.0.1.mlp.3.weight", "features.1.reduction.weight"]
    assert [named[key] for key in [*keys, "features.2.0.norm1.weight"]] == [0, 1, 2, 2, 3]
    assert named["features.4.5.norm1.weight"] == 10


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_groups(name: str) -> None:
    model = create_model("tsm_tiny", 4, size=32)
    config = OptimConfig.model_validate({"optimizer": name, "lr": 0.1, "head_lr": 5, "weight_decay": 0.3})
    optimizer = make_optimizer(config, alone(model))
    rows = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rows[id(parameter)] = (group["weight_decay"], group["lr"])
    assert len(rows) == sum(1 for _ in model.parameters())
    for parameter_name, parameter in model.named_parameters():
        decay, lr = rows[id(parameter)]
        assert decay == (0.3 if parameter.ndim > 1 else 0.0)
        assert lr == pytest.approx(0.5 if parameter_name.startswith("head.") else 0.1)
    set_learning_rate(optimizer, 0.5)
    assert sorted({round(g["lr"], 6) for g in optimizer.param_groups}) == [0.05, 0.25]
    assert isinstance(optimizer, torch.optim.Optimizer)


@pytest.mark.parametrize(("method", "maps"), [("dtkd", 3), ("fitnet-vit", 1), ("ca-mkd", 4), ("ofa", 0), ("kd-mean", 0)])
def test_linear_maps_between_features_learn_at_a_rate_of_their_own(method: str, maps: int) -> None:
    teachers = {"cnn": create_model("tsm_tiny", 4, size=32), "vit": create_model("vit_tubelet_tiny", 4, size=32)}
    distill = DistillConfig.model_validate({"method": method, "regressor_lr": 7, "branch": {"grid": (2, 2, 2), "channels": 8}})
    task = DistillationTask(create_model("tsm_tiny", 4, size=32), teachers, distill)
    optimizer = make_optimizer(OptimConfig(lr=0.1, head_lr=3, weight_decay=0.3), task)
    rows = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert len(rows) == sum(1 for _ in task.parameters())
    fast = [name for name, p in task.named_parameters() if rows[id(p)][0] == pytest.approx(0.7)]
    assert len(fast) == 2 * maps and not any(name.startswith(("student.", "stages.")) for name in fast)
    assert {rows[id(p)] for n, p in task.named_parameters() if n.startswith("student.head.") and p.ndim > 1} == {(0.1 * 3, 0.3)}
