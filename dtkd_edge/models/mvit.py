"""torchvision's multiscale ViTs: `mvit_v1_b` and `mvit_v2_s`, with the published files of PySlowFast and of pytorchvideo's hub.

Fan et al.: Multiscale Vision Transformers, ICCV 2021; Li et al.: MViTv2, CVPR 2022.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtkd_edge.models.base import Layout, ModelInfo, Tensors, VideoModel
from dtkd_edge.models.depthwise import replace_depthwise
from dtkd_edge.models.layouts import Pattern, substitute
from dtkd_edge.models.registry import register
from dtkd_edge.models.tv import TEACHER, TorchvisionModel, without_classifier
from dtkd_edge.models.vit import fold_tokens

SPATIAL, TEMPORAL = "backbone.pos_encoding.spatial_pos", "backbone.pos_encoding.temporal_pos"


class MViT(TorchvisionModel):
    """The tokens of each stage, folded to their grid. The classifier reads the class token, which is the tap `class`.

    torchvision's MViTv2 scales its published tables of relative positions (of 16 × 224²) to the grid that it is given.
    """

    classifier = "head.1."
    ends = (0, 2, 13)  # the last block of every stage but the last

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        net = self.backbone
        patches = net.conv_proj(clips)
        x, grid = net.pos_encoding(patches.flatten(2).transpose(1, 2)), tuple(patches.shape[2:])
        taps, names = {}, iter(self.info.taps)
        for i, block in enumerate(net.blocks):
            x, grid = block(x, grid)
            if i in self.ends:
                taps[next(names)] = fold_tokens(x[:, 1:], grid)
        x = net.norm(x)
        taps["class"] = fold_tokens(x[:, :1], (1, 1, 1))
        taps["tokens"] = fold_tokens(x[:, 1:], grid)
        return taps

    def pool(self, features: dict[str, Tensor]) -> Tensor:
        return features["class"].flatten(1)

    def layouts(self) -> dict[str, Layout]:
        return {
            "torchvision": self.from_torchvision,
            "PySlowFast": lambda tensors: self.from_torchvision(from_pyslowfast(tensors)),
        }


class MViTv1(MViT):
    """MViTv1 adds a table of positions in space and one in time: those of a file are scaled to the grid of this model."""

    def from_torchvision(self, tensors: Tensors) -> Tensors:
        out = super().from_torchvision(tensors)
        grid = self.backbone.pos_encoding
        for name, wanted in ((SPATIAL, tuple(grid.spatial_size)), (TEMPORAL, (grid.temporal_size,))):
            if name in out:
                out[name] = resample_positions(out[name], wanted)
        return out

    def layouts(self) -> dict[str, Layout]:
        return {
            **super().layouts(),
            "pytorchvideo": lambda tensors: self.from_torchvision(from_pyslowfast(substitute(tensors, _PYTORCHVIDEO))),
        }


def resample_positions(table: Tensor, grid: tuple[int, ...]) -> Tensor:
    """A table of positions `[N, C]`, in time or of a square, scaled linearly to `grid` as PySlowFast scales it: `[N', C]`.

    What is no such table stays as it is, for its shape to be refused.
    """
    if table.ndim != 2:
        return table
    side = math.isqrt(len(table)) if len(grid) == 2 else len(table)
    if side ** len(grid) != len(table) or (side,) * len(grid) == grid:
        return table
    cells = table.float().t().unflatten(1, (side,) * len(grid))[None]
    return F.interpolate(cells, grid, mode="bilinear" if len(grid) == 2 else "linear").flatten(2)[0].t()


# pytorchvideo's names → PySlowFast's
_PYTORCHVIDEO: list[Pattern] = [
    (r"^cls_positional_encoding\.", ""),
    (r"^patch_embed\.patch_model\.", "patch_embed.proj."),
    (r"^norm_embed\.", "norm."),
    (r"^head\.proj\.", "head.projection."),
]
# PySlowFast's names → torchvision's
_PYSLOWFAST: list[Pattern] = [
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^head\.projection\.", "head.1."),
    (r"\.attn\.pool_([qkv])\.", r".attn.pool_\1.pool."),
    (r"\.attn\.norm_([qkv])\.", r".attn.pool_\1.norm_act.0."),
    (r"\.attn\.proj\.", ".attn.project.0."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^(blocks\.\d+)\.proj\.", r"\1.project."),
    (r"^cls_token$", "pos_encoding.class_token"),
    (r"^pos_embed_(spatial|temporal|class)$", r"pos_encoding.\1_pos"),
]


def from_pyslowfast(tensors: Tensors) -> Tensors:
    """PySlowFast's MViT under torchvision's names. Its class token is `[1, 1, C]`, its tables of positions are `[1, N, C]`, and
    queries, keys and values may have a layer each."""
    renamed = substitute(tensors, _PYSLOWFAST)
    for name, value in renamed.items():
        if name.startswith("pos_encoding.") and value.ndim == 3:
            renamed[name] = value.flatten() if "class" in name else value.flatten(0, 1)
    for query in [name for name in renamed if ".attn.q." in name]:
        parts = [renamed.get(query.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        same = [part for part in parts if part is not None and part.shape == renamed[query].shape and part.ndim > 0]
        if len(same) == 3:
            renamed[query.replace(".attn.q.", ".attn.qkv.")] = torch.cat(same)
            for part in "qkv":
                del renamed[query.replace(".attn.q.", f".attn.{part}.")]
    return renamed


@register("mvit_v1_b", TEACHER, "torchvision's MViTv1-B: attention over pooled space-time tokens, positions added to them")
def mvit_v1_b(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None,
    dropout: float = 0.5, stochastic_depth_prob: float = 0.2,
) -> VideoModel:  # fmt: skip
    from torchvision.models.video.mvit import PositionalEncoding

    info = ModelInfo(name, TEACHER, frames=frames or 16, size=size or 224, stride=4, taps=_taps(192, 384, 768), middle="stage3")
    backbone = _backbone(name, stochastic_depth_prob)
    # torchvision builds it for 16 × 224² only. What its patches of 2 × 4² make of a clip:
    length, side = math.ceil(info.frames / 2), math.ceil(info.size / 4)
    if (length, side) != (8, 56):
        backbone.pos_encoding = PositionalEncoding(96, (side, side), length, rel_pos_embed=False)
        for table in backbone.pos_encoding.parameters():
            nn.init.trunc_normal_(table, std=0.02)
    return MViTv1(info, heads, backbone, dropout)


@register("mvit_v2_s", TEACHER, "torchvision's MViTv2-S: attention over pooled space-time tokens, positions relative")
def mvit_v2_s(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None,
    dropout: float = 0.5, stochastic_depth_prob: float = 0.2,
) -> VideoModel:  # fmt: skip
    info = ModelInfo(name, TEACHER, frames=frames or 16, size=size or 224, stride=4, taps=_taps(96, 192, 384), middle="stage3")
    backbone = _backbone(name, stochastic_depth_prob)
    return MViT(info, heads, backbone, dropout)


def _backbone(name: str, stochastic_depth_prob: float) -> Any:
    """torchvision's network with its weights' names, on our depthwise convolutions and attention."""
    from dtkd_edge.models.mvit_attention import replace_attention

    backbone = without_classifier(name, "head", stochastic_depth_prob=stochastic_depth_prob)
    replace_depthwise(backbone)
    replace_attention(backbone)
    return backbone


def _taps(*stages: int) -> dict[str, int]:
    return {**{f"stage{i + 1}": channels for i, channels in enumerate(stages)}, "class": 768, "tokens": 768}
