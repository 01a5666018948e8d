"""A finished run over real video files: what `dtkd-edge train` leaves, made without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import dtkd_edge
from dtkd_edge.models import VideoModel, create_model
from dtkd_edge.models.base import fit_clip
from dtkd_edge.models.saved import ModelCard, save_model
from dtkd_edge.preprocess import Preprocess, Sampling

CLASSES = ("left", "right")


def write_video(path: Path, seed: int, frames: int = 16, size: int = 64) -> None:
    """A textured square that moves over noise, as h264."""
    import av

    rng = np.random.default_rng(seed)
    ground = rng.integers(40, 200, (size, size, 3), dtype=np.uint8)
    patch = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            image = ground.copy()
            at = 2 * i if seed % 2 else 2 * (frames - i)
            image[10 + seed % 8 : 24 + seed % 8, at : at + 14] = patch[:, : max(0, size - at)][:, :14]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def trained(model: VideoModel, seed: int = 0, calm: float = 0.3) -> VideoModel:
    """Weights and batch-norm statistics that are not the initial ones, so that folding them wrongly shows.

    The statistics are those of some clips, as a training leaves them: with any others the clips' differences die out from layer
    to layer, and the logits are the same for all up to rounding. calm: of a layer's mean variance, added to that of all channels:
    four clips leave some that hardly vary, which with other clips would drown the rest.
    """
    generator = torch.Generator().manual_seed(seed)
    info = model.info
    noise = torch.rand((4, 3, info.frames, info.size // 8, info.size // 8), generator=generator)
    clips = 4 * torch.nn.functional.interpolate(noise, (info.frames, info.size, info.size)) - 2
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.weight.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
                module.momentum = None  # the mean of all batches, which is one
        model.train()(clips)
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_var += calm * module.running_var.mean()
        for parameter in model.head_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def teach(model: VideoModel, frames: np.ndarray, labels: np.ndarray) -> None:
    """The first head becomes the nearest class mean of the features: what a training reaches with clips easily told apart."""
    with torch.no_grad():
        features = model.forward_features(fit_clip(torch.from_numpy(frames), model.info))[model.info.last_tap].mean((2, 3, 4))
        means = torch.stack([features[torch.from_numpy(labels) == k].mean(0) for k in range(labels.max() + 1)])
        weight, bias, *_ = model.head_parameters()
        weight.copy_(means - features.mean(0))
        bias.copy_(-0.5 * (means.square().sum(1) - features.mean(0).square().sum()))


def make_card(model: VideoModel, labels: dict[str, list[str]], options: dict | None = None) -> ModelCard:
    info = model.info
    preprocess = Preprocess(resize_short=info.size, crop=info.size, sampling=Sampling(frames=info.frames))
    return ModelCard(
        version=dtkd_edge.__version__, model=info.name, frames=info.frames, stride=info.stride, size=info.size,
        options=options or {}, labels=labels, preprocess=preprocess,
    )  # fmt: skip


def write_run(
    folder: Path,
    root: Path,
    name: str = "tsm_tiny",
    size: int = 48,
    frames: int | None = None,
    labels: dict[str, list[str]] | None = None,
    calm: float = 0.0,
    **options: object,
) -> Path:
    torch.manual_seed(0)
    labels = labels or {"action": list(CLASSES)}
    heads = {head: len(names) for head, names in labels.items()}
    model = trained(create_model(name, heads, size=size, frames=frames, **options), calm=calm)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "student", model, make_card(model, labels, dict(options)))
    text = f"name: {folder.name}\ndata: {{kind: folder, root: {root}}}\nstudent: {{model: {name}, size: {size}}}\n"
    (folder / "recipe.yaml").write_text(text)
    return folder
