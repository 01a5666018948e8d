"""ViT teachers over short clips."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dtkd_edge.models.base import Heads, ModelInfo, VideoModel
from dtkd_edge.models.registry import register


def encode(encoder: nn.TransformerEncoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens `[B, N, C]` after the lower half of the layers (at least one), and after all of them."""
    middle, half = tokens, max(len(encoder.layers) // 2, 1)
    for number, layer in enumerate(encoder.layers, 1):
        tokens = layer(tokens)
        if number == half:
            middle = tokens
    return middle, tokens


def fold_tokens(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """`[B, T·H·W, C]` → `[B, C, T, H, W]`."""
    return tokens.transpose(1, 2).unflatten(2, grid)


class TubeletViT(VideoModel):
    """A ViT over space-time tubelets (ViViT, Arnab et al., 2021) with a convolutional stem (Xiao et al., 2021)."""

    def __init__(
        self, info: ModelInfo, heads: dict[str, int], dim: int, depth: int, num_heads: int, drop: float, stride: int = 8
    ) -> None:
        super().__init__()
        self.info, self.heads = info, heads

        def step(cin: int, cout: int, stride: tuple[int, int, int]) -> nn.Sequential:
            return nn.Sequential(nn.Conv3d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm3d(cout), nn.ReLU(inplace=True))

        halvings = stride.bit_length() - 1
        widths = [3, *[dim // (3 * 2 ** (halvings - 2 - i)) for i in range(halvings - 1)]]
        # The second step also halves time: a token covers two frames.
        steps = [step(a, b, (2 if i == 1 else 1, 2, 2)) for i, (a, b) in enumerate(itertools.pairwise(widths))]
        self.stem = nn.Sequential(*steps, nn.Conv3d(widths[-1], dim, 3, (1, 2, 2), 1))
        with torch.no_grad():
            grid = self.stem(torch.zeros(1, 3, info.frames, info.size, info.size)).shape[2:]
        self.position = nn.Parameter(torch.zeros(1, grid.numel(), dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        layer = nn.TransformerEncoderLayer(dim, num_heads, 4 * dim, drop, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.head = Heads(dim, heads)

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        x = self.stem(clips)
        middle, tokens = encode(self.encoder, x.flatten(2).transpose(1, 2) + self.position)
        return {"middle": fold_tokens(middle, x.shape[2:]), "tokens": fold_tokens(self.norm(tokens), x.shape[2:])}

    def forward_head(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(self.head(features["tokens"].mean((2, 3, 4))))

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.head.parameters())


def _info(name: str, frames: int, size: int, dim: int) -> ModelInfo:
    return ModelInfo(name, ("vit-teacher",), frames=frames, size=size, taps={"middle": dim, "tokens": dim}, middle="middle")


@register("vit_tubelet_tiny", ("vit-teacher",), "ViT over tubelets with a convolutional stem, for small generated clips")
def vit_tubelet_tiny(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None,
    dim: int = 96, depth: int = 4, num_heads: int = 4, dropout: float = 0.0,
) -> VideoModel:  # fmt: skip
    info = _info(name, frames or 8, size or 48, dim)
    return TubeletViT(info, heads, dim, depth, num_heads, dropout)


@register("vit_tubelet", ("vit-teacher",), "ViT over tubelets of 2 × 16 × 16, for clips of 96 pixels and more")
def vit_tubelet(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None,
    dim: int = 192, depth: int = 6, num_heads: int = 6, dropout: float = 0.1,
) -> VideoModel:  # fmt: skip
    info = _info(name, frames or 8, size or 112, dim)
    return TubeletViT(info, heads, dim, depth, num_heads, dropout, stride=16)
