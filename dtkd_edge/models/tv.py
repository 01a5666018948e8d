"""torchvision's video networks: `r2plus1d_18`, `s3d`, and the ViT teachers `swin3d_t`, `swin3d_s`, `swin3d_b` (MViT: mvit.py).

The network itself stays torchvision's, under `backbone.`; its classifier is replaced by ours, which takes its published weights.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from dtkd_edge.errors import RecipeError
from dtkd_edge.models.base import JointHeads, Layout, ModelInfo, Role, Tensors, VideoModel
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


def without_classifier(name: str, classifier: str, **options: Any) -> Any:
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
    return R2Plus1D(info, heads, without_classifier(name, "fc"), dropout)


@register("s3d", STUDENT, "torchvision's S3D: an inception network, space and time in turns")
def s3d(name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None, dropout: float = 0.2) -> VideoModel:
    t, s = frames or 16, size or 224
    if t < 5 or s < 17:
        raise RecipeError(f"{name}: {t} frames of {s} pixels are too few", "at least 5 frames of 17 pixels")
    taps = {"mixed3": 480, "mixed4": 832, "mixed5": 1024}
    info = ModelInfo(name, STUDENT, frames=t, size=s, stride=2, taps=taps, **KINETICS)
    return S3D(info, heads, without_classifier(name, "classifier"), dropout)


def _swin3d(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None, dropout: float = 0.0
) -> VideoModel:
    width = 128 if name == "swin3d_b" else 96
    taps = {f"stage{i + 1}": width * 2**i for i in range(4)}
    info = ModelInfo(name, TEACHER, frames=frames or 32, size=size or 224, stride=2, taps=taps, middle="stage3", **IMAGENET)
    return Swin3D(info, heads, without_classifier(name, "head"), dropout)


for _name in ("swin3d_t", "swin3d_s", "swin3d_b"):
    register(_name, TEACHER, "torchvision's Video Swin: attention in shifted space-time windows")(_swin3d)
