"""KD and the rivals' losses against statements in float64 with numpy and scipy, their gradients, and their traps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from dtkd_edge.distill.kd import kd_loss, weighted_kd_loss
from dtkd_edge.distill.rivals import (
    dist_loss,
    dkd_loss,
    entropy_weights,
    label_weights,
    ofa_loss,
    weighted_feature_loss,
)

LOSSES = {
    "kd": lambda s, t, y: kd_loss(s, t, 4.0),
    "weighted-kd": lambda s, t, y: weighted_kd_loss(s, [t, 2 * t], torch.full((len(s), 2), 0.5, dtype=s.dtype), 3.0),
    "dkd": dkd_loss,
    "dist": lambda s, t, y: dist_loss(s, t),
    "ofa": lambda s, t, y: ofa_loss(s, t, y, epsilon=1.3),
    "feature": lambda s, t, y: weighted_feature_loss(
        [[volume(s)], [volume(s)]], [[volume(t)], [volume(-t)]], wide(t).softmax(-1)[:, :2]
    ),
}


def wide(z):
    return z.to(torch.promote_types(z.dtype, torch.float32))


def volume(z):
    return z[:, :, None, None, None]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return (p * (np.log(p) - np.log(q))).sum(-1)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(5)
    student, teacher = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64) * 2
    return student, teacher, torch.randint(0, 5, (6,), generator=generator)


def test_kd_equals_its_statement(logits):
    student, teacher, _ = logits
    want = 2.5**2 * kl(softmax(teacher.numpy() / 2.5), softmax(student.numpy() / 2.5)).mean()
    assert kd_loss(student, teacher, 2.5).item() == pytest.approx(want, rel=1e-12)
    assert kd_loss(student, student + 3, 2.5).item() == pytest.approx(0, abs=1e-12)  # blind to an offset


def test_the_gradient_of_kd_at_a_high_temperature_is_that_of_matching_logits(logits):
    """Hinton et al., section 2.1: for large T the gradient goes to (z_S - z_T) / K per sample, for centred logits."""
    student, teacher, _ = ((t - t.mean(1, keepdim=True)) if t.is_floating_point() else t for t in logits)
    student = student.clone().requires_grad_()
    kd_loss(student, teacher, 1e4).backward()
    want = (student - teacher).detach() / student.shape[1] / len(student)
    assert torch.allclose(student.grad, want, rtol=1e-3, atol=1e-6)


def test_weighted_kd_equals_its_statement(logits):
    student, teacher, _ = logits
    other, weights = teacher.roll(1, 0), torch.rand(6, 2, dtype=torch.float64)
    p, a, b = (softmax(z.numpy() / 3) for z in (student, teacher, other))
    want = 9 * (weights[:, 0].numpy() * kl(a, p) + weights[:, 1].numpy() * kl(b, p)).mean()
    assert weighted_kd_loss(student, [teacher, other], weights, 3).item() == pytest.approx(want, rel=1e-12)


def test_dkd_equals_its_statement(logits):
    student, teacher, labels = logits
    tckd, nckd = [], []
    for s, t, y in zip(student.numpy() / 4, teacher.numpy() / 4, labels.tolist(), strict=True):
        p, q = softmax(t), softmax(s)
        tckd.append(kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]])))
        rest = [c for c in range(5) if c != y]
        nckd.append(kl(softmax(t[rest]), softmax(s[rest])))
    want = 16 * (1.5 * np.mean(tckd) + 8 * np.mean(nckd))
    assert dkd_loss(student, teacher, labels, alpha=1.5).item() == pytest.approx(want, rel=1e-10)


def test_dkd_is_kd_when_its_parts_are_weighted_as_kd_weighs_them(logits):
    """Zhao et al., equation 6: KD = TCKD + (1 - p_y) NCKD, sample by sample."""
    student, teacher, labels = (t[:1] for t in logits)
    rest = 1 - (teacher / 4).softmax(-1)[0, labels[0]].item()
    assert dkd_loss(student, teacher, labels, beta=rest).item() == pytest.approx(kd_loss(student, teacher, 4).item(), rel=1e-10)


def test_dist_equals_its_statement(logits):
    student, teacher, _ = logits
    p, q = softmax(student.numpy() / 2), softmax(teacher.numpy() / 2)
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    got = dist_loss(student, teacher, beta=1.5, gamma=0.5, temperature=2).item()
    assert got == pytest.approx(4 * (1.5 * rows + 0.5 * columns), rel=1e-6)


def test_ofa_equals_its_statement_and_is_cross_entropy_at_epsilon_one(logits):
    student, teacher, labels = logits
    truth = np.eye(5)[labels.numpy()]
    p, q = softmax(teacher.numpy()), softmax(student.numpy())
    want = -((((p + truth) ** 1.4) - truth) * np.log(q)).sum(-1).mean()
    assert ofa_loss(student, teacher, labels, epsilon=1.4).item() == pytest.approx(want, rel=1e-12)
    assert ofa_loss(student, teacher, labels).item() == pytest.approx(-(p * np.log(q)).sum(-1).mean(), rel=1e-12)


def test_rival_weights_equal_their_statements(logits):
    a, b, labels = logits
    entropies = np.stack([-(softmax(z.numpy()) * np.log(softmax(z.numpy()))).sum(-1) for z in (a, b)], -1)
    assert np.allclose(entropy_weights([a, b]).numpy(), 1 - entropies / entropies.sum(-1, keepdims=True))
    p = np.stack([softmax(z.numpy())[np.arange(6), labels.numpy()] for z in (a, b)], -1)
    assert np.allclose(label_weights([a, b], labels).numpy(), p / p.sum(-1, keepdims=True))
    for weights in (entropy_weights([a, b, a + b]), label_weights([a, b, a + b], labels), entropy_weights([a])):
        assert torch.allclose(weights.sum(-1), torch.ones(6, dtype=torch.float64))
    certain = torch.tensor([[1e4, 0.0]])
    assert torch.equal(entropy_weights([certain, certain]), torch.tensor([[0.5, 0.5]]))


def test_weighted_feature_loss_equals_its_statement():
    predictions, targets = torch.randn(
        2, 3, 3, 4, 1, 2, 2, dtype=torch.float64
    )  # of the second teacher one tap, of the first two
    weights = torch.rand(3, 2, dtype=torch.float64)
    error = [[((predictions[tap, b] - targets[tap, b]) ** 2).mean() for tap in range(3)] for b in range(3)]
    want = sum(weights[b, 0] * (error[b][0] + error[b][1]) / 2 + weights[b, 1] * error[b][2] for b in range(3)) / 3
    got = weighted_feature_loss([predictions[:2], predictions[2:]], [targets[:2], targets[2:]], weights)
    assert got.item() == pytest.approx(want.item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name, logits):
    student, teacher, labels = logits
    assert gradcheck(lambda s: LOSSES[name](s, teacher, labels), student.clone().requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_reaches_the_teacher(name, logits):
    student, teacher, labels = logits
    teacher = teacher.clone().requires_grad_()
    LOSSES[name](student.clone().requires_grad_(), teacher, labels).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch, classes", [(1, 5), (1, 2), (4, 2), (2, 101)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_small_batches_few_classes_and_extreme_logits_stay_finite(name, batch, classes, scale):
    generator = torch.Generator().manual_seed(1)
    student = (torch.randn(batch, classes, generator=generator) * scale).requires_grad_()
    teacher = torch.randn(batch, classes, generator=generator) * scale
    loss = LOSSES[name](student, teacher, torch.zeros(batch, dtype=torch.long))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_under_autocast_a_loss_has_the_value_of_float32(name, logits):
    student, teacher, labels = (t.bfloat16() if t.is_floating_point() else t for t in logits)
    want = LOSSES[name](student.float(), teacher.float(), labels)
    student = student.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = LOSSES[name](student, teacher, labels)
    got.backward()
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(want.item(), rel=1e-6)
    assert student.grad.dtype == torch.bfloat16 and student.grad.isfinite().all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 20), scale=st.floats(0, 50))
def test_divergences_are_not_negative_and_vanish_at_the_teacher(seed, temperature, scale):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64) * scale
    labels = torch.randint(0, 6, (4,), generator=generator)
    for loss in (
        lambda s, t: kd_loss(s, t, temperature),
        lambda s, t: dkd_loss(s, t, labels, temperature=temperature),
        lambda s, t: dist_loss(s, t, temperature=temperature),
    ):
        assert loss(student, teacher) >= -1e-9
    assert kd_loss(teacher, teacher, temperature).abs() < 1e-9
    assert dkd_loss(teacher, teacher, labels, temperature=temperature).abs() < 1e-9
