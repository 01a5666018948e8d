"""ViT teachers out of timm: any of its image ViTs over single frames, and attention over time: `vit_<timm name>`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dtkd_edge.errors import RecipeError
from dtkd_edge.models.base import Heads, Layout, ModelInfo, VideoModel
from dtkd_edge.models.layouts import rename
from dtkd_edge.models.registry import register
from dtkd_edge.models.shift import fold_time, unfold_time
from dtkd_edge.models.sources import Fetch, hub_weights, timm_weights


class FrameViT(VideoModel):
    """Each frame alone goes through the image ViT; a learned query then attends to the T frame embeddings and their positions.

    Taps: `frames` `[B, C, T, 1, 1]`, what the image ViT would classify by; `middle` and `tokens`, its patches' tokens on their
    grid, half-way up and at its end.
    """

    def __init__(
        self, info: ModelInfo, backbone: Any, base: str, heads: dict[str, int], dropout: float, options: dict[str, Any]
    ) -> None:
        super().__init__()
        from timm.layers import AttentionPoolLatent

        self.info, self.heads = info, heads
        self.base, self.options = base, options
        self.backbone, self.lower = backbone, max(len(backbone.blocks) // 2, 1)
        channels = info.taps["frames"]
        attention_heads = next(n for n in (8, 6, 4, 3, 2, 1) if channels % n == 0)
        self.pool = AttentionPoolLatent(channels, num_heads=attention_heads, pos_embed="abs", feat_size=info.frames)
        self.head = Heads(channels, heads, dropout)

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        x, middle = self.backbone.forward_intermediates(fold_time(clips), indices=[self.lower - 1])
        frames = self.backbone.forward_head(x, pre_logits=True)[:, :, None, None]
        tokens = x[:, self.backbone.num_prefix_tokens :].transpose(1, 2).unflatten(2, self.backbone.patch_embed.grid_size)
        taps = {"middle": middle[0], "frames": frames, "tokens": tokens}
        return {name: unfold_time(tap, self.info.frames) for name, tap in taps.items()}

    def forward_head(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(self.head(self.pool(features["frames"].flatten(2).transpose(1, 2))))

    def head_parameters(self) -> list[nn.Parameter]:
        return [*self.pool.parameters(), *self.head.parameters()]

    def layouts(self) -> dict[str, Layout]:
        names = {key.removeprefix("backbone."): key for key in self.state_dict() if key.startswith("backbone.")}
        return {"timm": lambda tensors: rename(tensors, names)}

    def sources(self) -> dict[str, Fetch]:
        # Built at this size, so that timm scales a published position embedding to it.
        return {"timm": timm_weights(self.base, **self.options), "hf-hub": hub_weights(**self.options)}


@register("vit_*", ("vit-teacher",), "any timm ViT over frames, with attention pooling over time (vit_base_patch16_224, …)")
def vit(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None,
    dropout: float = 0.0, **timm_options: Any,
) -> VideoModel:  # fmt: skip
    import timm

    base = next((known for known in (name, name.removeprefix("vit_")) if timm.is_model(known)), None)
    if base is None:
        raise RecipeError(f"{name}: timm has no model {name.removeprefix('vit_')!r}", "see: dtkd-edge models")
    options = {"num_classes": 0, **({} if size is None else {"img_size": size}), **timm_options}
    try:
        backbone: Any = timm.create_model(base, pretrained=False, **options)
    except TypeError as error:
        raise RecipeError(f"{name}: {error}", "check teachers.vit.options in the recipe") from error
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    if grid is None or not hasattr(backbone, "num_prefix_tokens") or not hasattr(backbone, "blocks"):
        raise RecipeError(f"{name}: {type(backbone).__name__} is no plain ViT", "choose a ViT, DeiT, BEiT or EVA of timm")
    config = backbone.pretrained_cfg
    info = ModelInfo(
        name,
        ("vit-teacher",),
        frames=frames or 8,
        size=size or config["input_size"][-1],
        mean=config["mean"],
        std=config["std"],
        taps={"middle": backbone.num_features, "frames": backbone.head_hidden_size, "tokens": backbone.num_features},
        middle="middle",
    )
    return FrameViT(info, backbone, base, heads, dropout, options)
