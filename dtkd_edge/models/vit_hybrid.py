"""Hybrid ViT teachers: a transformer over the feature maps of any timm CNN, `vit_hybrid_<timm CNN>`.

A ViT from nothing needs far more clips than most people have. The hybrid of the ViT paper (Dosovitskiy et al., An image is worth
16×16 words, ICLR 2021, section 3.1) takes its tokens from a CNN's features instead of from patches, and so starts from that
CNN's published weights; here the tokens are those of all frames, with attention over space and time at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dtkd_edge.errors import RecipeError
from dtkd_edge.models.base import Heads, Layout, ModelInfo, VideoModel, triple
from dtkd_edge.models.layouts import rename
from dtkd_edge.models.registry import register
from dtkd_edge.models.shift import fold_time, unfold_time
from dtkd_edge.models.sources import Fetch, hub_weights, timm_weights
from dtkd_edge.models.vit import encode, fold_tokens


class HybridViT(VideoModel):
    """CNN features of each frame `[B·T, C, H', W']` → tokens with a place in space and one in time → transformer → mean.

    freeze: the CNN stays as loaded, batch norms too, and keeps no graph: only the transformer is trained.
    Taps: `frames`, the CNN's features; `middle` and `tokens`, the transformer's half-way up and at its end; all of them
    `[B, ·, T, H', W']`.
    """

    def __init__(
        self,
        info: ModelInfo,
        backbone: Any,
        grid: tuple[int, int],
        heads: dict[str, int],
        *,
        depth: int,
        num_heads: int,
        dropout: float,
        freeze: bool,
    ) -> None:
        super().__init__()
        self.info, self.heads, self.frozen = info, heads, freeze
        self.backbone = backbone.requires_grad_(not freeze)
        channels, dim = info.taps["frames"], info.taps["tokens"]
        self.embed = nn.Linear(channels, dim)
        self.time = nn.Parameter(torch.zeros(1, dim, info.frames, 1, 1))
        self.space = nn.Parameter(torch.zeros(1, dim, 1, *grid))
        for position in (self.time, self.space):
            nn.init.trunc_normal_(position, std=0.02)
        layer = nn.TransformerEncoderLayer(dim, num_heads, 4 * dim, dropout, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.head = Heads(dim, heads, dropout)

    def train(self, mode: bool = True) -> HybridViT:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            frames = unfold_time(self.backbone.forward_features(fold_time(clips)), self.info.frames)
        x = self.embed(frames.movedim(1, -1)).movedim(-1, 1) + self.time + self.space
        middle, tokens = encode(self.encoder, x.flatten(2).transpose(1, 2))
        grid = x.shape[2:]
        return {"frames": frames, "middle": fold_tokens(middle, grid), "tokens": fold_tokens(self.norm(tokens), grid)}

    def forward_head(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(self.head(features["tokens"].mean((2, 3, 4))))

    def head_parameters(self) -> list[nn.Parameter]:
        """All but the CNN: none of it comes with published weights."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("backbone.")]

    def layouts(self) -> dict[str, Layout]:
        names = {key.removeprefix("backbone."): key for key in self.state_dict() if key.startswith("backbone.")}
        return {"timm": lambda tensors: rename(tensors, names)}

    def sources(self) -> dict[str, Fetch]:
        return {"timm": timm_weights(self.info.name.removeprefix("vit_hybrid_")), "hf-hub": hub_weights()}


@register("vit_hybrid_*", ("vit-teacher",), "transformer over a timm CNN's features of all frames, for few clips")
def vit_hybrid(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None,
    dim: int = 192, depth: int = 3, num_heads: int = 6, dropout: float = 0.1, freeze: bool = True,
    mean: float | tuple[float, float, float] | None = None, std: float | tuple[float, float, float] | None = None,
    **timm_options: Any,
) -> VideoModel:  # fmt: skip
    import timm

    base = name.removeprefix("vit_hybrid_")
    if not timm.is_model(base):
        raise RecipeError(f"{name}: timm has no model {base!r}", "see: dtkd-edge models")
    backbone: Any = timm.create_model(base, pretrained=False, num_classes=0, **timm_options)
    config = backbone.pretrained_cfg
    side = size or config["input_size"][-1]
    with torch.no_grad():
        features = backbone.eval().forward_features(torch.zeros(1, 3, side, side))
    backbone.train()
    if features.ndim != 4 or features.shape[1] != backbone.num_features:  # Swin and others put channels last
        raise RecipeError(f"{name}: {type(backbone).__name__} gives no feature maps", "choose a CNN of timm")
    info = ModelInfo(
        name,
        ("vit-teacher",),
        frames=frames or 8,
        size=side,
        mean=triple(mean, config["mean"]),
        std=triple(std, config["std"]),
        taps={"frames": features.shape[1], "middle": dim, "tokens": dim},
        middle="middle",
    )
    grid = (features.shape[2], features.shape[3])
    return HybridViT(info, backbone, grid, heads, depth=depth, num_heads=num_heads, dropout=dropout, freeze=freeze)
