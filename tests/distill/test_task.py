"""The task as a whole: every method on real small networks, and what must hold between student, teachers and branch."""

import copy
import warnings

import pytest
import torch

from dtkd_edge.distill import datw, kd, rkd, sdd
from dtkd_edge.distill.methods import METHODS, RAMPED, term_weights
from dtkd_edge.distill.task import DistillationTask, TeacherOutput
from dtkd_edge.errors import RecipeError, UsageError
from dtkd_edge.models import create_model, fit_clip
from dtkd_edge.recipe import DistillConfig

HEADS = {"verb": 3, "noun": 5}
VIT_TAP = create_model("vit_tubelet_tiny", {"action": 2}, size=48).info.last_tap
LEARNED_ELSEWHERE = ("branch.", "matching.", "stages.")


def unit_variance(target):
    return target / target.std(correction=0)


def student(heads=None, **options):
    torch.manual_seed(0)
    return create_model("tsm_tiny", heads or HEADS, size=40, **options)


def teachers(heads=None):
    torch.manual_seed(1)
    return {
        "cnn": create_model("tsm_resnet_tiny", heads or HEADS, size=40),
        "vit": create_model("vit_tubelet_tiny", heads or HEADS, size=48),  # another size: resampled from the same clip
    }


DEEP = "dtkd, its branch deep"


def config(method="dtkd", **options):
    small = {"grid": (2, 3, 3), "channels": 8, **options.pop("branch", {})}
    if method == DEEP:
        method, small = "dtkd", {**small, "kind": "deep", "hidden": 8}
    return DistillConfig.model_validate({"method": method, "branch": small, **options})


def batch(size=4, heads=None):
    generator = torch.Generator().manual_seed(2)
    frames = torch.randint(0, 256, (size, 8, 40, 40, 3), dtype=torch.uint8, generator=generator)
    labels = {head: torch.randint(0, n, (size,), generator=generator) for head, n in (heads or HEADS).items()}
    return frames, labels


@pytest.mark.parametrize("method", [*METHODS, DEEP])
def test_every_method_trains_everything_it_has(method):
    task = DistillationTask(student(), teachers(), config(method))
    out = task(*batch())
    assert set(out) == {"loss", "output", "terms", "omega", "residual_var"}
    assert set(out["terms"]) == set(term_weights(task.config))
    total = sum(task.weights[name] * value for name, value in out["terms"].items())
    assert out["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    assert not any(value.requires_grad for value in out["terms"].values())
    assert {head: tuple(z.shape) for head, z in out["output"].items()} == {"verb": (4, 3), "noun": (4, 5)}
    out["loss"].backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name  # data-parallel training needs every one


@pytest.mark.parametrize("method", [*METHODS, DEEP])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_batch_of_one_and_bfloat16(method, autocast):
    task = DistillationTask(student(), teachers(), config(method))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = task(*batch(1))
    assert out["loss"].isfinite() and out["loss"].dtype == torch.float32
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


def test_the_terms_of_dtkd_are_the_losses_of_this_room():
    task = DistillationTask(student(dropout=0.0), teachers(), config())
    frames, labels = batch()
    taught = task.teach(frames)
    out = task(frames, labels, taught=taught)
    again = task(frames, labels)
    assert torch.equal(out["loss"], again["loss"])  # teaching inside is the same

    ce, divergence, omegas = [], [], []
    for head, z in out["output"].items():
        both = [taught["cnn"].logits[head], taught["vit"].logits[head]]
        omega = datw.teacher_weights(z, both)
        ce.append(torch.nn.functional.cross_entropy(z, labels[head]))
        divergence.append(kd.kd_loss(z, datw.fused_logits(both, omega), 4.0))
        omegas.append(omega)
    student_taps = copy.deepcopy(task.student).forward_features(fit_clip(frames, task.student.info))
    features = student_taps["stage3"]
    phi = {name: task.phi[name][last](taught[name].features[last]) for name, last in (("cnn", "stage3"), ("vit", VIT_TAP))}
    left = phi["vit"] - sdd.explained(phi["vit"], phi["cnn"])
    stages = ["stage1", "stage2", "stage3"]  # the same names in both here
    projected = {tap: task.matching["cnn"].project[tap](student_taps[tap]) for tap in stages}
    targets = {tap: unit_variance(task.phi["cnn"][tap](taught["cnn"].features[tap])) for tap in stages}
    want = {
        "ce": sum(ce) / 2,
        "kd": sum(divergence) / 2,
        "sdd": sdd.feature_distance(task.branch(features), unit_variance(left)),
        "align": sum(((projected[tap] - targets[tap]) ** 2).mean() / targets[tap].var(correction=0) for tap in stages) / 3,
        "rkd": rkd.relational_loss(features.mean((2, 3, 4)), taught["vit"].pooled),
    }
    for name, value in want.items():
        assert out["terms"][name].item() == pytest.approx(value.item(), rel=1e-4), name
    assert torch.allclose(out["omega"], sum(omegas) / 2)
    assert out["residual_var"].item() == pytest.approx(left.var((0, 2, 3, 4), correction=0).mean().item())


def test_stages_of_the_cnn_are_paired_from_the_last_one_back():
    wide = {**teachers(), "cnn": create_model("x3d_xs", HEADS, size=40)}
    task = DistillationTask(student(), wide, config())
    assert task.matching["cnn"].pairs == {"stage3": "conv5", "stage2": "res5", "stage1": "res4"}
    assert list(task.teach(batch()[0])["cnn"].features) == ["conv5", "res5", "res4"]
    task(*batch())["loss"].backward()
    for tap in ("stage1", "stage2", "stage3"):
        assert task.matching["cnn"].project[tap].predict.weight.grad.abs().sum() > 0

    last = DistillationTask(student(), wide, config(align_taps="last"))
    assert last.matching["cnn"].pairs == {"stage3": "conv5"}
    half = DistillationTask(student(), wide, config("ca-mkd", vit_tap="middle"))
    assert half.matching["vit"].pairs == {"stage3": "middle"}
    ours = DistillationTask(student(), wide, config(vit_tap="middle"))  # the branch's target comes from it; relations as before
    said = ours.teach(batch()[0])["vit"]
    assert list(said.features) == ["middle"] and torch.isfinite(ours(*batch())["loss"])
    whole = ours.teachers["vit"].forward_features(fit_clip(batch()[0], ours.teachers["vit"].info))
    assert torch.allclose(said.pooled, whole[VIT_TAP].mean((2, 3, 4)), atol=1e-6)
    with pytest.raises(RecipeError, match="vit_tap"):
        DistillationTask(student(), {**wide, "vit": wide["cnn"]}, config(vit_tap="middle"))
    swapped = {"vit": wide["vit"], "cnn": create_model("vit_tubelet_tiny", HEADS, size=48)}
    assert DistillationTask(student(), swapped, config()).matching["cnn"].pairs == {"stage3": VIT_TAP}
    rival = DistillationTask(student(), wide, config("ca-mkd"))
    assert rival.matching["vit"].pairs == {"stage3": VIT_TAP} and len(rival.matching["cnn"].pairs) == 3
    apart = DistillationTask(student(), wide, config("kd-cnn"))  # reads no features, and keeps them for the methods that do
    assert list(apart.teach(batch()[0])["cnn"].features) == []
    assert list(apart.teach(batch()[0], to_store=True)["cnn"].features) == ["conv5", "res5", "res4"]


def test_relations_read_the_mean_of_the_whole_tap_where_the_grids_cells_overlap():
    task = DistillationTask(student(), teachers(), config(branch={"grid": (3, 2, 2)}))
    frames, _ = batch()
    for name, said in task.teach(frames).items():
        teacher = task.teachers[name]
        tap = teacher.forward_features(fit_clip(frames, teacher.info))[teacher.info.last_tap].detach()
        assert any(side % cells for side, cells in zip(tap.shape[2:], (3, 2, 2), strict=True))
        assert torch.allclose(said.pooled, tap.mean((2, 3, 4)), atol=1e-6)
        assert not torch.allclose(said.pooled, said.features[teacher.info.last_tap].mean((2, 3, 4)), atol=1e-4)


def test_omega_columns_are_cnn_then_vit():
    task = DistillationTask(student(), dict(reversed(teachers().items())), config())
    frames, labels = batch()
    taught = task.teach(frames)
    assert list(taught) == ["cnn", "vit"]
    for head in HEADS:  # the CNN repeats the student, so all the weight is the ViT's
        taught["cnn"].logits[head] = task.student.eval()(fit_clip(frames, task.student.info))[head].detach()
        taught["vit"].logits[head] = -taught["cnn"].logits[head]
    assert (task(frames, labels, taught=taught)["omega"][:, 1] > 0.99).all()


@pytest.mark.parametrize("method", ["dtkd", DEEP])
def test_the_student_is_bit_identical_with_and_without_the_branch(method):
    bare, frames = student(), batch()[0]
    task = DistillationTask(copy.deepcopy(bare), teachers(), config(method))
    for mode in (True, False):
        bare.train(mode), task.train(mode)
        torch.manual_seed(9)  # the same dropout
        want = bare(fit_clip(frames, bare.info))
        torch.manual_seed(9)
        got = task(*batch())["output"]
        assert all(torch.equal(got[head], want[head]) for head in HEADS)


def test_the_training_only_modules_take_no_random_numbers_from_the_student():
    drawn = []
    for method in METHODS:
        torch.manual_seed(4)
        DistillationTask(student(), teachers(), config(method))
        drawn.append(torch.rand(1).item())
    assert len(set(drawn)) == 1


def test_teachers_are_frozen_and_kept_out():
    both = teachers()
    before = {name: copy.deepcopy(teacher.state_dict()) for name, teacher in both.items()}
    task = DistillationTask(student(), both, config()).train()
    keys = task.state_dict()
    assert all(key.startswith(("student.", *LEARNED_ELSEWHERE)) for key in keys)
    assert {key.removeprefix("student.") for key in keys if key.startswith("student.")} == set(task.student.state_dict())
    optimizer = torch.optim.SGD(task.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        task(*batch())["loss"].backward()
        optimizer.step()
    for name, teacher in both.items():
        assert not teacher.training and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
        assert all(torch.equal(value, before[name][key]) for key, value in teacher.state_dict().items())
    outputs = task.teach(batch()[0]).values()
    assert not any(
        t.requires_grad or t.is_inference() for o in outputs for t in (*o.features.values(), o.pooled, *o.logits.values())
    )


def test_teachers_move_with_the_task():
    task = DistillationTask(student(), both := teachers(), config()).to("meta")
    assert {p.device.type for name in both for p in both[name].parameters()} == {"meta"}
    assert task.phi["vit"][VIT_TAP].matrix.device.type == "meta"


@pytest.mark.parametrize("method", ["dtkd", DEEP])
def test_a_state_dict_comes_back_into_a_new_task(method):
    first, second = (DistillationTask(student(dropout=0.0), teachers(), config(method)) for _ in range(2))
    first(*batch())["loss"].backward()
    torch.optim.SGD(first.parameters(), 0.1).step()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*batch())["loss"], second(*batch())["loss"])


def test_the_ramp_raises_features_and_relations_from_zero():
    task = DistillationTask(student(dropout=0.0), teachers(), config(warmup=0.2))
    frames, labels = batch()
    taught = task.teach(frames)
    outs = {p: task(frames, labels, taught=taught, progress=p) for p in (0.0, 0.1, 0.2, 1.0)}

    def expected(ramp):
        terms = outs[0.0]["terms"]
        return sum(task.weights[n] * (ramp if n in RAMPED else 1) * v for n, v in terms.items()).item()

    for progress, ramp in [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (1.0, 1.0)]:
        assert outs[progress]["loss"].item() == pytest.approx(expected(ramp), rel=1e-5)
    outs[0.0]["loss"].backward()  # at a ramp of 0 the branch still takes part: every parameter has a gradient
    assert all(p.grad is not None for p in task.parameters())
    at_once = DistillationTask(student(), teachers(), config(warmup=0))
    assert at_once(*batch(), progress=0.0)["loss"].isfinite()


@pytest.mark.parametrize("kind", ["linear", "deep"])
def test_controls_change_only_what_the_branch_predicts(kind):
    frames, labels = batch()
    seen = {}
    for target in ("residual", "vit", "cnn", "both", "shuffled"):
        torch.manual_seed(3)
        task = DistillationTask(student(dropout=0.0), teachers(), config(branch={"target": target, "kind": kind}))
        out = task(frames, labels)
        out["loss"].backward()
        seen[target] = out["terms"]
        assert out["residual_var"] > 0.1
        assert task.branch.predict.out_channels == (16 if target == "both" else 8)
    for name in ("ce", "kd", "align", "rkd"):
        assert len({terms[name].item() for terms in seen.values()}) == 1
    assert len({terms["sdd"].item() for terms in seen.values()}) == 5


def test_terms_of_weight_zero_cost_nothing():
    task = DistillationTask(student(), teachers(), config(sdd=0, align=0, rkd=0))
    assert all(key.startswith("student.") for key in task.state_dict())
    assert len(task.phi) == 0
    out = task(*batch())
    assert set(out["terms"]) == {"ce", "kd"} and out["residual_var"] is None


def test_ce_needs_no_teacher_and_label_smoothing_touches_ce_only():
    frames, labels = batch()
    task = DistillationTask(student(dropout=0.0), {}, config("ce"))
    smooth = DistillationTask(student(dropout=0.0), {}, config("ce"), label_smoothing=0.1)
    assert task.needs_teachers == set() and task.teach(frames) == {}
    out, other = task(frames, labels), smooth(frames, labels)
    want = sum(torch.nn.functional.cross_entropy(out["output"][h], labels[h], label_smoothing=0.1) for h in HEADS) / 2
    assert other["loss"].item() == pytest.approx(want.item(), rel=1e-6)


def test_a_teacher_that_is_not_read_is_not_run():
    task = DistillationTask(student(), {"vit": teachers()["vit"]}, config("kd-vit"))
    assert set(task.teach(batch()[0])) == {"vit"}
    assert task(*batch())["omega"] is None
    extra = DistillationTask(student(), teachers(), config("kd-vit"))
    assert set(extra.teach(batch()[0])) == {"vit"}


def test_a_cache_may_hold_half_precision():
    frames, labels = batch()
    task = DistillationTask(student(dropout=0.0), teachers(), config())
    taught = task.teach(frames)
    halves = {
        name: TeacherOutput(
            {h: z.half() for h, z in o.logits.items()}, {tap: f.half() for tap, f in o.features.items()}, o.pooled.half()
        )
        for name, o in taught.items()
    }
    assert task(frames, labels, taught=halves)["loss"].item() == pytest.approx(
        task(frames, labels, taught=taught)["loss"].item(), rel=1e-2
    )


def test_what_does_not_fit_is_named():
    with pytest.raises(RecipeError, match=r"dtkd needs teachers\.vit"):
        DistillationTask(student(), {"cnn": teachers()["cnn"]}, config())
    with pytest.raises(RecipeError, match=r"teachers\.cnn: heads"):
        DistillationTask(student(), teachers({"verb": 4, "noun": 5}), config())
    with pytest.raises(RecipeError, match=r"distill\.branch\.tap: stage9.*stage1, stage2, stage3"):
        DistillationTask(student(), teachers(), config(branch={"tap": "stage9"}))
    task = DistillationTask(student(), teachers(), config())
    with pytest.raises(UsageError, match="taught: no output of cnn, vit"):
        task(*batch(), taught={})
    assert DistillationTask(student(), teachers(), config(branch={"tap": "stage1"}))(*batch())["loss"].isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dtkd", "ce"])
def test_a_student_fits_a_small_batch(method):
    torch.manual_seed(0)
    task = DistillationTask(student({"action": 4}), teachers({"action": 4}), config(method, kd=0.0))
    frames, labels = batch(8, {"action": 4})
    optimizer = torch.optim.AdamW(task.parameters(), 3e-3)
    first = None
    for _ in range(40):
        out = task(frames, labels)
        first = first or out["terms"]
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert all(out["terms"][name] < 0.8 * first[name] for name in out["terms"] if name != "rkd"), (first, out["terms"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_step_does_not_wait_for_the_device(method):
    task = DistillationTask(student(), teachers(), config(method)).cuda()
    frames, labels = batch()
    frames, labels = frames.cuda(), {head: y.cuda() for head, y in labels.items()}
    task(frames, labels)["loss"].backward()  # the first step may build workspaces
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls this mode a prototype
            torch.cuda.set_sync_debug_mode("error")
        taught = task.teach(frames)
        features = task.student.forward_features(fit_clip(frames, task.student.info))
        output = task.student.forward_head(features)
        terms, omega = task._logit_terms(features, output, labels, taught, None)
        more, _ = task._feature_terms(features, taught, omega)
        sum([*terms.values(), *more.values()]).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
