"""Structure-discrepancy distillation (SDD): a branch of the student, for training only, that predicts what the ViT teacher's
features have and the CNN teacher's do not.

From DTKD (Peng et al., arXiv 2511.09469): f_res = φ_ViT(f_ViT) - φ_CNN(f_CNN), and a branch with a non-local module. φ, the
layers and the distance are a reading of it; the linear branch, the default, is a departure: a deep one could learn the target by
itself and teach the student little. φ has no parameter on purpose: trained by this loss alone it would collapse to φ = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtkd_edge.distill.precision import full_precision
from dtkd_edge.distill.ranks import batch_mean, batch_moments, ranks
from dtkd_edge.errors import UsageError
from dtkd_edge.recipe import SddConfig

Grid = tuple[int, int, int]


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    """A seeded random matrix `[rows, columns]` whose rows (or, if there are more rows, whose columns) are orthonormal."""
    generator = torch.Generator().manual_seed(seed)
    tall = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()  # QR is unique up to these signs: fix them, so that every LAPACK gives the same matrix
    return (q if rows >= columns else q.T).contiguous()


@lru_cache
def _cells(length: int, cells: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Adaptive average pooling of one dimension as a matrix `[cells, length]`: cell i is the mean of ⌊iL/n⌋ to ⌈(i+1)L/n⌉. Kept,
    since a copy to a device would wait for it."""
    with torch.inference_mode(False):
        matrix = torch.zeros(cells, length, dtype=dtype)
        for cell in range(cells):
            first, last = cell * length // cells, -(-(cell + 1) * length // cells)
            matrix[cell, first:last] = 1 / (last - first)
        return matrix.to(device)


@full_precision
def _pool(places: Tensor, dim: int, cells: int) -> Tensor:
    """One dimension of `[B, T, H, W, C]` averaged to so many cells that are no whole blocks."""
    matrix = _cells(places.shape[dim], cells, places.device, places.dtype)
    return torch.matmul(matrix, places.flatten(dim + 1)).unflatten(-1, places.shape[dim + 1 :])


def to_grid(features: Tensor, grid: Grid) -> Tensor:
    """Average-pool `[B, C, T, H, W]` to `[B, C, *grid]` (cells may overlap, or repeat a position where there are more of them, as
    in torch's `adaptive_avg_pool3d`), float32 where half precision does not come in whole blocks; what is on the grid already is
    returned as it is."""
    places = features.movedim(1, -1)  # channels last in memory too, as the matrix products behind this want them
    size = 1
    for dim, cells in enumerate(grid, 1):  # one dimension after the other: the same, and on a CPU several times faster
        length = places.shape[dim]
        if length == cells:
            continue
        if length % cells:
            places = _pool(places, dim, cells)
        elif features.dtype is torch.float16:  # whose sums could leave its range
            places = places.unflatten(dim, (cells, -1)).mean(dim + 1)
        else:  # whole blocks: sums, divided when they are few, and so in backward, where a mean divides as many values as it read
            places = places.unflatten(dim, (cells, -1)).sum(dim + 1)
            size *= length // cells
    return (places / size if size > 1 else places).movedim(-1, 1)


def shrink_to_grid(features: Tensor, grid: Grid) -> Tensor:
    """`to_grid` for the dimensions that are longer than the grid; `to_grid` of the result is `to_grid` of the features."""
    shape = features.shape[2:]
    return to_grid(features, (min(shape[0], grid[0]), min(shape[1], grid[1]), min(shape[2], grid[2])))


def to_places(x: Tensor) -> Tensor:
    """`[B, C, T, H, W]` → `[B, T·H·W, C]`; no copy where the channels are last in memory."""
    return x.flatten(2).transpose(1, 2)


def _on_grid(places: Tensor, grid: Sequence[int]) -> Tensor:
    """`[B, T·H·W, C]` → `[B, C, T, H, W]`, channels last in memory."""
    return places.transpose(1, 2).unflatten(2, grid)


class FixedProjection(nn.Module):
    """φ: features of any network `[B, C, T, H, W]` → `[B, channels, *grid]`, without a parameter and without gradient.

    Average pooling to the grid, standardisation per channel over batch and grid, then a fixed seeded orthonormal matrix. The
    standardisation makes φ blind to the scale of a network's features; a channel that is constant in the batch becomes 0. The
    matrix is a buffer outside the state dict, since (in_channels, channels, seed) give it back.
    """

    matrix: Tensor

    def __init__(self, in_channels: int, channels: int, grid: Grid, seed: int) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("matrix", orthonormal(channels, in_channels, seed).float(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return project_standardised([self], [features])[0]


@torch.no_grad()
@full_precision
def project_standardised(projections: Sequence[FixedProjection], features: Sequence[Tensor]) -> list[Tensor]:
    """φ of each of the features, `[B, C, T, H, W]`; several ranks share the statistics of all by one message."""
    pooled = [to_grid(x, phi.grid) for phi, x in zip(projections, features, strict=True)]
    projected = []
    for phi, (x, own, mean, variance) in zip(projections, _moments(pooled), strict=True):
        # The floor is relative to the other channels, so that small features are standardised like large ones.
        matrix = phi.matrix.to(x.dtype) * (variance + 1e-6 * variance.mean() + 1e-12).rsqrt()
        shift = None if ranks() == 1 else matrix @ (own - mean)  # in one process the two means are one
        projected.append(_on_grid(F.linear(x, matrix, shift), phi.grid))
    return projected


class _Moments(NamedTuple):
    """Of features: `[B, N, C]` about their mean `own` `[C]` in this process; mean and variance `[C]` over all ranks' samples."""

    centred: Tensor
    own: Tensor
    mean: Tensor
    variance: Tensor


def _moments(features: Sequence[Tensor]) -> list[_Moments]:
    """Of several `[B, C, T, H, W]`, by one message. In two passes: torch's `var_mean` takes ten times as long on a CPU."""
    places = [to_places(x) for x in features]
    own = [x.mean((0, 1)) for x in places]
    centred = [x - mean for x, mean in zip(places, own, strict=True)]
    widths = [len(mean) for mean in own]
    means, variances = batch_moments(torch.cat(own), torch.cat([x.square().mean((0, 1)) for x in centred]))
    return [_Moments(*row) for row in zip(centred, own, means.split(widths), variances.split(widths), strict=True)]


@torch.no_grad()
@full_precision
def unit_variances(targets: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Targets `[B, C, T, H, W]` of one shape, each scaled to variance 1 (one factor for all its channels; one without variance
    stays as it is), and of each, before, the mean over channels of the variance over batch and grid: near 0 where features have
    collapsed. All in one go: on a GPU such small operations cost their launches."""
    places = torch.stack([to_places(x) for x in targets])
    own = places.mean((1, 2))
    mean, variance = batch_moments(own, (places - own[:, None, None]).square().mean((1, 2)))
    spread = variance.mean(1) + (mean - mean.mean(1, keepdim=True)).square().mean(1)  # of all of a target's values
    factor = torch.where(spread > 1e-12, spread.clamp(min=1e-12).rsqrt(), 1.0)
    scaled = places * factor[:, None, None, None]
    return [_on_grid(x, targets[0].shape[2:]) for x in scaled.unbind()], list(variance.mean(1).unbind())


@torch.no_grad()
@full_precision
def explained(vit: Tensor, cnn: Tensor, ridge: float | None = None) -> Tensor:
    """The best linear guess of φ_ViT from φ_CNN at the same place: two `[B, C, T, H, W]` → the same, no gradient.

    Aᵀ = (Σ c cᵀ + λI)⁻¹ Σ c vᵀ over the N places of the batch (of all ranks); A c. The two random projections know nothing of
    each other, so that their plain difference has all of either teacher in it; A turns the CNN's features to the ViT's axes.
    λ = ridge times the mean of Σ c cᵀ's diagonal; none: 0.01 + C / N, since with few places C channels would explain whatever
    there is (of noise, the share C / N).
    """
    c, v = to_places(cnn).flatten(0, 1), to_places(vit).flatten(0, 1)
    within, across = batch_mean(c.T @ torch.cat([c, v], 1) / len(c)).tensor_split([c.shape[1]], 1)
    if ridge is None:
        ridge = 0.01 + c.shape[1] / (len(c) * ranks())
    floor = ridge * within.diagonal().mean() + 1e-12
    # The unchecked form: the checked one would wait for the device, and with the floor there is nothing to check.
    a = torch.linalg.solve_ex(within + floor * torch.eye(len(within), device=c.device, dtype=c.dtype), across).result
    return _on_grid((c @ a).unflatten(0, (len(cnn), -1)), cnn.shape[2:])


@torch.no_grad()
@full_precision
def residual(vit: Tensor, cnn: Tensor, kind: str = "fitted") -> Tensor:
    """f_res = φ_ViT(f_ViT) - φ_CNN(f_CNN), two `[B, C, T, H, W]` → the same, no gradient.

    fitted: with the best linear guess of φ_ViT for φ_CNN, so that f_res is what the ViT sees and the CNN does not; plain: as is.
    """
    return vit - (explained(vit, cnn) if kind == "fitted" else cnn)


@full_precision
def feature_distance(pred: Tensor, target: Tensor, kind: str = "mse") -> Tensor:
    """Distance of features `[B, C, T, H, W]` to a target of unit variance, a scalar; no gradient into the target.

    mse:       mean (pred - target)²: 1 where nothing but the mean is predicted
    smooth-l1: Huber's loss with δ = 1
    """
    if kind == "mse":
        return F.mse_loss(pred, target.detach())
    if kind == "smooth-l1":
        return F.smooth_l1_loss(pred, target.detach())
    raise UsageError(f"distance: {kind}: unknown", "one of: mse, smooth-l1")


def _pointwise(layer: nn.Conv3d, places: Tensor) -> Tensor:
    """A 1×1×1 convolution of `[B, positions, C]`: as a matrix product, which on a CPU takes three quarters of the time."""
    return F.linear(places, layer.weight.flatten(1), layer.bias)


def _projected_to_grid(layer: nn.Conv3d, features: Tensor, grid: Grid) -> Tensor:
    """A 1×1×1 convolution on the grid. The two commute, so that a grid finer than the features costs the few channels behind the
    convolution, and not the many in front of it."""
    read = shrink_to_grid(features, grid)
    return to_grid(_on_grid(_pointwise(layer, to_places(read)), read.shape[2:]), grid)


class NonLocal3d(nn.Module):
    """Embedded-Gaussian non-local block (Wang et al., Non-local neural networks, CVPR 2018): `[B, C, T, H, W]` → the same.

    y = softmax(θ(x)ᵀ φ(x)) g(x) over all T·H·W positions, with θ, φ, g 1×1×1 convolutions to C/2; out = x + norm(W y). The norm's
    scale starts at 0, so that the block starts as the identity. A group norm instead of the paper's batch norm: it works on a
    batch of 1 and does not tie the branch to the batch size per device.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.theta = nn.Conv3d(channels, inner, 1)
        self.phi = nn.Conv3d(channels, inner, 1)
        self.g = nn.Conv3d(channels, inner, 1)
        self.out = nn.Conv3d(inner, channels, 1, bias=False)
        self.norm = nn.GroupNorm(1, channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        places = to_places(x)
        query, key, value = (_pointwise(layer, places) for layer in (self.theta, self.phi, self.g))
        mixed = _pointwise(self.out, F.scaled_dot_product_attention(query, key, value, scale=1.0))
        return x + self.norm(_on_grid(mixed, x.shape[2:]))


class SqueezeExcite3d(nn.Module):
    """Channel gates from the mean over space and time (Hu et al., Squeeze-and-excitation networks, CVPR 2018)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.down = nn.Linear(channels, inner)
        self.up = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3, 4))))))
        return x * gates[:, :, None, None, None]


def _conv(cin: int, cout: int, kernel: Grid) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(nn.Conv3d(cin, cout, kernel, padding=padding, bias=False), nn.GroupNorm(1, cout), nn.ReLU())


class DeepBranch(nn.Module):
    """A structure-discrepancy branch with layers of its own, the paper's non-local module among them: student features
    `[B, C, T, H, W]` → a prediction `[B, out_channels, *grid]` of the residual. Never exported.

    It works on no more positions than the grid has, so that its cost does not depend on the student's resolution, and it only
    reads: the student computes the same bits with and without it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int = 64,
        grid: Grid = (4, 5, 5),
        non_local: bool = True,
        squeeze_excite: bool = True,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.reduce = _conv(in_channels, hidden, (1, 1, 1))
        self.space = _conv(hidden, hidden, (1, 3, 3))
        self.time = _conv(hidden, hidden, (3, 1, 1))
        self.non_local = NonLocal3d(hidden) if non_local else nn.Identity()
        self.squeeze_excite = SqueezeExcite3d(hidden) if squeeze_excite else nn.Identity()
        self.predict = nn.Conv3d(hidden, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.reduce[1:](_projected_to_grid(cast(nn.Conv3d, self.reduce[0]), features, self.grid))
        x = self.squeeze_excite(self.non_local(self.time(self.space(x))))
        return _on_grid(_pointwise(self.predict, to_places(x)), self.grid)


class LinearMap(nn.Module):
    """A 1×1×1 convolution of the student's pooled features, `[B, C, T, H, W]` → `[B, out_channels, *grid]`: P of the alignment,
    and the branch of kind linear. Never exported. What it gives is in the features themselves, at that place."""

    def __init__(self, in_channels: int, out_channels: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.predict = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return _projected_to_grid(self.predict, features, self.grid)


def build_branch(in_channels: int, options: SddConfig) -> LinearMap | DeepBranch:
    """SDB, the structure-discrepancy branch on student features of so many channels."""
    out_channels = options.channels * (2 if options.target == "both" else 1)
    if options.kind == "linear":
        return LinearMap(in_channels, out_channels, options.grid)
    return DeepBranch(
        in_channels,
        out_channels,
        hidden=options.hidden,
        grid=options.grid,
        non_local=options.non_local,
        squeeze_excite=options.squeeze_excite,
    )
