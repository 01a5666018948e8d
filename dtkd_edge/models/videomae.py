"""VideoMAE teachers (Tong et al., NeurIPS 2022) through transformers: `videomae_small`, `videomae_base`, `videomae_large`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dtkd_edge.errors import MissingDependency, RecipeError
from dtkd_edge.models.base import JointHeads, Layout, ModelInfo, Tensors, VideoModel
from dtkd_edge.models.layouts import substitute
from dtkd_edge.models.registry import register
from dtkd_edge.models.sources import Fetch, transformers_weights
from dtkd_edge.models.vit import fold_tokens

# name → width, layers, attention heads
SIZES = {"videomae_small": (384, 12, 6), "videomae_base": (768, 12, 12), "videomae_large": (1024, 24, 16)}
PATCH, TUBELET = 16, 2


class VideoMAE(VideoModel):
    """A ViT over tubelets of 2 × 16 × 16; the classifier reads the norm of the tokens' mean.

    Its positions are a fixed table over the flat order of the tokens, so published weights keep their meaning at 16 × 224² alone.
    """

    def __init__(self, info: ModelInfo, heads: dict[str, int], backbone: Any, dropout: float) -> None:
        super().__init__()
        self.info, self.heads = info, heads
        self.backbone = backbone
        self.fc_norm = nn.LayerNorm(info.taps["tokens"], eps=backbone.config.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.head = JointHeads(info.taps["tokens"], heads)

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        net = self.backbone
        tokens, layers = net.embeddings(clips.transpose(1, 2), None), net.encoder.layer
        middle, half = tokens, max(len(layers) // 2, 1)
        for number, layer in enumerate(layers, 1):
            said = layer(tokens)
            tokens = said if isinstance(said, Tensor) else said[0]  # transformers 4 has a tuple there
            if number == half:
                middle = tokens
        if net.layernorm is not None:  # none where the mean is what is normed
            tokens = net.layernorm(tokens)
        side = self.info.size // PATCH
        grid = (self.info.frames // TUBELET, side, side)
        return {"middle": fold_tokens(middle, grid), "tokens": fold_tokens(tokens, grid)}

    def forward_head(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        logits: dict[str, Tensor] = self.head(self.dropout(self.fc_norm(features["tokens"].mean((2, 3, 4)))))
        return logits

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.head.parameters())

    def layouts(self) -> dict[str, Layout]:
        return {"transformers": from_transformers}

    def sources(self) -> dict[str, Fetch]:
        return {"hf-hub": transformers_weights("VideoMAEForVideoClassification")}


def from_transformers(tensors: Tensors) -> Tensors:
    """`VideoMAEForVideoClassification` under our names. Older files say `q_bias` and `v_bias`; keys have no bias."""
    return substitute(tensors, [
        (r"^videomae\.", "backbone."),
        (r"^classifier\.", "head."),
        (r"\.attention\.q_bias$", ".attention.query.bias"),
        (r"\.attention\.v_bias$", ".attention.value.bias"),
    ])  # fmt: skip


def _videomae(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None, dropout: float = 0.0
) -> VideoModel:
    try:
        from transformers import VideoMAEConfig, VideoMAEModel
    except ImportError as error:
        raise MissingDependency(f"{name}: transformers is not installed", extra="hf") from error
    t, s = frames or 16, size or 224
    if t % TUBELET or s % PATCH:
        raise RecipeError(f"{name}: {t} frames of {s} pixels do not fit its patches", "even frames, a size divisible by 16")
    width, layers, attention_heads = SIZES[name]
    config = VideoMAEConfig(
        image_size=s,
        num_frames=t,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=attention_heads,
        intermediate_size=4 * width,
        use_mean_pooling=True,
    )
    info = ModelInfo(
        name,
        ("vit-teacher",),
        frames=t,
        size=s,
        stride=4,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        taps={"middle": width, "tokens": width},
        middle="middle",
    )
    return VideoMAE(info, heads, VideoMAEModel(config), dropout)


for _name in SIZES:
    register(_name, ("vit-teacher",), "VideoMAE through transformers (extra hf): a ViT over tubelets")(_videomae)
