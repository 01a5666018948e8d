"""RKD against triple loops in numpy, its gradients, and equal features."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from dtkd_edge.distill.rkd import relational_loss


def huber(error):
    error = abs(error)
    return 0.5 * error**2 if error < 1 else error - 0.5


def stated(student, teacher):
    """(L_D, L_A) by loops over pairs and triples of different samples."""

    def distances(x):
        d = {(i, j): np.linalg.norm(x[i] - x[j]) for i, j in itertools.permutations(range(len(x)), 2)}
        mean = np.mean([v for v in d.values() if v > 0])
        return {key: v / mean for key, v in d.items()}

    def angles(x):
        def unit(v):
            return v / n if (n := np.linalg.norm(v)) > 0 else v

        return {(i, j, k): unit(x[i] - x[j]) @ unit(x[k] - x[j]) for i, j, k in itertools.permutations(range(len(x)), 3)}

    out = []
    for psi in (distances, angles):
        s, t = psi(student), psi(teacher)
        out.append(np.mean([huber(s[key] - t[key]) for key in s]))
    return out


def test_value_equals_its_statement_for_embeddings_of_different_width():
    generator = torch.Generator().manual_seed(2)
    student = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    teacher = torch.randn(6, 9, generator=generator, dtype=torch.float64).exp()
    d, a = stated(student.numpy(), teacher.numpy())
    assert relational_loss(student, teacher, distance=1, angle=0).item() == pytest.approx(d, rel=1e-10)
    assert relational_loss(student, teacher, distance=0, angle=1).item() == pytest.approx(a, rel=1e-10)
    assert relational_loss(student, teacher).item() == pytest.approx(d + 2 * a, rel=1e-10)


def test_two_equal_rows_among_others():
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    student[3] = student[0]
    d, a = stated(student.numpy(), teacher.numpy())
    student.requires_grad_()
    loss = relational_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(d + 2 * a, rel=1e-10)
    assert student.grad.isfinite().all()


def test_gradients():
    student, teacher = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert gradcheck(lambda s: relational_loss(s, teacher), student.requires_grad_())


def test_rows_that_differ_by_rounding_are_equal():
    generator = torch.Generator().manual_seed(0)
    student = (1 + 1e-7 * torch.randn(6, 16, generator=generator)).requires_grad_()
    relational_loss(student, torch.randn(6, 8, generator=generator)).backward()
    assert student.grad.abs().max() < 1e-5
    near = (1 + 1e-3 * torch.randn(6, 16, generator=generator)).requires_grad_()
    relational_loss(near, torch.randn(6, 8, generator=generator)).backward()
    assert near.grad.abs().max() > 1e-2


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_all_equal_features_give_no_nan(batch):
    for student, teacher in [
        (torch.ones(batch, 4), torch.randn(batch, 6)),
        (torch.randn(batch, 4), torch.zeros(batch, 6)),
        (torch.zeros(batch, 4), torch.zeros(batch, 6)),
    ]:
        leaf = student.clone().requires_grad_()
        loss = relational_loss(leaf, teacher)
        loss.backward()
        assert loss.isfinite() and leaf.grad.isfinite().all()


def test_too_small_a_batch_has_no_relation():
    assert relational_loss(torch.randn(1, 4), torch.randn(1, 4)) == 0
    assert relational_loss(torch.randn(2, 4), torch.randn(2, 4), distance=0) == 0  # no triple; and a pair is at its own mean
    assert relational_loss(torch.randn(2, 4), torch.randn(2, 7)) == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), batch=st.integers(3, 9))
def test_blind_to_scale_shift_rotation_and_order(seed, scale, batch):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(batch, 5, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    moved = scale * x @ rotation + 3
    assert relational_loss(moved, x).item() == pytest.approx(0, abs=1e-9)
    assert relational_loss(moved, y).item() == pytest.approx(relational_loss(x, y).item(), rel=1e-6)
    order = torch.randperm(batch, generator=generator)
    assert relational_loss(x[order], y[order]).item() == pytest.approx(relational_loss(x, y).item(), rel=1e-9)


def test_under_autocast_it_is_computed_in_float32():
    student, teacher = torch.randn(2, 8, 16).bfloat16()
    want = relational_loss(student.float(), teacher.float())
    with torch.autocast("cpu", torch.bfloat16):
        got = relational_loss(student, teacher)
    assert got.dtype == torch.float32 and torch.equal(got, want)
