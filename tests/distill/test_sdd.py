"""φ, the residual, the branch: against statements in numpy, and against collapse."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F

from dtkd_edge.distill.sdd import (
    DeepBranch,
    FixedProjection,
    LinearMap,
    NonLocal3d,
    explained,
    feature_distance,
    orthonormal,
    residual,
    shrink_to_grid,
    to_grid,
    unit_variances,
)
from dtkd_edge.errors import UsageError


def unit_variance(target):
    return unit_variances([target])[0][0]


def variance(features):
    """The mean over channels of the variance over batch and grid."""
    return unit_variances([features])[1][0]


@pytest.mark.parametrize("rows, columns", [(5, 12), (12, 5), (6, 6), (1, 3)])
def test_the_fixed_matrix_is_orthonormal_and_comes_back_from_its_seed(rows, columns):
    q = orthonormal(rows, columns, 7)
    gram = q @ q.T if rows <= columns else q.T @ q
    assert torch.allclose(gram, torch.eye(min(rows, columns), dtype=torch.float64), atol=1e-12)
    assert torch.equal(q, orthonormal(rows, columns, 7))
    assert not torch.allclose(q, orthonormal(rows, columns, 8))


def test_phi_equals_its_statement():
    x = torch.randn(3, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    phi = FixedProjection(6, 5, (2, 4, 4), seed=1)
    pooled = x.double().numpy().reshape(3, 6, 2, 2, 4, 2, 4, 2).mean((3, 5, 7))
    standard = (pooled - pooled.mean((0, 2, 3, 4), keepdims=True)) / pooled.std((0, 2, 3, 4), keepdims=True)
    want = np.einsum("oc,bcthw->bothw", phi.matrix.double().numpy(), standard)
    assert np.allclose(phi(x).numpy(), want, atol=1e-4)


def test_phi_cannot_collapse():
    """It has nothing to train, keeps out of checkpoints, and gives a target of the same size for features of any scale."""
    phi = FixedProjection(8, 4, (2, 3, 3), seed=0)
    assert list(phi.parameters()) == [] and phi.state_dict() == {}
    x = torch.randn(4, 8, 4, 6, 6, requires_grad=True)
    out = phi(x)
    assert not out.requires_grad
    for scale in (1e-4, 1e4):
        assert torch.allclose(phi(x * scale), out, atol=1e-2)
    assert variance(out) > 0.5


sides = st.tuples(*[st.integers(1, 9)] * 3)


@given(shape=sides, grid=sides)
def test_features_shrunk_before_they_are_stored_give_the_same_grid(shape, grid):
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small = shrink_to_grid(x, grid)
    assert tuple(small.shape[2:]) == tuple(map(min, shape, grid))
    assert torch.allclose(to_grid(small, grid), to_grid(x, grid), atol=1e-12)


@given(shape=sides, grid=sides)
def test_the_grid_is_torchs_adaptive_pooling_and_a_projection_commutes_with_it(shape, grid):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = F.adaptive_avg_pool3d(x, grid)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad((expected * weight).sum(), x)
    got = to_grid(x, grid)
    assert torch.allclose(got, expected, atol=1e-12)
    assert torch.allclose(torch.autograd.grad((got * weight).sum(), x)[0], slope, atol=1e-12)
    align = LinearMap(3, 4, grid).double()
    assert torch.allclose(align(x), align.predict(expected), atol=1e-12)


def test_autocast_leaves_the_grid_of_float32_features_alone():
    x = torch.randn(2, 3, 4, 4, 7, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        pooled = to_grid(x, (4, 5, 5))
    assert pooled.dtype == torch.float32 and torch.allclose(pooled, F.adaptive_avg_pool3d(x, (4, 5, 5)), atol=1e-6)


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 2, 4, 4), torch.full((1, 3, 1, 1, 1), 5.0), torch.ones(1, 3, 4, 4, 4) * 1e4])
def test_constant_features_give_zero_not_nan(x):
    phi = FixedProjection(3, 4, (2, 2, 2), seed=0)
    assert torch.equal(phi(x), torch.zeros(x.shape[0], 4, 2, 2, 2))
    target = unit_variance(residual(phi(x), phi(x)))
    assert torch.equal(target, torch.zeros_like(target)) and variance(target) == 0
    pred = torch.randn_like(target).requires_grad_()
    for kind in ("mse", "smooth-l1"):
        loss = feature_distance(pred, target, kind)
        assert loss.isfinite() and torch.autograd.grad(loss, pred)[0].isfinite().all()


def test_a_dead_channel_beside_live_ones_is_zero():
    x = torch.randn(2, 3, 2, 4, 4)
    x[:, 1] = 0.25
    phi = FixedProjection(3, 3, (2, 4, 4), seed=0)
    back = torch.einsum("oc,bothw->bcthw", phi.matrix, phi(x))  # square and orthonormal: undone by its transpose
    assert back[:, 1].abs().max() < 1e-3
    assert back[:, [0, 2]].var(correction=0) == pytest.approx(1, abs=0.05)


def test_one_grid_for_features_of_any_shape():
    for shape in [(2, 7, 8, 5, 5), (2, 7, 2, 3, 3), (2, 7, 1, 1, 1), (2, 7, 5, 9, 4)]:
        assert FixedProjection(7, 4, (4, 5, 5), 0)(torch.randn(shape)).shape == (2, 4, 4, 5, 5)


def test_half_precision_features_are_projected_in_float32():
    x = torch.randn(4, 8, 2, 4, 4).bfloat16()
    phi = FixedProjection(8, 4, (2, 2, 2), seed=0)
    want = phi(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(phi(x), want)


def test_the_plain_residual_is_a_difference():
    vit, cnn = torch.randn(2, 3, 4, 2, 3, 3, dtype=torch.float64) * 5
    assert torch.equal(residual(vit, cnn, "plain"), vit - cnn)
    assert not residual(vit.requires_grad_(), cnn).requires_grad


def test_the_fitted_residual_is_what_least_squares_leave():
    cnn = torch.randn(5, 4, 2, 3, 3, dtype=torch.float64)
    vit = torch.einsum("dc,bcthw->bdthw", torch.randn(6, 4, dtype=torch.float64), cnn) + torch.randn(5, 6, 2, 3, 3).double()

    def rows(x):
        return np.moveaxis(x.numpy(), 1, -1).reshape(-1, x.shape[1])

    coefficients, *_ = np.linalg.lstsq(rows(cnn), rows(vit), rcond=None)
    left = vit - explained(vit, cnn, ridge=0.0)
    assert np.allclose(rows(left), rows(vit) - rows(cnn) @ coefficients, atol=1e-9)
    assert np.abs(rows(left).T @ rows(cnn)).max() < 1e-9  # nothing in it that the CNN's features tell
    # With a ridge it is the least squares of data with √λ·I below, for targets of 0.
    level = (0.01 + 4 / 90) * np.trace(rows(cnn).T @ rows(cnn)) / 4
    padded, wanted = np.vstack([rows(cnn), level**0.5 * np.eye(4)]), np.vstack([rows(vit), np.zeros((4, 6))])
    coefficients, *_ = np.linalg.lstsq(padded, wanted, rcond=None)
    assert np.allclose(rows(residual(vit, cnn)), rows(vit) - rows(cnn) @ coefficients, atol=1e-9)


def test_a_vit_that_knows_no_more_than_the_cnn_leaves_nothing():
    """Its own φ does not matter then; the plain difference of the two projections is as large as ever."""
    features = torch.randn(40, 6, 2, 3, 3)
    vit, cnn = FixedProjection(6, 4, (2, 3, 3), 2)(features), FixedProjection(6, 6, (2, 3, 3), 1)(features)
    assert variance(residual(vit, cnn)) < 1e-3 * variance(vit)
    assert variance(residual(vit, cnn[:, :4], "plain")) > variance(vit)


def test_a_few_places_explain_little_of_noise():
    """Plain least squares would explain all of it: 16 places, 48 channels."""
    vit, cnn = torch.randn(2, 16, 48, 1, 1, 1)
    assert variance(vit - explained(vit, cnn, ridge=0.0)) < 1e-3 * variance(vit)
    assert variance(residual(vit, cnn)) > 0.2 * variance(vit)


def test_distances_equal_their_statements():
    pred, target = torch.randn(2, 3, 4, 2, 3, 3, dtype=torch.float64)
    target = unit_variance(3 * target + 1)
    p, t = pred.numpy(), target.numpy()
    assert feature_distance(pred, target, "mse").item() == pytest.approx(((p - t) ** 2).mean(), rel=1e-12)
    error = np.abs(p - t)
    huber = np.where(error < 1, 0.5 * error**2, error - 0.5).mean()
    assert feature_distance(pred, target, "smooth-l1").item() == pytest.approx(huber, rel=1e-12)
    assert feature_distance(torch.full_like(target, target.mean()), target).item() == pytest.approx(1)
    with pytest.raises(UsageError, match="distance: cosine"):
        feature_distance(pred, target, "cosine")


@pytest.mark.parametrize("kind", ["mse", "smooth-l1"])
def test_gradients_of_the_distance(kind):
    pred, target = torch.randn(2, 2, 3, 1, 2, 2, dtype=torch.float64)
    assert gradcheck(lambda p: feature_distance(p, target, kind), pred.requires_grad_())
    target = target.clone().requires_grad_()
    feature_distance(pred, target, kind).backward()
    assert target.grad is None


def test_the_non_local_block_equals_its_statement():
    torch.manual_seed(0)
    block = NonLocal3d(6).double()
    torch.nn.init.normal_(block.norm.weight)
    x = torch.randn(2, 6, 2, 3, 2, dtype=torch.float64)

    def linear(conv, flat):
        bias = 0 if conv.bias is None else conv.bias.detach().numpy()[:, None]
        return conv.weight.detach().numpy()[:, :, 0, 0, 0] @ flat + bias

    for b in range(2):
        flat = x[b].flatten(1).numpy()
        theta, phi, g = (linear(layer, flat) for layer in (block.theta, block.phi, block.g))
        scores = np.exp(theta.T @ phi)
        y = g @ (scores / scores.sum(1, keepdims=True)).T
        w = linear(block.out, y)
        normed = (w - w.mean()) / np.sqrt(w.var() + 1e-5) * block.norm.weight.detach().numpy()[:, None]
        assert np.allclose(block(x)[b].flatten(1).detach().numpy(), flat + normed, atol=1e-10)


def test_the_non_local_block_starts_as_the_identity_and_learns():
    block, x = NonLocal3d(8), torch.randn(1, 8, 2, 3, 3)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.norm.weight.grad.abs().sum() > 0
    small = NonLocal3d(2).double()
    torch.nn.init.normal_(small.norm.weight)  # at zero the block is the identity, and attention has no part in its gradient
    assert gradcheck(small, torch.randn(1, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("non_local", [True, False])
@pytest.mark.parametrize("squeeze_excite", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_branch_predicts_on_the_grid(non_local, squeeze_excite, batch):
    branch = DeepBranch(10, 6, hidden=8, grid=(2, 3, 3), non_local=non_local, squeeze_excite=squeeze_excite)
    features = torch.randn(batch, 10, 4, 7, 7, requires_grad=True)
    out = branch(features)
    assert out.shape == (batch, 6, 2, 3, 3)
    out.square().mean().backward()
    assert features.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in branch.parameters())
    assert any("non_local" in key for key in branch.state_dict()) == non_local
    assert LinearMap(10, 6, (2, 3, 3))(features).shape == (batch, 6, 2, 3, 3)


@pytest.mark.parametrize("kind", ["linear", "deep"])
def test_the_branch_learns_a_residual_that_is_in_the_features(kind):
    """Fresh clips each step: the share of variance left unexplained falls to a fraction, but not for a target of other clips."""
    torch.manual_seed(0)
    phi_cnn, phi_vit = FixedProjection(6, 4, (2, 3, 3), 1), FixedProjection(6, 4, (2, 3, 3), 2)
    left = {}
    for shift in (0, 1):
        branch = LinearMap(12, 4, (2, 3, 3)) if kind == "linear" else DeepBranch(12, 4, hidden=24, grid=(2, 3, 3))
        optimizer = torch.optim.AdamW(branch.parameters(), 2e-2)
        losses = []
        for _ in range(60):
            cnn, vit = torch.randn(2, 16, 6, 2, 3, 3)
            target = unit_variance(residual(phi_vit(vit), phi_cnn(cnn), "plain")).roll(shift, 0)
            loss = feature_distance(branch(torch.cat([cnn, vit], 1)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        left[shift] = sum(losses[-10:]) / 10
    assert left[0] < 0.5 and left[1] > 0.9, left
    assert unit_variance(target).var(correction=0) == pytest.approx(1, abs=1e-5)
