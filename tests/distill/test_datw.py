"""DATW against a statement in plain Python floats, its limits, and its traps."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtkd_edge.distill.datw import fused_logits, teacher_weights
from dtkd_edge.errors import UsageError

CONFIDENCES = ("entropy", "max", "exp-entropy", "none")
DISCREPANCIES = ("cosine", "kl", "js", "l1", "none")


def softmax(z):
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / sum(e) for v in e]


def kl(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def stated_weights(student, teachers, confidence, discrepancy, combine, lam, normalize, tau):
    """ω of one sample, from the formulas of the module's docstring."""
    scores = []
    for z in teachers:
        p, q = softmax(z), softmax(student)
        h = -sum(v * math.log(v) for v in p)
        neutral = 1.0 if combine == "product" else 0.0
        c = {"entropy": 1 - h / math.log(len(z)), "max": max(p), "exp-entropy": math.exp(-h), "none": neutral}[confidence]
        dot = sum(a * b for a, b in zip(z, student, strict=True))
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        d = {
            "cosine": 1 - dot / math.hypot(*z) / math.hypot(*student),
            "kl": kl(p, q),
            "js": (kl(p, m) + kl(q, m)) / 2,
            "l1": sum(abs(a - b) for a, b in zip(p, q, strict=True)),
            "none": neutral,
        }[discrepancy]
        scores.append(c * d if combine == "product" else c + lam * d)
    if normalize == "softmax":
        return softmax([e / tau for e in scores])
    return [e / sum(scores) for e in scores] if sum(scores) >= 1e-6 else [1 / len(scores)] * len(scores)


@pytest.mark.parametrize("normalize", ["share", "softmax"])
@pytest.mark.parametrize("combine", ["product", "sum"])
def test_every_option_equals_the_stated_formula(combine, normalize):
    generator = torch.Generator().manual_seed(3)
    student, *teachers = torch.randn(4, 6, 7, generator=generator, dtype=torch.float64) * 2  # three teachers
    for confidence, discrepancy in itertools.product(CONFIDENCES, DISCREPANCIES):
        got = teacher_weights(
            student, teachers, confidence=confidence, discrepancy=discrepancy,
            combine=combine, discrepancy_weight=0.7, normalize=normalize, temperature=0.4,
        )  # fmt: skip
        for b in range(len(student)):
            want = stated_weights(
                student[b].tolist(), [z[b].tolist() for z in teachers], confidence, discrepancy, combine, 0.7, normalize, 0.4
            )
            assert got[b].tolist() == pytest.approx(want, abs=1e-12)


def test_a_confident_teacher_that_disagrees_weighs_more():
    student = torch.tensor([[3.0, 0.0, 0.0]])
    sure, unsure = torch.tensor([[0.0, 6.0, 0.0]]), torch.tensor([[0.0, 0.6, 0.0]])
    assert teacher_weights(student, [sure, unsure])[0, 0] > 0.9
    agrees, disagrees = torch.tensor([[6.0, 0.5, 0.0]]), torch.tensor([[0.0, 0.5, 6.0]])
    assert teacher_weights(student, [agrees, disagrees])[0, 1] > 0.9
    assert teacher_weights(student, [agrees, disagrees], discrepancy="none")[0, 1] == pytest.approx(0.5)


def test_nothing_to_choose_by_gives_equal_weights():
    z = torch.randn(4, 5)
    zero = torch.zeros(4, 5)
    for student, teachers in [(z, [z, z]), (z, [zero, zero]), (zero, [zero, zero]), (z, [z, 2 * z])]:
        weights = teacher_weights(student, teachers)
        assert torch.allclose(weights, torch.full((4, 2), 0.5)), (student, teachers)
    both_off = teacher_weights(z, [torch.randn(4, 5), z], confidence="none", discrepancy="none")
    assert torch.equal(both_off, torch.full((4, 2), 0.5))
    assert torch.allclose(teacher_weights(torch.randn(3, 1), [torch.randn(3, 1)] * 2), torch.full((3, 2), 0.5))  # one class


def test_no_gradient_reaches_the_student_through_the_weights():
    student = torch.randn(4, 5, requires_grad=True)
    assert not teacher_weights(student, [torch.randn(4, 5), torch.randn(4, 5)]).requires_grad


logit = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.lists(logit, min_size=4, max_size=4), min_size=3, max_size=3),
    confidence=st.sampled_from(CONFIDENCES),
    discrepancy=st.sampled_from(DISCREPANCIES),
    combine=st.sampled_from(["product", "sum"]),
    normalize=st.sampled_from(["share", "softmax"]),
)
def test_weights_are_shares_whatever_the_logits(data, confidence, discrepancy, combine, normalize):
    student, a, b = (torch.tensor([row]) for row in data)
    options = {"confidence": confidence, "discrepancy": discrepancy, "combine": combine, "normalize": normalize}
    weights = teacher_weights(student, [a, b], **options)
    assert weights.isfinite().all() and (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    swapped = teacher_weights(student, [b, a], **options)
    assert torch.allclose(weights, swapped.flip(1), atol=1e-6)


def test_half_precision_is_computed_in_float32():
    student, a, b = (torch.randn(8, 11).bfloat16() for _ in range(3))
    want = teacher_weights(student.float(), [a.float(), b.float()])
    with torch.autocast("cpu", torch.bfloat16):
        got = teacher_weights(student, [a, b])
        mixed = fused_logits([a, b], got)
    assert got.dtype == mixed.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.allclose(mixed, want[:, :1] * a.float() + want[:, 1:] * b.float(), atol=1e-6)


def test_fused_logits_mix_per_sample():
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    weights = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    assert torch.equal(fused_logits([a, b], weights), torch.tensor([[1.0, 2.0], [23.25, 31.0]]))


def test_standardised_logits_do_not_depend_on_which_teacher_shouts():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    weights = torch.full((5, 2), 0.5, dtype=torch.float64)
    loud = fused_logits([a, 100 * b + 7], weights, standardize=True)
    even = fused_logits([a, b], weights, standardize=True)
    assert torch.allclose(torch.cosine_similarity(loud, even), torch.ones(5, dtype=torch.float64))
    plain = fused_logits([a, 100 * b], weights)
    assert torch.allclose(torch.cosine_similarity(plain, b), torch.ones(5, dtype=torch.float64), atol=1e-2)  # the trap
    one = fused_logits([a, a], weights, standardize=True)  # equal teachers keep their own spread
    assert torch.allclose(one, a - a.mean(1, keepdim=True))
    assert fused_logits([torch.zeros(2, 3), torch.ones(2, 3)], torch.full((2, 2), 0.5), standardize=True).isfinite().all()


@pytest.mark.parametrize("option", ["confidence", "discrepancy", "combine", "normalize"])
def test_an_unknown_option_is_named(option):
    with pytest.raises(UsageError, match=f"{option}: magic"):
        teacher_weights(torch.randn(2, 3), [torch.randn(2, 3)] * 2, **{option: "magic"})
