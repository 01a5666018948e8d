"""Which losses, under which options, a method is made of: every term of the task, stated anew from the functions of this room."""

import pytest
import torch
from torch.nn import functional as F

from dtkd_edge.distill import datw, kd, rivals, rkd, sdd
from dtkd_edge.distill.matching import Projections
from dtkd_edge.distill.task import DistillationTask
from dtkd_edge.models import create_model, fit_clip
from dtkd_edge.models.base import ModelInfo
from dtkd_edge.recipe import DistillConfig

HEADS = {"verb": 3, "noun": 5}
LAST = {"cnn": "stage3", "vit": create_model("vit_tubelet_tiny", {"action": 2}, size=48).info.last_tap}


def unit_variance(target):
    return target / target.std(correction=0)


class Said:
    """One batch through a task, and what the statements below need of it."""

    def __init__(self, method, **options):
        torch.manual_seed(0)
        networks = {
            "cnn": create_model("tsm_resnet_tiny", HEADS, size=40),
            "vit": create_model("vit_tubelet_tiny", HEADS, size=48),
        }
        small = {"grid": (2, 3, 3), "channels": 8, **options.pop("branch", {})}
        self.config = DistillConfig.model_validate({"method": method, "branch": small, **options})
        self.task = DistillationTask(create_model("tsm_tiny", HEADS, size=40, dropout=0.0), networks, self.config)
        frames = torch.randint(0, 256, (5, 8, 40, 40, 3), dtype=torch.uint8)
        self.labels = {head: torch.randint(0, n, (5,)) for head, n in HEADS.items()}
        self.taught = self.task.teach(frames)
        for said in self.taught.values():  # untrained teachers are alike and unsure: larger logits make rules differ
            said.logits = {head: 8 * z for head, z in said.logits.items()}
        self.out = self.task(frames, self.labels, taught=self.taught)
        self.features = self.task.student.forward_features(fit_clip(frames, self.task.student.info))

    def heads(self, statement):
        """The mean over heads of statement(student's logits, CNN's, ViT's, labels, head)."""
        values = [
            statement(z, *(self.taught[name].logits[head] if name in self.taught else None for name in ("cnn", "vit")), y, head)
            for head, z in self.out["output"].items()
            for y in [self.labels[head]]
        ]
        return sum(values) / len(values)

    def phi(self, name, tap):
        return self.task.phi[name][tap](self.taught[name].features[tap])

    def pairs(self, name):
        """Predictions and targets of a teacher's matching, the last tap first."""
        project, pairs = self.task.matching[name].project, self.task.matching[name].pairs
        predictions = [project[ours](self.features[ours]) for ours in pairs]
        return predictions, [unit_variance(self.phi(name, theirs)) for theirs in pairs.values()]

    def distance(self, name, kind):
        predictions, targets = self.pairs(name)
        return sum(sdd.feature_distance(p, t, kind) for p, t in zip(predictions, targets, strict=True)) / len(targets)

    def check(self, want, omega=None):
        assert set(self.out["terms"]) == {"ce", *want}
        want = {"ce": self.heads(lambda z, c, v, y, h: F.cross_entropy(z, y)), **want}
        for name, value in want.items():
            assert self.out["terms"][name].item() == pytest.approx(value.item(), rel=1e-4), name
        if omega is None:
            assert self.out["omega"] is None
        else:
            assert torch.allclose(self.out["omega"], omega, atol=1e-6)
            assert (omega - 0.5).abs().max() > 0.02  # else any rule would do


def mean_of(cnn, vit):
    return (cnn + vit) / 2


@pytest.mark.parametrize("method", ["kd-vit", "kd-cnn", "kd-mean"])
def test_hinton(method):
    said = Said(method, temperature=2.5)
    pick = {"kd-vit": lambda c, v: v, "kd-cnn": lambda c, v: c, "kd-mean": mean_of}[method]
    said.check({"kd": said.heads(lambda z, c, v, y, h: kd.kd_loss(z, pick(c, v), 2.5))})


def test_ebkd_weighs_by_entropy():
    said = Said("ebkd", temperature=2.5)
    rule = said.heads(lambda z, c, v, y, h: rivals.entropy_weights([c, v]))
    term = said.heads(lambda z, c, v, y, h: kd.weighted_kd_loss(z, [c, v], rivals.entropy_weights([c, v]), 2.5))
    said.check({"kd": term}, rule)


@pytest.mark.parametrize("taps", ["all", "last"])
def test_ca_mkd_weighs_by_the_label_and_matches_each_teacher_with_its_own_features(taps):
    said = Said("ca-mkd", temperature=2.5, align_taps=taps)
    rule = said.heads(lambda z, c, v, y, h: rivals.label_weights([c, v], y))
    term = said.heads(lambda z, c, v, y, h: kd.weighted_kd_loss(z, [c, v], rivals.label_weights([c, v], y), 2.5))
    error = []
    for name in ("cnn", "vit"):
        pairs = list(zip(*said.pairs(name), strict=True))
        assert len(pairs) == (3 if (name, taps) == ("cnn", "all") else 1)
        error.append(sum((p - t).square().mean((1, 2, 3, 4)) for p, t in pairs) / len(pairs))
    feature = (rule[:, 0] * error[0] + rule[:, 1] * error[1]).mean()
    said.check({"kd": term, "feature": feature}, rule)


@pytest.mark.parametrize("target", ["mean", "vit", "cnn"])
def test_rivals_of_one_target(target):
    pick = {"vit": lambda c, v: v, "cnn": lambda c, v: c, "mean": mean_of}[target]

    said = Said("dkd", temperature=2.5, rivals={"target": target, "dkd_alpha": 2.0, "dkd_beta": 3.0})
    rule = said.heads(lambda z, c, v, y, h: rivals.dkd_loss(z, pick(c, v), y, alpha=2.0, beta=3.0, temperature=2.5))
    said.check({"dkd": rule})

    said = Said("dist", rivals={"target": target, "dist_beta": 0.5, "dist_gamma": 2.0, "dist_temperature": 3.0})
    rule = said.heads(lambda z, c, v, y, h: rivals.dist_loss(z, pick(c, v), beta=0.5, gamma=2.0, temperature=3.0))
    said.check({"dist": rule})

    said = Said("ofa", rivals={"target": target, "ofa_epsilon": 1.5, "ofa_temperature": 2.0})

    def own(z, c, v, y):
        return rivals.ofa_loss(z, pick(c, v), y, epsilon=1.5, temperature=2.0)

    staged = {tap: stage(said.features[tap]) for tap, stage in said.task.stages.items()}
    assert len(staged) == 3
    rule = said.heads(lambda z, c, v, y, h: own(z, c, v, y) + sum(own(s[h], c, v, y) for s in staged.values()) / 3)
    said.check({"ofa": rule})


@pytest.mark.parametrize("source", ["vit", "cnn", "both"])
@pytest.mark.parametrize("method", ["rkd", "dtkd"])
def test_relations(method, source):
    said = Said(method, relation={"source": source, "distance": 0.3, "angle": 0.7})
    pooled = said.features["stage3"].mean((2, 3, 4))
    names = ("cnn", "vit") if source == "both" else (source,)
    want = [rkd.relational_loss(pooled, said.taught[name].pooled, distance=0.3, angle=0.7) for name in names]
    assert said.out["terms"]["rkd"].item() == pytest.approx((sum(want) / len(want)).item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["mse", "smooth-l1"])
@pytest.mark.parametrize("teacher", ["cnn", "vit"])
def test_fitnets(teacher, kind):
    said = Said(f"fitnet-{teacher}", branch={"distance": kind})
    said.check({f"fitnet-{teacher}": said.distance(teacher, kind)})


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"confidence": "max"},
        {"confidence": "none"},
        {"discrepancy": "kl"},
        {"discrepancy": "none"},
        {"combine": "sum", "discrepancy_weight": 3.0},
        {"normalize": "softmax", "temperature": 0.2},
        {"standardize": True},
    ],
    ids=str,
)
def test_dtkd_fuses_the_logits_by_every_option_of_omega(weights):
    said = Said("dtkd", temperature=2.5, weights=weights, sdd=0, align=0, rkd=0)
    formula = {key: value for key, value in weights.items() if key != "standardize"}

    def omega(z, c, v, y, h):
        return datw.teacher_weights(z, [c, v], **formula)

    def term(z, c, v, y, h):
        fused = datw.fused_logits([c, v], omega(z, c, v, y, h), weights.get("standardize", False))
        return kd.kd_loss(z, fused, 2.5)

    said.check({"kd": said.heads(term)}, said.heads(omega))


@pytest.mark.parametrize("kind", ["mse", "smooth-l1"])
@pytest.mark.parametrize("residual", ["fitted", "plain"])
@pytest.mark.parametrize("tap", [None, "stage2"])
@pytest.mark.parametrize("branch", ["linear", "deep"])
def test_dtkds_features(branch, tap, residual, kind):
    said = Said("dtkd", kd=0, rkd=0, branch={"distance": kind, "residual": residual, "tap": tap, "kind": branch})
    vit, cnn = said.phi("vit", LAST["vit"]), said.phi("cnn", LAST["cnn"])
    left = vit - (sdd.explained(vit, cnn) if residual == "fitted" else cnn)
    sdd_term = sdd.feature_distance(said.task.branch(said.features[tap or "stage3"]), unit_variance(left), kind)
    said.check({"sdd": sdd_term, "align": said.distance("cnn", kind)})


@pytest.mark.parametrize(("target", "channels"), [("residual", 8), ("both", 16)])
def test_a_recipe_says_which_branch(target, channels):
    linear = Said("dtkd", branch={"target": target}).task.branch
    assert isinstance(linear, sdd.LinearMap) and linear.predict.weight.shape == (channels, 64, 1, 1, 1)
    for non_local, gates in ((True, False), (False, True)):
        own = {"kind": "deep", "target": target, "hidden": 12, "non_local": non_local, "squeeze_excite": gates}
        deep = Said("dtkd", branch=own).task.branch
        assert isinstance(deep, sdd.DeepBranch) and deep.predict.weight.shape == (channels, 12, 1, 1, 1)
        assert isinstance(deep.non_local, sdd.NonLocal3d) == non_local
        assert isinstance(deep.squeeze_excite, sdd.SqueezeExcite3d) == gates


@pytest.mark.parametrize(("key", "value"), [("hidden", 16), ("non_local", False), ("squeeze_excite", False)])
def test_what_only_a_deep_branch_has_is_refused_for_a_linear_one(key, value):
    with pytest.raises(ValueError, match=f"{key} says how a deep branch is made: set distill.branch.kind=deep"):
        DistillConfig.model_validate({"branch": {key: value}})
    assert getattr(DistillConfig.model_validate({"branch": {"kind": "deep", key: value}}).branch, key) == value


def test_the_linear_branch_is_one_linear_map_at_every_place():
    branch = sdd.LinearMap(6, 4, (2, 3, 3))
    x = torch.randn(2, 6, 4, 6, 9)
    pooled = F.adaptive_avg_pool3d(x, (2, 3, 3))
    weight, bias = branch.predict.weight[:, :, 0, 0, 0], branch.predict.bias
    want = torch.einsum("oc,bcthw->bothw", weight, pooled) + bias.view(1, -1, 1, 1, 1)
    assert torch.allclose(branch(x), want, atol=1e-5)


def test_the_deep_branch_is_its_layers_one_after_the_other():
    branch = sdd.DeepBranch(6, 4, hidden=8, grid=(2, 3, 3))
    torch.nn.init.normal_(branch.non_local.norm.weight)  # zero at first: the identity
    x = torch.randn(2, 6, 2, 3, 3)
    want = x
    for layer in (branch.reduce, branch.space, branch.time, branch.non_local, branch.squeeze_excite, branch.predict):
        want = layer(want)
    assert torch.allclose(branch(x), want, atol=1e-5)


def test_every_tap_of_every_teacher_has_a_projection_of_its_own():
    info = ModelInfo("any", ("cnn-teacher", "vit-teacher"), 8, 32, taps={"first": 12, "middle": 12, "last": 12})
    config = DistillConfig()
    matrices = [phi.matrix for name in ("cnn", "vit") for phi in Projections(name, info, list(info.taps)[::-1], config).values()]
    own = [*matrices[:3], matrices[3]]  # a ViT's last tap is all that is read of it
    assert all(not torch.allclose(a, b, atol=0.1) for i, a in enumerate(own) for b in own[:i])
    assert torch.equal(matrices[0], Projections("cnn", info, ["last"], config)["last"].matrix)  # whatever else is read


def test_ofas_stage_is_a_mixed_pooled_linear_layer():
    stage = rivals.StageLogits(4, HEADS)
    torch.nn.init.normal_(stage.mix[1].weight)
    x = torch.randn(2, 4, 2, 3, 3)
    mixed = torch.einsum("oc,bcthw->bothw", stage.mix[0].weight[:, :, 0, 0, 0], x)
    flat = mixed.flatten(1)
    normed = ((flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True, correction=0) + 1e-5).sqrt()).view_as(mixed)
    affine = normed * stage.mix[1].weight[:, None, None, None] + stage.mix[1].bias[:, None, None, None]
    pooled = affine.clamp(min=0).mean((2, 3, 4))
    for head, logits in stage(x).items():
        assert torch.allclose(logits, F.linear(pooled, stage.linear[head].weight, stage.linear[head].bias), atol=1e-5)
