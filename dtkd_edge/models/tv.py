"""torchvision's video networks: `r2plus1d_18`, `s3d`, and the ViT teachers `mvit_v2_s`, `swin3d_t`, `swin3d_s`, `swin3d_b`.

The network itself stays torchvision's, under `backbone.`; its classifier is replaced by ours, which takes its published weights.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from dtkd_edge.errors import RecipeError
from dtkd_edge.models.base import JointHeads, Layout, ModelInfo, Role, Tensors, VideoModel
from dtkd_edge.models.layouts import Pattern, substitute
from dtkd_edge.models.registry import register
from dtkd_edge.models.sources import Fetch, torchvision_weights

KINETICS: dict[str, Any] = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
STUDENT: tuple[Role, ...] = ("student", "cnn-teacher")
TEACHER: tuple[Role, ...] = ("vit-teacher",)


class TorchvisionModel(VideoModel):
    """A network of torchvision without its classifier. `classifier`: the prefix of that classifier's published keys."""

    classifier: str

    def __init__(self, info: ModelInfo, heads: dict[str, int], backbone: Any, dropout: float) -> None:
        super().__init__()
        self.info, self.heads = info, heads
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = JointHeads(info.taps[info.last_tap], heads)

    def pool(self, features: dict[str, Tensor]) -> Tensor:
        """What the classifier reads, `[B, C]`."""
        return features[self.info.last_tap].mean((2, 3, 4))

    def forward_head(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        logits: dict[str, Tensor] = self.head(self.dropout(self.pool(features)))
        return logits

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.head.parameters())

    def layouts(self) -> dict[str, Layout]:
        return {"torchvision": self.from_torchvision}

    def sources(self) -> dict[str, Fetch]:
        return {"torchvision": torchvision_weights(self.info.name)}

    def from_torchvision(self, tensors: Tensors) -> Tensors:
        out = {}
        for key, value in tensors.items():
            if key.startswith(self.classifier):
                # A 1×1×1 convolution, as S3D's classifier is, is a linear layer.
                out[f"head.{key.removeprefix(self.classifier)}"] = value.flatten(1) if value.ndim == 5 else value
            else:
                out[f"backbone.{key}"] = value
        return out


class R2Plus1D(TorchvisionModel):
    classifier = "fc."

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        x, taps = self.backbone.stem(clips), {}
        for name in self.info.taps:
            x = taps[name] = getattr(self.backbone, name)(x)
        return taps


class S3D(TorchvisionModel):
    classifier = "classifier.1."
    places = (6, 12, 15)  # the last inception block in front of each pooling

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        x, taps, names = clips, {}, iter(self.info.taps)
        for i, layer in enumerate(self.backbone.features):
            x = layer(x)
            if i in self.places:
                taps[next(names)] = x
        return taps

    def pool(self, features: dict[str, Tensor]) -> Tensor:
        x = features[self.info.last_tap]
        window = [min(a, b) for a, b in zip((2, 7, 7), x.shape[2:], strict=True)]
        if window != list(x.shape[2:]):  # S3D averages overlapping windows: the middle counts more than the ends
            x = F.avg_pool3d(x, window, 1)
        return x.mean((2, 3, 4))


class Swin3D(TorchvisionModel):
    classifier = "head."

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        net = self.backbone
        x, taps, names = net.pos_drop(net.patch_embed(clips)), {}, list(self.info.taps)
        for i, layer in enumerate(net.features):  # stages, with a merging of patches between two
            x = layer(x)
            if i % 2 == 0:
                last = i == len(net.features) - 1
                taps[names[i // 2]] = (net.norm(x) if last else x).permute(0, 4, 1, 2, 3)
        return taps


class MViT(TorchvisionModel):
    """The tokens of each stage, folded to their grid. The classifier reads the class token, which is the tap `class`.

    torchvision's network scales its published tables of relative positions (of 16 × 224²) to the grid that it is given.
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
            "PySlowFast": lambda tensors: self.from_torchvision(mvit_from_pyslowfast(tensors)),
        }


def fold_tokens(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    """`[B, T·H·W, C]` → `[B, C, T, H, W]`."""
    return tokens.transpose(1, 2).unflatten(2, grid)


_MVIT_PYSLOWFAST: list[Pattern] = [
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^head\.projection\.", "head.1."),
    (r"\.attn\.pool_([qkv])\.", r".attn.pool_\1.pool."),
    (r"\.attn\.norm_([qkv])\.", r".attn.pool_\1.norm_act.0."),
    (r"\.attn\.proj\.", ".attn.project.0."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^(blocks\.\d+)\.proj\.", r"\1.project."),
]


def mvit_from_pyslowfast(tensors: Tensors) -> Tensors:
    """PySlowFast's MViTv2 under torchvision's names; its class token is `[1, 1, C]`."""
    renamed = substitute(tensors, _MVIT_PYSLOWFAST)
    if "cls_token" in renamed:
        renamed["pos_encoding.class_token"] = renamed.pop("cls_token").flatten()
    return renamed


def _backbone(name: str, classifier: str, **options: Any) -> Any:
    """torchvision's network, its attribute `classifier` taken out."""
    from torchvision.models import get_model

    backbone: Any = get_model(name, weights=None, **options)
    setattr(backbone, classifier, nn.Identity())
    return backbone


@register("r2plus1d_18", STUDENT, "torchvision's R(2+1)D-18: space and time in turns")
def r2plus1d_18(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None, dropout: float = 0.0
) -> VideoModel:
    taps = {"layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512}
    info = ModelInfo(name, STUDENT, frames=frames or 16, size=size or 112, stride=2, taps=taps, **KINETICS)
    return R2Plus1D(info, heads, _backbone(name, "fc"), dropout)


@register("s3d", STUDENT, "torchvision's S3D: an inception network, space and time in turns")
def s3d(name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None, dropout: float = 0.2) -> VideoModel:
    t, s = frames or 16, size or 224
    if t < 5 or s < 17:
        raise RecipeError(f"{name}: {t} frames of {s} pixels are too few", "at least 5 frames of 17 pixels")
    taps = {"mixed3": 480, "mixed4": 832, "mixed5": 1024}
    info = ModelInfo(name, STUDENT, frames=t, size=s, stride=2, taps=taps, **KINETICS)
    return S3D(info, heads, _backbone(name, "classifier"), dropout)


@register("mvit_v2_s", TEACHER, "torchvision's MViTv2-S: attention over pooled space-time tokens")
def mvit_v2_s(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None,
    dropout: float = 0.5, stochastic_depth_prob: float = 0.2,
) -> VideoModel:  # fmt: skip
    backbone = _backbone(name, "head", stochastic_depth_prob=stochastic_depth_prob)
    taps = {"stage1": 96, "stage2": 192, "stage3": 384, "class": 768, "tokens": 768}
    info = ModelInfo(name, TEACHER, frames=frames or 16, size=size or 224, stride=4, taps=taps)
    return MViT(info, heads, backbone, dropout)


def _swin3d(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None, dropout: float = 0.0
) -> VideoModel:
    width = 128 if name == "swin3d_b" else 96
    taps = {f"stage{i + 1}": width * 2**i for i in range(4)}
    info = ModelInfo(name, TEACHER, frames=frames or 32, size=size or 224, stride=2, taps=taps, **IMAGENET)
    return Swin3D(info, heads, _backbone(name, "head"), dropout)


for _name in ("swin3d_t", "swin3d_s", "swin3d_b"):
    register(_name, TEACHER, "torchvision's Video Swin: attention in shifted space-time windows")(_swin3d)
